"""Whether a process that owes an answer still works on it, or hangs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ftllm.values import dataclass

Clock = Callable[[], float]


@dataclass(frozen=True)
class Patience:
    """How long to wait, in seconds.

    Attributes:
        idle: without an event, and without any work either (processor time, pages read from disk).
        silent: without an event, however busy. A chunk of prompt, a token or a tenth of a load takes far less.
        stop: until a reply that was asked to stop has stopped.
    """

    idle: float = 60.0
    silent: float = 1800.0
    stop: float = 30.0


class Watch:
    """Keeps the times of one child process. Ask `complaint` now and then while it owes something."""

    def __init__(self, patience: Patience, clock: Clock = time.monotonic) -> None:
        self.patience = patience
        self._clock = clock
        self._heard = self._worked = clock()
        self._work = -1
        self._stop_asked: float | None = None

    def heard(self) -> None:
        """There was an event, or something was asked that had nothing before it to wait for."""
        self._heard = self._clock()

    def stop_asked(self) -> None:
        """A reply was asked to stop."""
        if self._stop_asked is None:
            self._stop_asked = self._clock()

    def stopped(self) -> None:
        """A reply ended."""
        self._stop_asked = None

    def complaint(self, work: int | None) -> str:
        """What is wrong, or nothing.

        Args:
            work: a count that grows while the process works; None where that cannot be told.
        """
        now = self._clock()
        if work != self._work:
            self._work, self._worked = -1 if work is None else work, now
        if self._stop_asked is not None and now - self._stop_asked > self.patience.stop:
            return f"did not stop within {self.patience.stop:.0f} seconds"
        if now - self._heard > self.patience.silent:
            return f"gave no sign for {self.patience.silent / 60:.0f} minutes"
        if work is not None and now - max(self._heard, self._worked) > self.patience.idle:
            return f"did nothing for {self.patience.idle:.0f} seconds"
        return ""


def work_of(pid: int) -> int | None:
    """Processor time (in clock ticks) and pages read from disk, of a process with all its threads; Linux only."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        return int(fields[9]) + int(fields[11]) + int(fields[12])  # majflt, utime, stime in proc_pid_stat(5)
    except (OSError, ValueError, IndexError):
        return None
