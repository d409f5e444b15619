"""A reply on its way into the store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from ftllm.chat.events import AnyEvent, Done, Failed
from ftllm.chat.session import ChatMessage, Reply, thoughts_of
from ftllm.chat.store.database import Store
from ftllm.chat.store.messages import Author, Node, add_message, get_node, update_message
from ftllm.errors import UserError

SAVE_SECONDS = 0.5  # between two writes of a reply under way

UNFINISHED = ChatMessage("assistant", "", stop_reason="interrupted")


class Recorder:
    """Folds a reply's events in, and writes what it has come to every half second and at its end.

    Until the end is written, the message in the store has the stop reason `interrupted`, which is what it stays if
    the process is killed, and a thought under way has that end. Writing between is done by a thread of its own:
    `feed` never waits for the disk but at the end.

    Attributes:
        node: the message's number.
        reply: the reply so far; of one that is continued, with what was there before.
    """

    def __init__(self, store: Store, node: Node, timer: Callable[..., threading.Timer] = threading.Timer) -> None:
        """Use `begin_reply` or `continue_reply`."""
        old = node.message
        self.node = node.id
        self.reply = Reply(
            thoughts=[old.thought] if old.thought else [],
            answer=old.content,
            thought_seconds=old.thought_seconds,
            thought_tokens=old.thought_tokens,
            thought_end=old.thought_end,
            ended=thoughts_of(old),
        )
        self._store = store
        self._before = old
        self._timer_of = timer
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()
        self._ended = False

    def feed(self, event: AnyEvent) -> None:
        """Take one event of this reply in; at `Done` and `Failed` all of it is written.

        Raises:
            WorkError, UserError: at the end: it cannot be written (the disk is full, say). `reply` is complete.
        """
        self.reply.feed(event)
        if isinstance(event, Done | Failed):
            self.finish()
        elif self._timer is None and not self._ended:
            self._timer = self._timer_of(SAVE_SECONDS, self._save_between)
            self._timer.daemon = True
            self._timer.start()

    def finish(self) -> None:
        """Write what there is, whether or not the reply has ended; for a program that leaves."""
        with self._lock:
            self._ended = True
            if self._timer is not None:
                self._timer.cancel()
            self._write()

    @property
    def message(self) -> ChatMessage:
        """The message as it stands."""
        message = self.reply.message
        return replace(
            message,
            answer_tokens=self._before.answer_tokens + message.answer_tokens,
            stop_reason=message.stop_reason or "interrupted",
            thought_end="interrupted" if self.reply.thinking else message.thought_end,
        )

    def _write(self) -> None:
        end = self.reply.end
        update_message(self._store, self.node, self.message, end.message if isinstance(end, Failed) else "")

    def _save_between(self) -> None:
        with self._lock:
            self._timer = None
            if not self._ended:
                with suppress(UserError):  # if it lasts, `finish` will tell
                    self._write()


def begin_reply(store: Store, session: int, *, after: int | None, author: Author) -> Recorder:
    """Add an empty reply after a message, show it, and record what comes; the same `after` again regenerates."""
    return Recorder(store, add_message(store, session, UNFINISHED, after=after, author=author))


def continue_reply(store: Store, node: int) -> Recorder:
    """Record the continuation of a reply that was stopped or cut: its message grows."""
    return Recorder(store, get_node(store, node))
