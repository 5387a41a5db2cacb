"""What the fork server imports leaves it fit to fork."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

from planner.setup import Method
from tests.unit.training.runs import request_for, setup_for

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

RUN = """
import os, pickle, sys
import worker.training.preload
with open(sys.argv[1], "rb") as file:
    request = pickle.load(file)
preloaded = set(sys.modules)
worker.training.child.main(request, os.open(os.devnull, os.O_WRONLY))
print(*sorted(set(sys.modules) - preloaded))
"""


def test_preload_can_be_forked_leaves_cuda_alone_and_misses_nothing() -> None:
    finished = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(finished.stdout) == {"forked": 0, "cuda": False, "modules": []}
    assert finished.stderr == ""


def test_a_run_imports_next_to_nothing_more(tiny_model: Path, conversations: Path, tmp_path: Path) -> None:
    request = tmp_path / "request"
    request.write_bytes(pickle.dumps(request_for(tiny_model, conversations, tmp_path / "run", setup_for(Method.QLORA))))
    command = [sys.executable, "-c", RUN, str(request)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    imported = finished.stdout.split()
    assert len(imported) < 20, imported  # of thousands; four small ones of PEFT and torch at the time of writing
