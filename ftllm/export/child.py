"""Child processes that speak JSON lines, and what to make of it when one dies."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

from ftllm.errors import UserError, WorkError
from ftllm.export.starting import FORKING, Started, bury, close, kill_group, start, start_together

TAIL = 3  # lines of a dead child's stderr to show
GRACE = 10.0  # seconds a child may take to end after its last word
WORKER, VERIFIER = "ftllm.export.worker", "ftllm.export.verifier"
PATIENCE = 0.3  # seconds a killed child is waited for


_waiting: dict[str, Started] = {}  # for their jobs, by module


@contextlib.contextmanager
def prepared(*modules: str) -> Iterator[None]:
    """Start processes for children to come: they import what they need while their jobs are still made up.

    Those that no child took are ended.
    """
    wanted = [module for module in modules if module not in _waiting]
    together = FORKING and {WORKER, VERIFIER} == set(wanted)
    started = start_together(wanted) if together else {module: start(module) for module in wanted}
    _waiting.update(started)
    try:
        yield
    finally:
        for module, (process, log) in started.items():
            if module in _waiting and _waiting[module][0] is process:
                del _waiting[module]
                if process.poll() is None:
                    kill_group(process)
                with log:
                    close(process)
        for process, _ in started.values():
            bury(process, PATIENCE)


class Child:
    """`python -m MODULE`, given one job; its events arrive in `events`, `None` when it has ended."""

    def __init__(self, name: str, module: str, job: dict[str, Any], events: Events) -> None:
        self.name = name
        self.ended = False  # its end was among the events
        self._process, self._log = _waiting.pop(module) if module in _waiting else start(module)
        self.events = events
        events.children.append(self)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.send(job)

    def send(self, message: dict[str, Any]) -> None:
        """One line to the child; a child that has died is noticed through its events."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def end(self) -> None:
        """Kill it and everything it started, without waiting for their end."""
        if not self.dead:
            kill_group(self._process)

    def kill(self) -> None:
        """End it and everything it started, now.

        One whose last writes the system is still bringing to the disk cannot end before that, and is left to it.
        """
        self.end()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        if not self.dead:
            return
        self._reader.join(timeout=0.5)
        if self._reader.is_alive():  # something it started outlived it, and holds its output open
            kill_group(self._process)
            self._reader.join(timeout=5)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._log.close()

    @property
    def dead(self) -> bool:
        """Whether the process is no more; what it said may still be on its way."""
        return self._process.poll() is not None

    def succeeded(self) -> bool:
        """Whether it ended by itself and well; one that has said its last word is given a little time to end."""
        return self._code() == 0

    def failure(self) -> WorkError:
        """Why a child that ended without a word did so: its signal or exit code, and its last lines."""
        code = self._code()
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode("utf-8", "replace").splitlines() if line.strip()]
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        said = "; ".join(lines[-TAIL:]) or "it said nothing"
        hint = "is there enough memory?" if code == -signal.SIGKILL else "run it again with --verbose for all it said"
        return WorkError(f"the {self.name} process {how}: {said}", hint)

    def _code(self) -> int:
        try:
            return self._process.wait(GRACE)
        except subprocess.TimeoutExpired:  # it closed its output, or said what nobody understands, and lives on
            self._process.kill()
            return self._process.wait()

    def log(self) -> str:
        """Everything it wrote to stderr so far."""
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # closed, or no JSON: then it has ended as far as anyone can tell
            for line in self._process.stdout:
                self.events.put((self, json.loads(line)))
        self.events.put((self, None))


class Events(queue.Queue["tuple[Child, dict[str, Any] | None]"]):
    """Events of all children, in the order they arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.children: list[Child] = []

    def next(self, awaited: Child | None = None) -> tuple[Child, dict[str, Any]]:
        """The next event.

        Args:
            awaited: the child that something is expected from; None is any.

        Raises:
            UserError, WorkError: a child reported an error or died, or the awaited one ended.
        """
        while True:
            waited_for = [awaited] if awaited is not None else self.children
            if all(child.ended for child in waited_for):
                raise waited_for[0].failure()
            try:
                child, event = self.get(timeout=1.0)  # a timeout, so that Ctrl-C is seen on every platform
            except queue.Empty:
                self._bury()
                continue
            if event is None:
                child.ended = True
                if not child.succeeded():
                    raise child.failure()
                continue
            if event["event"] == "error":
                kind = WorkError if event["kind"] == "work" else UserError
                raise kind(event["message"], event["hint"])
            return child, event

    def _bury(self) -> None:
        """Note the end of children that are dead and silent while something they started keeps their output open."""
        for child in self.children:
            if child.dead and not child.ended:
                self.put((child, None))
