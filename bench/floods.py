"""What a tenant does without pause until told to stop: one process and one thread, so that it costs little itself.

Started by `abuse.py`; prints a line once it has begun, and at its end how many answers of which status it got.
"""

import asyncio
import gzip
import json
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from urllib.parse import urlsplit

CLIENTS = 45  # above the 40 threads of an API process
BOUNDARY = "flood"
FORM_HEAD = (
    f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="file"; filename="rows"\r\n\r\n'
).encode()
FORM_END = f"\r\n--{BOUNDARY}--\r\n".encode()


@dataclass
class Target:
    """The service, as the flooding tenant sees it."""

    url: str
    key: str
    file: str  # 10,000 rows
    job: str
    answers: Counter[int] = field(default_factory=Counter)
    is_over: asyncio.Event = field(default_factory=asyncio.Event)


class Connection:
    """A client's connection, opened again whenever the service closes it."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, line: str, headers: str = "", body: bytes = b"") -> asyncio.StreamReader:
        """Send a request, or its beginning; the reader of its answer."""
        if self._streams is None:
            address = urlsplit(self._target.url)
            self._streams = await asyncio.open_connection(address.hostname, address.port)
        reader, writer = self._streams
        lines = f"{line} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {self._target.key}\r\n{headers}\r\n"
        writer.write(lines.encode() + body)
        await writer.drain()
        return reader

    async def ask(self, line: str, headers: str = "", body: bytes = b"") -> bytes:
        """Send a request and read its answer, whatever that is."""
        try:
            reader = await self.send(line, headers, body)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            self._target.answers[int(head.split(maxsplit=2)[1])] += 1
            content = await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
        except (OSError, ValueError, asyncio.IncompleteReadError):
            self.close()
            raise
        if b"connection: close" in head:
            self.close()
        return content

    def close(self) -> None:
        """Let go of the connection."""
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


Flood = Callable[[Target, int], Awaitable[None]]


async def long_requests(target: Target, _: int) -> None:
    """Ask for a path of 60,000 characters, again and again."""
    await repeat(target, lambda connection: connection.ask("GET /" + "a" * 60_000))


async def lists(target: Target, _: int) -> None:
    """List jobs."""
    await repeat(target, lambda connection: connection.ask("GET /v1/fine_tuning/jobs?limit=100"))


async def plans(target: Target, number: int) -> None:
    """Ask for plans, each with another number of steps."""
    steps = count(1 + 1000 * number)

    async def plan(connection: Connection) -> None:
        wanted = {"model": "tiny", "training_file": target.file, "hyperparameters": {"n_epochs": 1 + next(steps) % 50}}
        body = json.dumps(wanted).encode()
        await connection.ask(
            "POST /v1/plans", f"content-type: application/json\r\ncontent-length: {len(body)}\r\n", body
        )

    await repeat(target, plan)


async def inspections(target: Target, number: int) -> None:
    """Count the tokens of a large file, each time up to another length."""

    lengths = count(number, CLIENTS)

    async def look(connection: Connection) -> None:
        length = 16 + next(lengths) % 2000  # up to what the model reads
        await connection.ask(f"GET /v1/files/{target.file}/inspection?model=tiny&max_length={length}")

    await repeat(target, look)


async def slow_uploads(target: Target, _: int) -> None:
    """Upload a few bytes a second."""
    kind = f"content-length: 9000000\r\ncontent-type: multipart/form-data; boundary={BOUNDARY}\r\n"

    async def drip(connection: Connection) -> None:
        reader = await connection.send("POST /v1/files", kind, FORM_HEAD)
        assert connection._streams is not None
        answer = asyncio.create_task(reader.read(1))
        while not answer.done():
            connection._streams[1].write(b"slow")
            await connection._streams[1].drain()
            await asyncio.wait([answer], timeout=0.5)
        connection.close()

    await repeat(target, drip)


async def event_streams(target: Target, _: int) -> None:
    """Follow the events of one job, and open the stream again when it ends."""

    async def follow(connection: Connection) -> None:
        reader = await connection.send(f"GET /v1/fine_tuning/jobs/{target.job}/events?stream=true")
        head = await reader.readuntil(b"\r\n\r\n")
        target.answers[int(head.split(maxsplit=2)[1])] += 1
        while await reader.read(65536):
            pass
        connection.close()

    async def follow_or_close(connection: Connection) -> None:
        try:
            await follow(connection)
        finally:
            connection.close()

    await repeat(target, follow_or_close)


async def compressed_files(target: Target, number: int) -> None:
    """Upload files of 60 MB, compressed to less than one, and delete them."""
    line = b'{"prompt": "packed %d", "completion": "%s"}\n'
    packed = gzip.compress(b"".join(line % (row, b"Lamp. " * 60) for row in range(150_000)), 1)
    numbers = count(1_000_000 * number)
    kind = f"content-type: multipart/form-data; boundary={BOUNDARY}\r\n"
    waiting: list[str] = []

    async def send(connection: Connection) -> None:
        body = FORM_HEAD + packed + gzip.compress(line % (next(numbers), b"x")) + FORM_END
        file = json.loads(await connection.ask("POST /v1/files", f"{kind}content-length: {len(body)}\r\n", body))
        if "id" in file:
            waiting.append(file["id"])
        if len(waiting) > 12:
            await connection.ask(f"DELETE /v1/files/{waiting.pop(0)}")

    await repeat(target, send)


FLOODS: dict[str, tuple[Flood, int]] = {  # with how many clients
    "long_requests": (long_requests, 4),
    "lists": (lists, CLIENTS),
    "plans": (plans, CLIENTS),
    "slow_uploads": (slow_uploads, 40),
    "event_streams": (event_streams, 300),
    "inspections": (inspections, CLIENTS),
    "compressed_files": (compressed_files, 2),
}


async def repeat(target: Target, work: Callable[[Connection], Awaitable[object]]) -> None:
    """Do it with a connection of one's own until the flood is over."""
    connection = Connection(target)
    while not target.is_over.is_set():
        with suppress(OSError, ValueError, asyncio.IncompleteReadError):
            await work(connection)
    connection.close()


async def run(name: str, target: Target) -> None:
    """Flood until SIGTERM."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, target.is_over.set)
    flood, clients = FLOODS[name]
    tasks = [asyncio.create_task(flood(target, number)) for number in range(clients)]
    print("begun", flush=True)
    await target.is_over.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(json.dumps(target.answers), flush=True)


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], Target(*sys.argv[2:6])))
