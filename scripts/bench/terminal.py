"""A program in a pseudo-terminal, and what processes use: for benchmarks of the screen."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import termios
import time
from pathlib import Path

COLUMNS, ROWS = 120, 36


class Terminal:
    """A program in a pseudo-terminal of its own, and what it writes there."""

    def __init__(self, command: list[str], environment: dict[str, str] | None = None) -> None:
        self.began = time.perf_counter()
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # with it, each start would compile the program anew
            os.environ.update({"TERM": "xterm-256color", "COLORTERM": "truecolor", **(environment or {})})
            os.execvp(command[0], command)
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.output = b""

    def read(self, timeout: float) -> bool:
        """Take what has come; whether the program still runs."""
        if not select.select([self._fd], [], [], timeout)[0]:
            return True
        try:
            self.output += os.read(self._fd, 65536)
        except OSError:
            return False
        return True

    def wait(self, text: str, patience: float = 60.0) -> float:
        """Seconds, from now on, until the program has written this."""
        start, wanted = time.perf_counter(), text.encode()
        while wanted not in self.output:
            if not self.read(0.5) or time.perf_counter() - start > patience:
                raise SystemExit(f"{text!r} did not come; the end of what did: {self.output[-2000:]!r}")
        return time.perf_counter() - start

    def send(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def run(self) -> None:
        """Until the program ends."""
        while self.read(0.5):
            self.output = self.output[-4096:]
        os.waitpid(self.pid, 0)

    def close(self) -> None:
        self.send("\x11")
        self.run()


def processor_seconds(pid: int) -> float:
    """What the threads of a process have used so far."""
    tasks = Path(f"/proc/{pid}/task")
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9


def busy_seconds() -> float:
    """What all processors together have worked so far."""
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]
