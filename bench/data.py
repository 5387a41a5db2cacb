"""Speed and memory of the structure check of a large file, next to a bare `json.loads` of each of its lines.

    python bench/data.py [--megabytes 1000] [--samples 3]
    python bench/data.py --tokenizer DIRECTORY [--megabytes 10] [--samples 5]

Writes a JSON Lines file of chat rows of varied lengths to a temporary directory (the disk's cache holds it), then
runs both, alternating, each in a fresh process so that the peak resident memory is its own. Prints JSON.

With --tokenizer, the directory of a model whose chat template is not one of ours: how much longer the count of tokens
for a plan takes because the template runs in a limited child, next to the same count with the template in this process.
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


def compare_counts(path: Path, tokenizer: Path, samples: int) -> dict[str, object]:
    """Seconds of one count of the file's tokens, the template in a limited child and in this process, alternating."""
    from core.datasets.encoding import load_encoder
    from core.datasets.inspection import inspect_file, measure_tokens

    data_format = inspect_file(path).require_format()
    encoder = load_encoder(tokenizer)
    renderer = encoder._renderer
    assert renderer is not None, "the model has a chat template"
    assert not renderer._is_shipped, "a template of ours is rendered in this process anyway"
    runs: dict[bool, list[float]] = {False: [], True: []}
    for sample in range(samples + 1):
        for in_process, seconds in runs.items():
            renderer._is_shipped = in_process
            started = time.perf_counter()
            rows = measure_tokens(path, data_format, encoder).statistics.examples
            if sample:  # the first of each warms up
                seconds.append(time.perf_counter() - started)
    child, here = (median(seconds) for seconds in runs.values())
    return {
        "rows": rows,
        "child_seconds": round(child, 2),
        "here_seconds": round(here, 2),
        "ratio": round(child / here, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--tokenizer", type=Path, help="a model's directory: measure the count of tokens instead")
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "PATH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        kind, path = arguments.measure
        print(json.dumps(measure(kind, Path(path))))
        return
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rows.jsonl"
        rows = write_file(path, arguments.megabytes * 1_000_000)
        if arguments.tokenizer:
            print(json.dumps(compare_counts(path, arguments.tokenizer, arguments.samples), indent=2))
            return
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
