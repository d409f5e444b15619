"""The engine's process as its parent sees it: what is written to it, what is read from it, and how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from ftllm.chat import logs
from ftllm.chat.events import AnyCommand, AnyEvent, Failed, command_to_json, from_json
from ftllm.chat.watch import Patience, Watch
from ftllm.errors import WorkError
from ftllm.llama.environment import quickest

LOG_LINES = 12  # of a crashed engine's log, in its `Failed`


class Child:
    """The process and the thread that reads from it.

    The thread starts the process too, and outlives it: the child asks Linux for a signal at its parent's death, and
    Linux takes the thread that started it for the parent.
    """

    def __init__(
        self,
        log: Path,
        received: Callable[[Child, AnyEvent], None],
        gone: Callable[[Child, float], None],
        patience: Patience,
    ) -> None:
        self.log = log
        self.ended = False
        self.hung = ""  # why it was killed
        self.watch = Watch(patience)
        self.process: subprocess.Popen[bytes]
        self._write_lock = threading.Lock()
        started = threading.Event()
        failures: list[OSError] = []

        def run() -> None:
            try:
                self.process = _spawn(log)
            except OSError as error:
                failures.append(error)
                return
            finally:
                started.set()
            self._read(received, gone)

        self._thread = threading.Thread(target=run, name="engine-reader", daemon=True)
        self._thread.start()
        started.wait()
        if failures:
            raise WorkError(f"the engine's process cannot be started: {failures[0]}") from failures[0]

    def send(self, command: AnyCommand) -> None:
        """Write one command; a child that is gone is noticed by the reader."""
        with self._write_lock, suppress(OSError, ValueError):
            pipe = _pipe(self.process.stdin)
            pipe.write(command_to_json(command).encode("ascii") + b"\n")
            pipe.flush()

    def end(self, timeout: float) -> None:
        """Ask the child to go by closing its input; kill it when it does not."""
        crashed = self.process.poll() is not None
        with self._write_lock, suppress(OSError):
            _pipe(self.process.stdin).close()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.join(timeout)
        if not crashed:
            logs.remove(self.log)

    def kill(self, complaint: str) -> None:
        """End a child that hangs; its reader then tells, as with any other end."""
        self.hung = complaint
        self.process.kill()

    def join(self, timeout: float) -> None:
        """Wait for the reader to have told all there is to tell."""
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _read(self, received: Callable[[Child, AnyEvent], None], gone: Callable[[Child, float], None]) -> None:
        last_time = time.monotonic()
        for line in _pipe(self.process.stdout):
            try:
                event = from_json(line.decode("utf-8", "replace"))
            except ValueError:
                continue  # the last line of a child that died while writing it
            last_time = event.time
            self.watch.heard()
            received(self, event)
        self.process.wait()
        self.ended = True
        _pipe(self.process.stdout).close()
        gone(self, last_time)


def _spawn(log: Path) -> subprocess.Popen[bytes]:
    # -P: the person's directory may hold a json.py. A session of its own keeps the terminal's Ctrl-C from the child:
    # the parent decides what it means.
    source = str(Path(__file__).resolve().parents[2])
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "ftllm.chat.worker"],
            env=quickest(os.environ) | {"PYTHONPATH": os.pathsep.join(paths)},  # `Company` gives way to others
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            start_new_session=os.name == "posix",
        )


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def describe_end(child: Child, time: float) -> Failed:
    """What is known about a child that ended without being asked to, for reply 0."""
    returncode, log = child.process.returncode, child.log
    hint = f"the next message starts it again; its log is {log}"
    if child.hung:
        message = f"the engine hung: it {child.hung}, and was ended"
    elif returncode < 0:
        try:
            name = signal.Signals(-returncode).name
        except ValueError:
            name = f"signal {-returncode}"
        message = f"the engine was ended by {name}"
        if name == "SIGKILL":
            hint = "if nobody killed it, memory ran out: take a smaller model or --ctx; " + hint
    else:
        message = f"the engine ended with exit code {returncode}"
    return Failed(time, 0, message, hint, exit_code=1, crashed=True, log=logs.last_lines(log, LOG_LINES))
