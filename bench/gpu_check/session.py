"""What the steps share: where results go, how long there is, and that nothing is lost when a case fails."""

import gc
import json
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNSEEN = ("traceback", "stderr")  # figures that are written and not shown


@dataclass(frozen=True)
class Session:
    """One step of the check: its name, its results and its time."""

    out: Path
    rehearsing: bool = False  # tiny shapes on the CPU
    step: str = "check"
    ends_at: float = float("inf")  # of this step, by time.time()

    @property
    def results(self) -> Path:
        """One JSON object a line, as soon as a case is done."""
        return self.out / "results.jsonl"

    @property
    def log(self) -> Path:
        """What the steps and their libraries write to stderr."""
        return self.out / "log.txt"

    @property
    def device(self) -> str:
        """torch's name of the device that is measured."""
        return "cpu" if self.rehearsing else "cuda:0"

    def has_time(self, seconds: float) -> bool:
        """Whether this step may begin something that takes so long."""
        return time.time() + seconds < self.ends_at

    def record(self, case: str, **figures: Any) -> None:
        """Append a line to the results and make it last."""
        self.out.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"step": self.step, "case": case, **figures}, default=str)
        with self.results.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        shown = {name: value for name, value in figures.items() if name not in UNSEEN}
        print(f"[{self.step}] {case}: {json.dumps(shown, default=str)[:400]}", flush=True)

    @contextmanager
    def case(self, name: str) -> Iterator[dict[str, Any]]:
        """Yields a dict for the case's figures. Whatever goes wrong becomes one of them, and the next case runs."""
        figures: dict[str, Any] = {}
        started = time.monotonic()
        try:
            yield figures
        except Exception as error:  # a bench on unknown hardware: any failure is a result
            figures["error"] = f"{type(error).__name__}: {error}"[:1000]
            figures["traceback"] = traceback.format_exc()[-3000:]
        self.record(name, **figures, seconds=round(time.monotonic() - started, 2))

    def read(self) -> list[dict[str, Any]]:
        """All results so far, of every step."""
        if not self.results.exists():
            return []
        return [json.loads(line) for line in self.results.read_text(encoding="utf-8").splitlines()]


def clear_device() -> None:
    """Between cases of one process: nothing of the last one is alive or counted."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
