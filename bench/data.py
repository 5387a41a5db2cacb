"""Speed and memory of the structure check of a large file, next to a bare `json.loads` of each of its lines.

    python bench/data.py [--megabytes 1000] [--samples 3]

Writes a JSON Lines file of chat rows of varied lengths to a temporary directory (the disk's cache holds it), then
runs both, alternating, each in a fresh process so that the peak resident memory is its own. Prints JSON.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

TEXT = "the keeper lights a lamp at dusk and boats turn home past quiet harbours déjà vu while fog settles"
WORDS = TEXT.split()


def write_file(path: Path, size_bytes: int) -> int:
    """Chat rows until the file has `size_bytes`; returns how many. About 1 kB each, one turn or two."""
    draw = random.Random(0)
    rows = written = 0
    with path.open("wb") as file:
        while written < size_bytes:
            messages = []
            for _ in range(draw.choice((1, 1, 2))):
                messages.append({"role": "user", "content": _text(draw, 5, 80)})
                messages.append({"role": "assistant", "content": _text(draw, 20, 200)})
            written += file.write(json.dumps({"messages": messages}, ensure_ascii=False).encode() + b"\n")
            rows += 1
    return rows


def _text(draw: random.Random, least: int, most: int) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))


def measure(kind: str, path: Path) -> dict[str, float]:
    """Run one kind in this process."""
    started = time.perf_counter()
    if kind == "inspect":
        from core.datasets.inspection import inspect_file

        started = time.perf_counter()
        rows = inspect_file(path).rows
    else:
        with path.open("rb") as file:
            rows = sum(1 for line in file if json.loads(line))
    seconds = time.perf_counter() - started
    return {
        "rows": rows,
        "seconds": seconds,
        "megabytes_per_second": path.stat().st_size / 1e6 / seconds,
        "peak_resident_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "PATH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        kind, path = arguments.measure
        print(json.dumps(measure(kind, Path(path))))
        return
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rows.jsonl"
        rows = write_file(path, arguments.megabytes * 1_000_000)
        runs: dict[str, list[dict[str, float]]] = {"inspect": [], "json.loads": []}
        for _ in range(arguments.samples):
            for kind, results in runs.items():
                command = [sys.executable, __file__, "--measure", kind, str(path)]
                results.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
                assert results[-1]["rows"] == rows
    report = {
        kind: {
            name: round(median(run[name] for run in results), 1)
            for name in ("megabytes_per_second", "peak_resident_megabytes", "seconds")
        }
        for kind, results in runs.items()
    }
    print(json.dumps({"rows": rows, "megabytes": arguments.megabytes, **report}, indent=2))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main()
