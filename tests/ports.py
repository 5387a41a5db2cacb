"""Ports for what the tests start."""

import socket


def free_port() -> int:
    """A port nobody listens on: any of thousands, so that tests side by side do not pick the same."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
