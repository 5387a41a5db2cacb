"""A loop that hangs ends its process and says where; one that waits on purpose, is over or has not begun does not."""

import subprocess
import sys

from core.hang_guard import HUNG_EXIT_CODE

SCRIPT = """
import sys
import threading
from core.hang_guard import Pulse, end_when_silent

sys.stderr = object()  # as Celery replaces it by what is no file

def stuck_in_a_lock():
    threading.Event().wait()

hangs, waits, retired, unborn = Pulse(), Pulse(), Pulse(), Pulse()
for name, pulse in (("waits", waits), ("retired", retired), ("unborn", unborn)):
    end_when_silent(name, pulse, 1)
waits.beat()
retired.beat()
retired.retire()
with waits.resting():
    threading.Event().wait(3)
    print("still here", flush=True)
    end_when_silent("hangs", hangs, 1)
    hangs.beat()
    stuck_in_a_lock()
"""


def test_a_loop_that_hangs_ends_its_process_and_says_where_it_was() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == HUNG_EXIT_CODE
    assert done.stdout.startswith("still here\n")
    assert "hangs" in done.stdout
    assert "in stuck_in_a_lock" in done.stderr
