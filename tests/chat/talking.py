"""An engine under test, and what it said."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ftllm.chat.engine import Engine
from ftllm.chat.events import (
    AnyEvent,
    Done,
    Failed,
)
from ftllm.chat.options import ReplyOptions
from ftllm.chat.session import Reply
from ftllm.chat.watch import Patience

E = TypeVar("E")


class Talk:
    """An engine, and a way to wait for its events."""

    def __init__(self, logs: Path, patience: Patience | None = None) -> None:
        self.events: queue.Queue[AnyEvent] = queue.Queue()
        self.engine = Engine(self.events.put, log_directory=logs, patience=patience)

    def until(self, wanted: Callable[[AnyEvent], bool], timeout: float = 300.0) -> list[AnyEvent]:
        """Events up to the first `wanted` one."""
        got: list[AnyEvent] = []
        deadline = time.monotonic() + timeout
        while True:
            got.append(self.events.get(timeout=max(0.01, deadline - time.monotonic())))
            if wanted(got[-1]):
                return got

    def rest(self, number: int) -> list[AnyEvent]:
        return self.until(lambda event: isinstance(event, Done | Failed) and event.reply == number)

    def say(self, text: str, options: ReplyOptions | None = None) -> list[AnyEvent]:
        """One question without a history, answered; the events of its reply."""
        number = self.engine.generate([{"role": "user", "content": text}], options)
        return [event for event in self.rest(number) if event.reply == number]


def reply_of(events: list[AnyEvent]) -> Reply:
    reply = Reply()
    for event in events:
        reply.feed(event)
    return reply


def only(events: list[AnyEvent], kind: type[E]) -> E:
    (event,) = [event for event in events if isinstance(event, kind)]
    return event
