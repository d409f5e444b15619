"""The screen over the real engine: a thought, a stop, an answer on demand, an engine killed mid-reply."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from textual.pilot import Pilot

from ftllm.chat.engine import Engine
from ftllm.chat.options import ChatOptions, ReplyOptions
from ftllm.chat.session import ChatMessage
from ftllm.chat.store import memory_store
from tui.app import ChatApp
from tui.inbox import Inbox
from tui.screens.chat import ChatScreen
from tui.setup import Setup
from tui.turns import Remark, ReplyTurn
from tui.widgets.composer import Composer
from tui.widgets.transcript import Transcript

OPTIONS = ChatOptions(reply=ReplyOptions(temperature=0.0))
PATIENCE = 60.0


class Talk:
    """The application over an engine, and what a person does with it."""

    def __init__(self, pilot: Pilot[None], engine: Engine) -> None:
        self.pilot = pilot
        self.engine = engine
        screen = pilot.app.screen
        assert isinstance(screen, ChatScreen)
        self.screen = screen

    async def say(self, text: str) -> None:
        self.screen.query_one(Composer).load_text(text)
        await self.pilot.press("enter")

    async def until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < deadline, "it did not come to that"
            await asyncio.sleep(0.02)
        await self.pilot.pause()

    async def replies(self, count: int) -> None:
        """Until there are `count` whole exchanges."""
        await self.until(lambda: len(self.screen.conversation.messages) == 2 * count and not self.screen.busy)

    @property
    def last(self) -> ChatMessage:
        return self.screen.conversation.messages[-1]

    @property
    def turn(self) -> ReplyTurn:
        """The last reply on the screen."""
        return [turn for turn in self.transcript.turns if isinstance(turn, ReplyTurn)][-1]

    @property
    def remarks(self) -> list[str]:
        return [turn.text for turn in self.transcript.turns if isinstance(turn, Remark)]

    @property
    def transcript(self) -> Transcript:
        return self.screen.query_one(Transcript)

    def drawn(self) -> str:
        return "\n".join(self.transcript.render_line(y).text for y in range(self.transcript.size.height))


@asynccontextmanager
async def talk(model: Path) -> AsyncIterator[Talk]:
    inbox = Inbox()
    with Engine(inbox.put) as engine, memory_store() as store:
        engine.load(model, OPTIONS.load)
        async with ChatApp(Setup(engine, inbox, store, model, OPTIONS)).run_test() as pilot:
            yield Talk(pilot, engine)


async def test_a_thought_and_an_answer(scripted: Path) -> None:
    async with talk(scripted) as chat:
        await chat.say("T")
        await chat.replies(1)
        title = chat.turn.thoughts[0].title
        assert re.fullmatch(r"▸ Thought for \d+\.\d\d seconds - \d+ tokens", title)
        assert chat.turn.answer == ["It is 42."]


async def test_stopping_what_never_ends(scripted: Path) -> None:
    async with talk(scripted) as chat:
        await chat.say("L")
        await chat.until(lambda: "la lila" in chat.drawn())
        await chat.pilot.press("escape")
        await chat.replies(1)
        assert chat.last.stop_reason == "stopped"
        assert chat.last.content.startswith("la lila lila")
        await chat.say("Q")
        await chat.replies(2)
        assert chat.last.content == "xyz"


async def test_answering_now(scripted: Path) -> None:
    async with talk(scripted) as chat:
        await chat.say("R")
        await chat.until(lambda: "hmm and hmm" in chat.drawn())
        await chat.pilot.press("ctrl+n")
        await chat.replies(1)
        assert "asked to answer" in chat.turn.thoughts[0].title
        assert chat.last.content == "So yes."


async def test_an_engine_killed_mid_reply(scripted: Path) -> None:
    async with talk(scripted) as chat:
        await chat.say("L")
        await chat.until(lambda: "la lila" in chat.drawn())
        assert chat.engine.pid is not None
        os.kill(chat.engine.pid, signal.SIGKILL)
        await chat.replies(1)
        assert "SIGKILL" in chat.turn.notes[0]
        assert chat.last.stop_reason == "failed"
        await chat.say("T")
        await chat.replies(2)
        assert chat.last.content == "It is 42."


async def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    async with talk(broken) as chat:
        await chat.until(lambda: bool(chat.remarks))
        assert "broken.gguf" in chat.remarks[0]
        await chat.say("T")
        await chat.until(lambda: len(chat.remarks) == 2)
        assert chat.screen.query_one(Composer).text == "T"


async def test_a_session_opened_again_is_not_read_again(
    scripted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    async with talk(scripted) as chat:
        await chat.say("T")
        await chat.replies(1)
        first = chat.screen.conversation.info
        assert first is not None
        await chat.pilot.press("f6")
        await chat.until(lambda: not chat.screen.saving)
        assert [path.suffix for path in (tmp_path / "ftllm" / "states").iterdir() if path.suffix == ".kv"] == [".kv"]
        await chat.say("L")  # leaves other things in the cache
        await chat.until(lambda: "la lila" in chat.drawn())
        chat.screen.open_session(first.id)
        await chat.until(lambda: not chat.screen.busy and chat.last.content == "It is 42.")
        await chat.say("T")
        await chat.replies(2)
        stats = chat.last.stats
        assert stats is not None
        assert stats.reused_tokens >= 8  # the first exchange; it and the new message are all there is
        assert stats.prompt_tokens - stats.reused_tokens <= 6
