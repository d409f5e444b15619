"""How many threads to evaluate with beside the other programs of this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from ftllm.llama.machine import allowed_cpus

WINDOW = 0.5  # seconds over which other programs are watched
FEWER, MORE = 0.5, 0.3  # cores that others may take of a thread's own before it goes, and before it comes back
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100  # of /proc/stat, a second
IDLE, WAITING = 3, 4  # fields of a processor's line in /proc/stat: ticks without work, or waiting for a disk
STEAL = 7  # from here on the fields tell what a hypervisor took, from whichever thread, or repeat what was counted

Usage = Callable[[], float | None]


class Company:
    """Watches what other programs take of the processors, and gives way to them.

    Threads of one evaluation meet hundreds of times a token. Where one of them has to wait for its core, all others
    wait for it, on cores of their own: two threads beside one busy program on two cores gave 4 tokens/s where one
    thread gave 19, and where both gave 33 on a quiet machine.
    """

    def __init__(
        self, wanted: int, usage: Usage | None = None, clock: Callable[[], float] = time.monotonic, cpus: int = 0
    ) -> None:
        """Begin to watch.

        Args:
            wanted: threads to evaluate with where nothing else runs.
            usage: processor seconds that other programs have taken so far; None where nobody knows.
            cpus: processors that all share; 0 are those this process may run on.
        """
        self.threads = self._wanted = wanted
        self._usage, self._clock = usage or others_seconds, clock
        self._cpus = cpus or len(allowed_cpus())
        self._begun, self._before = clock(), self._usage()

    def begin(self) -> None:
        """Watch from now on; what was before does not count."""
        self._begun, self._before = self._clock(), self._usage()

    def look(self) -> int:
        """How many threads to go on with. Costs next to nothing before a window is over."""
        now = self._clock()
        passed = now - self._begun
        if self._wanted == 1 or passed < WINDOW:
            return self.threads
        before, self._before, self._begun = self._before, self._usage(), now
        if before is None or self._before is None:
            return self.threads
        left = self._cpus - (self._before - before) / passed
        while self.threads > 1 and left < self.threads - FEWER:
            self.threads -= 1
        while self.threads < self._wanted and left > self.threads + 1 - MORE:
            self.threads += 1
        return self.threads


def others_seconds() -> float | None:
    """Processor seconds that everything but this process has taken on the processors it may run on, since the start.

    None where that cannot be known (there is no /proc/stat).
    """
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    allowed = {f"cpu{number}" for number in allowed_cpus()}
    ticks = 0
    for line in lines:
        name, _, rest = line.partition(" ")
        if name in allowed:
            fields = [int(field) for field in rest.split()[:STEAL]]
            ticks += sum(fields) - fields[IDLE] - fields[WAITING]
    return ticks / TICKS - time.process_time()
