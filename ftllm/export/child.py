"""Child processes that speak JSON lines, and what to make of it when one dies."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import ftllm
from ftllm.errors import UserError, WorkError

TAIL = 3  # lines of a dead child's stderr to show


class Child:
    """`python -m MODULE`, given one job; its events arrive in `events`, `None` when it has ended."""

    def __init__(self, name: str, module: str, job: dict[str, Any], events: Events) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        paths = [*_source_path(), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"},
            start_new_session=True,  # Ctrl-C goes to the parent alone, which then ends its children
        )
        self._events = events
        events.alive += 1
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.send(job)

    def send(self, message: dict[str, Any]) -> None:
        """One line to the child; a child that has died is noticed through its events."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def kill(self) -> None:
        """End it and everything it started, now."""
        if self._process.poll() is None:
            if hasattr(os, "killpg"):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()
        self._reader.join(timeout=5)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._log.close()

    def succeeded(self) -> bool:
        """Whether it ended by itself and well; waits for its end."""
        return self._process.wait() == 0

    def failure(self) -> WorkError:
        """Why a child that ended without a word did so: its signal or exit code, and its last lines."""
        code = self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode("utf-8", "replace").splitlines() if line.strip()]
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        said = "; ".join(lines[-TAIL:]) or "it said nothing"
        hint = "is there enough memory?" if code == -signal.SIGKILL else "run it again with --verbose for all it said"
        return WorkError(f"the {self.name} process {how}: {said}", hint)

    def log(self) -> str:
        """Everything it wrote to stderr so far."""
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):
            for line in self._process.stdout:
                self._events.put((self, json.loads(line)))
        self._events.put((self, None))


def _source_path() -> list[str]:
    """Where a child finds ftllm when it is run from a checkout; installed, it is found anyway."""
    source = Path(ftllm.__file__).resolve().parent.parent
    return [] if {"site-packages", "dist-packages"} & set(source.parts) else [str(source)]


class Events(queue.Queue["tuple[Child, dict[str, Any] | None]"]):
    """Events of all children, in the order they arrived."""

    alive = 0  # children whose end has not been seen

    def next(self) -> tuple[Child, dict[str, Any]]:
        """The next event.

        Raises:
            UserError, WorkError: a child reported an error, or died.
        """
        while True:
            try:
                child, event = self.get(timeout=1.0)  # a timeout, so that Ctrl-C is seen on every platform
            except queue.Empty:
                continue
            if event is None:
                self.alive -= 1
                if child.succeeded() and self.alive:
                    continue
                raise child.failure()
            if event["event"] == "error":
                kind = WorkError if event["kind"] == "work" else UserError
                raise kind(event["message"], event["hint"])
            return child, event
