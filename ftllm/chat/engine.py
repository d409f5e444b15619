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

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ftllm.chat import logs
from ftllm.chat.child import Child, describe_end
from ftllm.chat.events import (
    AnswerNow,
    AnyCommand,
    AnyEvent,
    Done,
    Failed,
    Generate,
    Load,
    Loaded,
    LoadState,
    SaveState,
    SetSampling,
    Stop,
)
from ftllm.chat.options import LoadSettings, ReplyOptions, SamplingOptions
from ftllm.chat.watch import Patience, work_of
from ftllm.errors import WorkError

LOOK_EVERY = 1.0  # seconds between two looks at whether the child hangs


class Engine:
    """One model in one process. Methods return at once and may be called from any thread.

    Args:
        on_event: called with each event, in order, on the engine's reader thread; must not block for long.
        log_directory: where native output goes; None for the user's state directory.
        patience: when a child that gives no answer is taken to hang, and ended.
    """

    def __init__(
        self,
        on_event: Callable[[AnyEvent], None],
        *,
        log_directory: Path | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._on_event = on_event
        self._log_directory = log_directory
        self._patience = patience or Patience()
        self._lock = threading.RLock()
        self._child: Child | None = None
        self._load: Load | None = None
        self._numbers = 0
        self._pending: list[int] = []  # replies without their Done or Failed
        self._loading = False
        self._closed = threading.Event()

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
            if self._closed.is_set():
                raise WorkError("the engine is closed")
            if not self.alive:
                log = logs.new_log(self._log_directory)
                child = self._child = Child(log, self._received, self._gone, self._patience)
                threading.Thread(target=self._watch, args=(child,), name="engine-watch", daemon=True).start()

    def load(self, path: Path, settings: LoadSettings | None = None) -> None:
        """Load a GGUF, in place of the one that is loaded; starts the child where needed."""
        self._settle()
        with self._lock:
            self.start()
            self._load = Load(str(path), settings or LoadSettings())
            self._send_load()

    def generate(self, messages: Sequence[Mapping[str, Any]], options: ReplyOptions | None = None) -> int:
        """Ask for the assistant's next turn; the reply's number. A reply asked for while another runs waits for it.

        When the child has died, another is started and the same model loaded first.
        """
        self._settle()
        with self._lock:
            if self._load is None:
                raise WorkError("no model is loaded")
            if not self.alive:
                self.start()
                self._send_load()
            self._heard_if_idle()
            self._numbers += 1
            self._pending.append(self._numbers)
            told = tuple(dict(message) for message in messages)
            self._send(Generate(self._numbers, told, options or ReplyOptions()))
            return self._numbers

    def stop(self) -> None:
        """End all replies asked for so far, within one token or one chunk of prompt; each still gets its `Done`."""
        with self._lock:
            if self._pending:
                self._send(Stop(self._pending[-1]))
                if self._child is not None:
                    self._child.watch.stop_asked()

    def answer_now(self) -> None:
        """Close the thought that is under way and go on to the answer."""
        with self._lock:
            if self._pending:
                self._send(AnswerNow(self._pending[0]))

    def set_sampling(self, sampling: SamplingOptions) -> None:
        """Sample the rest of the reply that is under way in another way; None leaves a setting as it is."""
        with self._lock:
            if self._pending:
                self._send(SetSampling(self._pending[0], sampling))

    def save_state(self, path: Path) -> None:
        """Write what the model has read to a file, for `load_state` after a restart; `StateSaved` follows.

        A few kilobytes to a few hundred a token. A file is of use only to the same model, and only where a
        conversation goes on as it began.
        """
        with self._lock:
            self._send(SaveState(str(path)))

    def load_state(self, path: Path) -> None:
        """Take up a saved state, before the first message; `StateLoaded` follows, and says why where it cannot be."""
        with self._lock:
            self._send(LoadState(str(path)))

    def close(self, timeout: float = 2.0) -> None:
        """Stop and end the child; killed when it has not gone after `timeout` seconds. No events after this."""
        with self._lock:
            self._closed.set()
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

    def _send_load(self) -> None:
        assert self._load is not None
        self._heard_if_idle()
        self._loading = True
        self._send(self._load)

    def _heard_if_idle(self) -> None:
        """Time that nothing was owed is no silence."""
        if self._child is not None and not (self._pending or self._loading):
            self._child.watch.heard()

    def _watch(self, child: Child) -> None:
        """End a child that owes something and hangs."""
        while not child.ended and not self._closed.wait(min(LOOK_EVERY, self._patience.idle / 4)):
            # Without the lock: who writes to a child that hangs may hold it. What is owed first: see `_heard_if_idle`.
            owes = child is self._child and bool(self._pending or self._loading)
            complaint = child.watch.complaint(work_of(child.process.pid))
            if owes and complaint:
                child.kill(complaint)
                return

    def _send(self, command: AnyCommand) -> None:
        if self._child is not None:
            self._child.send(command)

    def _received(self, child: Child, event: AnyEvent) -> None:
        with self._lock:
            if child is not self._child:
                return
            if isinstance(event, Done | Failed) and event.reply in self._pending:
                self._pending.remove(event.reply)
                child.watch.stopped()
            if isinstance(event, Loaded | Failed) and event.reply == 0:
                self._loading = False
        self._on_event(event)

    def _gone(self, child: Child, last_time: float) -> None:
        """The child ended without being asked to: every pending reply, or the engine itself, has failed."""
        with self._lock:
            if child is not self._child:
                return
            replies = tuple(self._pending) or (0,)
            self._pending.clear()
            self._loading = False
        failure = describe_end(child, last_time)
        for reply in replies:
            self._on_event(replace(failure, reply=reply))
