"""Events cross from a thread to the loop, whole and in order."""

from __future__ import annotations

import asyncio
import threading

from ftllm.chat.events import TextDelta
from tui.inbox import Inbox


async def test_a_thread_fills_and_the_loop_empties() -> None:
    inbox = Inbox()
    sent = [TextDelta(0.0, 1, str(number)) for number in range(2000)]
    thread = threading.Thread(target=lambda: [inbox.put(event) for event in sent])
    received: list[object] = []
    thread.start()
    while len(received) < len(sent):
        await asyncio.wait_for(inbox.wait(), 5)
        received += inbox.drain()
    thread.join()
    assert received == sent


async def test_what_came_before_the_loop_is_there() -> None:
    inbox = Inbox()
    inbox.put(TextDelta(0.0, 1, "early"))
    await asyncio.wait_for(inbox.wait(), 1)
    assert inbox.drain() == [TextDelta(0.0, 1, "early")]


async def test_waiting_ends_by_itself() -> None:
    inbox = Inbox()
    await asyncio.wait_for(inbox.wait(timeout=0.01), 1)
    assert inbox.drain() == []
