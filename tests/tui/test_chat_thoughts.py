"""Thoughts on the screen: open while they last, folded away after, left alone once touched."""

from __future__ import annotations

import pytest
from tui_stage import STEPS, Stage, answers, converse, shown, titles

from ftllm.chat.options import ChatOptions
from tui.widgets.prose import Prose
from tui.widgets.thought import ThoughtPane, ThoughtTail, ThoughtTitle
from tui.widgets.transcript import Transcript


async def test_a_thought_while_it_lasts() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "Think!")
        stage.engine.think(*STEPS)
        await stage.settle(pilot)
        stage.clock.now += 3.1
        await stage.until(pilot, lambda: titles(stage) != ["▾ Thinking for 0.0 seconds"])
        assert titles(stage) == ["▾ Thinking for 3.1 seconds"]
        tail = stage.screen.query_one(ThoughtTail)
        assert tail.size.height == 12
        assert shown(tail).split("\n") == [step.strip() for step in STEPS[-12:]]
        stage.clock.now += 0.5
        await stage.until(pilot, lambda: titles(stage) == ["▾ Thinking for 3.6 seconds"])
        stage.engine.end_thought()
        stage.engine.text("933")
        await stage.settle(pilot)
        assert titles(stage) == ["▸ Thought for 7.40 seconds - 312 tokens"]
        assert not tail.display
        assert answers(stage) == ["933"]


async def test_a_thought_can_start_closed() -> None:
    stage = Stage(ChatOptions(show_thoughts=False))
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "Think!")
        stage.engine.think(*STEPS)
        await stage.settle(pilot)
        assert titles(stage) == ["▸ Thinking for 0.0 seconds"]
        assert not stage.screen.query_one(ThoughtTail).display


async def test_an_empty_thought_leaves_no_trace() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "Do not think!")
        stage.engine.think("\n\n")
        stage.engine.end_thought(0.0, 2)
        stage.engine.text("933")
        stage.engine.done()
        await stage.settle(pilot)
        assert titles(stage) == []
        assert answers(stage) == ["933"]


async def test_a_thought_touched_stays_as_it_is() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "Think!")
        stage.engine.think(*STEPS)
        await stage.settle(pilot)
        await pilot.press("shift+tab", "enter", "enter")
        await stage.settle(pilot)
        stage.engine.end_thought()
        stage.engine.text("933")
        stage.engine.done()
        await stage.settle(pilot)
        pane = stage.screen.query_one(ThoughtPane)
        assert pane.is_open
        assert pane.query_one(Prose).source == "".join(STEPS).strip()


@pytest.mark.parametrize("how", ["enter", "space", "click"])
async def test_one_thought_opens_and_closes(how: str) -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:

        async def toggle() -> None:
            if how == "click":
                stage.screen.query(ThoughtTitle).last().scroll_visible(animate=False)
                await pilot.pause()
                await pilot.click(stage.screen.query(ThoughtTitle).last())
            else:
                stage.screen.query(ThoughtTitle).last().focus()
                await pilot.pause()  # the focus moves with the next message
                await pilot.press(how)
            await stage.settle(pilot)

        stage.engine.ready()
        await stage.settle(pilot)
        await converse(stage, pilot)
        await converse(stage, pilot)
        first, second = stage.screen.query(ThoughtPane)
        await toggle()
        assert (first.is_open, second.is_open) == (False, True)
        assert second.query_one(Prose).display
        assert titles(stage)[1].startswith("▾ Thought for 7.40 seconds")
        await toggle()
        assert (first.is_open, second.is_open) == (False, False)
        assert not second.query_one(Prose).display


async def test_all_thoughts_open_and_close() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await converse(stage, pilot)
        await converse(stage, pilot)
        await pilot.press("ctrl+t")
        assert [pane.is_open for pane in stage.screen.query(ThoughtPane)] == [True, True]
        await pilot.press("ctrl+t")
        assert [pane.is_open for pane in stage.screen.query(ThoughtPane)] == [False, False]


async def test_opening_a_thought_keeps_its_title_in_place() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await converse(stage, pilot)
        title = stage.screen.query_one(ThoughtTitle)
        row = title.region.y
        await pilot.click(title)
        await stage.settle(pilot)
        assert title.region.y == row
        assert not stage.screen.query_one(Transcript).at_end
        await pilot.click(title)
        await stage.settle(pilot)
        assert stage.screen.query_one(Transcript).at_end
        await stage.say(pilot, "Next")
        stage.engine.text(*("line\n\n" for _ in range(40)))
        await stage.settle(pilot)
        assert stage.screen.query_one(Transcript).at_end
