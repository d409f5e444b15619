"""Events on their way from the engine's reader thread to the screen's event loop."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

from ftllm.chat.events import AnyEvent


class Inbox:
    """Filled by `put` from any thread, emptied by one coroutine; a burst of events wakes the loop once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: list[AnyEvent] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived = asyncio.Event()
        self._reader_waits = False

    @property
    def empty(self) -> bool:
        """Whether everything so far was taken."""
        return not self._events

    @property
    def idle(self) -> bool:
        """Whether the reader has dealt with everything so far and waits for more."""
        return self._reader_waits and not self._events

    def put(self, event: AnyEvent) -> None:
        """Leave an event; returns at once."""
        with self._lock:
            first = not self._events
            self._events.append(event)
        if first and self._loop is not None:
            with suppress(RuntimeError):  # the screen has closed its loop
                self._loop.call_soon_threadsafe(self._arrived.set)

    async def wait(self, timeout: float | None = None) -> None:
        """Until there are events, or `timeout` seconds have passed."""
        self._loop = asyncio.get_running_loop()
        self._arrived.clear()
        if not self._events:
            self._reader_waits = True
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), timeout)
            self._reader_waits = False

    def drain(self) -> list[AnyEvent]:
        """All events left so far, oldest first."""
        with self._lock:
            events, self._events = self._events, []
        return events
