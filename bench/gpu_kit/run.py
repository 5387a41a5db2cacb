"""`bench/gpu.py` on a machine that cannot install the project: run in the project's root, as docs/gpu.md says.

$OUT, where it is set, names the folder for the results; GPUKIT_REHEARSE=1 rehearses on the CPU.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))

from bench.gpu import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "OUT" in os.environ:
        arguments = ["--out", os.environ["OUT"], *arguments]
    if os.environ.get("GPUKIT_REHEARSE") == "1":
        arguments = ["--rehearse", *arguments]
    raise SystemExit(main(arguments))
