"""The child's side of the report pipe."""

import json
import os

from worker.protocol import (
    MessageReport,
    Phase,
    PhaseReport,
    Report,
    encode_report,
)
from worker.training.stopping import StopSignal


class Reporter:
    """Writes reports as JSON Lines, one `write` each, and remembers the phase for whoever must report an error."""

    def __init__(self, report_fd: int, stop: StopSignal) -> None:
        self._fd = report_fd
        self._stop = stop
        self.phase = Phase.LOADING

    def send(self, report: Report) -> None:
        """Send one report. A supervisor that is gone counts as a request to stop."""
        line = json.dumps(encode_report(report), allow_nan=False).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._fd, line) :]
        except BrokenPipeError:
            self._stop.request()

    def enter(self, phase: Phase) -> None:
        """Announce a phase."""
        self.phase = phase
        self.send(PhaseReport(phase))

    def say(self, message: str) -> None:
        """Send one sentence for the user."""
        self.send(MessageReport(message))

    def warn(self, message: str) -> None:
        """Send one sentence the user should act on or know of."""
        self.send(MessageReport(message, level="warn"))
