"""What the fork server imports leaves it fit to fork."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PROBE = """
import json, os, signal, sys
import worker.training.preload
import numpy, torch
child = os.fork()
if child == 0:  # a pool of threads that was started before the fork would never answer here
    signal.alarm(60)
    torch.set_num_threads(2)
    torch.randn(512, 512) @ torch.randn(512, 512) + torch.randn(512, 512).exp()
    numpy.ones((512, 512)) @ numpy.ones((512, 512))
    os._exit(0)
print(json.dumps({
    "forked": os.waitpid(child, 0)[1],
    "cuda": torch.cuda.is_initialized(),
    "modules": [name for name in ("bitsandbytes", "peft", "transformers.models.llama.modeling_llama",
        "transformers.generation.utils", "worker.training.child") if name not in sys.modules],
}))
"""


def test_preload_can_be_forked_leaves_cuda_alone_and_misses_nothing() -> None:
    finished = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(finished.stdout) == {"forked": 0, "cuda": False, "modules": []}
    assert finished.stderr == ""
