"""An endpoint need not do all that is asked of it; the screen says so where that shows."""

from __future__ import annotations

from textual.widgets import Static
from tui_stage import STEPS, Stage, shown, titles

from ftllm.chat.events import LoopSuspected
from ftllm.chat.options import ChatOptions, ReplyOptions
from ftllm.chat.remote import Remote
from tui.screens.settings import SettingsScreen

BOX = Remote("http://box:8000/v1", "qwen")


async def test_what_cannot_be_done_with_its_thoughts() -> None:
    stage = Stage(ChatOptions(reply=ReplyOptions(think_budget=4)), model=BOX)
    async with stage.app.run_test(size=(100, 24)) as pilot:
        stage.engine.ready(path=str(BOX))
        await stage.settle(pilot)
        await stage.say(pilot, "Think!")
        stage.engine.think(*STEPS)
        stage.engine.play([LoopSuspected(stage.clock(), 1, period=12, count=4, thought=True)])
        await stage.settle(pilot)
        assert "the endpoint ignores the budget of 4" in stage.drawn()
        assert "repeating itself (x4), Esc stops the reply" in stage.drawn()
        await pilot.press("ctrl+n")
        assert stage.engine.answers_now == 0
        stage.engine.end_thought(2.0, 40)
        await stage.settle(pilot)
        assert titles(stage) == ["▸ Thought for 2.00 seconds - 40 tokens"]


async def test_how_far_settings_reach() -> None:
    stage = Stage(model=BOX)
    async with stage.app.run_test(size=(100, 40)) as pilot:
        stage.engine.ready(path=str(BOX))
        for line, told in (
            ("/budget 40", "Think budget: 40 (the endpoint may ignore it)"),
            ("/overflow stop", "Full context: stop (the endpoint decides that itself)"),
            ("/temp 1", "Temperature: 1"),
        ):
            await stage.say(pilot, line)
            assert [one.message for one in stage.app._notifications][-1] == told
        await pilot.press("f2")
        form = stage.app.screen
        assert isinstance(form, SettingsScreen)
        notes = [shown(note) for note in form.query(".note").results(Static)]
        assert "Tokens of thought at most *" in notes
        assert "The endpoint decides that itself" in notes
        assert "0 takes the likeliest token" in notes
        field = form.query_one("#set-think_budget")
        field.value = "many"  # type: ignore[attr-defined]
        await pilot.pause()
        field.value = "50"  # type: ignore[attr-defined]
        await pilot.pause()
        assert [shown(note) for note in form.query(".note").results(Static)] == notes
