"""Events on their way from the engine's reader thread to the screen's event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from ftllm.chat.events import AnyEvent


class Inbox:
    """Filled by `put` from any thread, emptied by one coroutine; a burst of events wakes the loop once."""

    def __init__(self) -> None:
        self._events: deque[AnyEvent] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived: asyncio.Event | None = None

    def put(self, event: AnyEvent) -> None:
        """Leave an event; returns at once."""
        first = not self._events
        self._events.append(event)
        if first and self._loop is not None and self._arrived is not None:
            with suppress(RuntimeError):  # the screen has closed its loop
                self._loop.call_soon_threadsafe(self._arrived.set)

    async def wait(self, timeout: float | None = None) -> None:
        """Until there are events, or `timeout` seconds have passed."""
        if self._arrived is None:
            self._loop, self._arrived = asyncio.get_running_loop(), asyncio.Event()
        self._arrived.clear()
        if not self._events:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), timeout)

    def drain(self) -> list[AnyEvent]:
        """All events left so far, oldest first."""
        events: list[AnyEvent] = []
        while self._events:
            events.append(self._events.popleft())
        return events
