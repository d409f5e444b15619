"""The parent's side of the engine: a child process that holds the model and speaks JSON lines.

    engine = Engine(on_event=queue.put)
    engine.load(Path("model.gguf"))           # returns at once; `Loaded` or `Failed` follows
    number = engine.generate([{"role": "user", "content": "Hi"}], ReplyOptions(max_tokens=100))
    ...                                       # events with reply == number, ending in `Done` or `Failed`
    engine.close()

A process rather than a thread, because Python's lock would cost a thread a part of the tokens per second, and
because native code that crashes or runs out of memory must not take the conversation down with it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ftllm.chat import logs
from ftllm.chat.events import AnyEvent, Done, Failed, from_json
from ftllm.chat.options import LoadSettings, ReplyOptions
from ftllm.errors import WorkError

LOG_LINES = 12  # of a crashed engine's log, in its `Failed`


class Engine:
    """One model in one process. Methods return at once and may be called from any thread.

    Args:
        on_event: called with each event, in order, on the engine's reader thread; must not block for long.
        log_directory: where native output goes; None for the user's state directory.
    """

    def __init__(self, on_event: Callable[[AnyEvent], None], *, log_directory: Path | None = None) -> None:
        self._on_event = on_event
        self._log_directory = log_directory
        self._lock = threading.RLock()
        self._child: _Child | None = None
        self._load: dict[str, Any] | None = None
        self._numbers = 0
        self._pending: list[int] = []  # replies without their Done or Failed
        self._closed = False

    @property
    def log(self) -> Path | None:
        """The log file of the child, where one was started."""
        return self._child.log if self._child is not None else None

    @property
    def alive(self) -> bool:
        """Whether the child runs."""
        child = self._child
        return child is not None and not child.ended

    @property
    def pid(self) -> int | None:
        """The child's process id, while it runs."""
        child = self._child
        return child.process.pid if child is not None and not child.ended else None

    @property
    def busy(self) -> bool:
        """Whether a reply is under way or queued."""
        return bool(self._pending)

    def start(self) -> None:
        """Start the child ahead of `load`, so that it imports while the parent does other things.

        Raises:
            WorkError: no process can be started.
        """
        with self._lock:
            if self._closed:
                raise WorkError("the engine is closed")
            if not self.alive:
                self._child = _Child(logs.new_log(self._log_directory), self._received, self._gone)

    def load(self, path: Path, settings: LoadSettings | None = None) -> None:
        """Load a GGUF, in place of the one that is loaded; starts the child where needed."""
        self._settle()
        with self._lock:
            self.start()
            self._load = {"command": "load", "path": str(path), "settings": asdict(settings or LoadSettings())}
            self._send(self._load)

    def generate(self, messages: Sequence[Mapping[str, str]], options: ReplyOptions | None = None) -> int:
        """Ask for the assistant's next turn; the reply's number. A reply asked for while another runs waits for it.

        When the child has died, another is started and the same model loaded first.
        """
        self._settle()
        with self._lock:
            if self._load is None:
                raise WorkError("no model is loaded")
            if not self.alive:
                self.start()
                self._send(self._load)
            self._numbers += 1
            self._pending.append(self._numbers)
            self._send(
                {
                    "command": "generate",
                    "reply": self._numbers,
                    "messages": [dict(message) for message in messages],
                    "options": asdict(options or ReplyOptions()),
                }
            )
            return self._numbers

    def stop(self) -> None:
        """End all replies asked for so far, within one token or one chunk of prompt; each still gets its `Done`."""
        with self._lock:
            if self._pending:
                self._send({"command": "stop", "reply": self._pending[-1]})

    def answer_now(self) -> None:
        """Close the thought that is under way and go on to the answer."""
        with self._lock:
            if self._pending:
                self._send({"command": "answer_now", "reply": self._pending[0]})

    def close(self, timeout: float = 2.0) -> None:
        """Stop and end the child; killed when it has not gone after `timeout` seconds. No events after this."""
        with self._lock:
            self._closed = True
            child, self._child = self._child, None
            self._pending.clear()
        if child is not None:
            child.end(timeout)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _settle(self) -> None:
        """When the child has just died, let its reader report that before anything new is asked for."""
        child = self._child
        if child is not None and child.process.poll() is not None:
            child.join(5.0)

    def _send(self, command: Mapping[str, Any]) -> None:
        if self._child is not None:
            self._child.send(command)

    def _received(self, child: _Child, event: AnyEvent) -> None:
        with self._lock:
            if child is not self._child:
                return
            if isinstance(event, Done | Failed) and event.reply in self._pending:
                self._pending.remove(event.reply)
        self._on_event(event)

    def _gone(self, child: _Child, last_time: float) -> None:
        """The child ended without being asked to: every pending reply, or the engine itself, has failed."""
        with self._lock:
            if child is not self._child:
                return
            replies = tuple(self._pending) or (0,)
            self._pending.clear()
        failure = describe_end(child.process.returncode, child.log, last_time)
        for reply in replies:
            self._on_event(replace(failure, reply=reply))


class _Child:
    """The process and the thread that reads from it.

    The thread starts the process too, and outlives it: the child asks Linux for a signal at its parent's death, and
    Linux takes the thread that started it for the parent.
    """

    def __init__(
        self, log: Path, received: Callable[[_Child, AnyEvent], None], gone: Callable[[_Child, float], None]
    ) -> None:
        self.log = log
        self.ended = False
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

    def send(self, command: Mapping[str, Any]) -> None:
        """Write one command; a child that is gone is noticed by the reader."""
        with self._write_lock, suppress(OSError, ValueError):
            pipe = _pipe(self.process.stdin)
            pipe.write(json.dumps(command).encode("ascii") + b"\n")
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

    def join(self, timeout: float) -> None:
        """Wait for the reader to have told all there is to tell."""
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _read(self, received: Callable[[_Child, AnyEvent], None], gone: Callable[[_Child, float], None]) -> None:
        last_time = time.monotonic()
        for line in _pipe(self.process.stdout):
            try:
                event = from_json(line.decode("utf-8", "replace"))
            except ValueError:
                continue  # the last line of a child that died while writing it
            last_time = event.time
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
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            start_new_session=os.name == "posix",
        )


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def describe_end(returncode: int, log: Path, time: float) -> Failed:
    """What is known about a child that ended by itself, for reply 0."""
    hint = f"the next message starts it again; its log is {log}"
    if returncode < 0:
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
