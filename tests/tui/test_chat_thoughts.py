"""Thoughts on the screen: open while they last, folded away after, left alone once touched."""

from __future__ import annotations

import pytest
from tui_stage import STEPS, Stage, answers, converse, replies, titles

from ftllm.chat.options import ChatOptions


async def test_a_thought_while_it_lasts() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "Think!")
        stage.engine.think(*STEPS)
        await stage.settle(pilot)
        stage.clock.now += 3.1
        await stage.until(pilot, lambda: titles(stage) != ["▾ Thinking for 0.0 seconds - 40 tokens"])
        assert titles(stage) == ["▾ Thinking for 3.1 seconds - 40 tokens"]
        assert [line for line in stage.drawn() if "│" in line] == [f"│ {step.strip()}" for step in STEPS[-12:]]
        stage.clock.now += 0.5
        await stage.until(pilot, lambda: titles(stage) == ["▾ Thinking for 3.6 seconds - 40 tokens"])
        stage.engine.end_thought()
        stage.engine.text("933")
        await stage.settle(pilot)
        assert titles(stage) == ["▸ Thought for 7.40 seconds - 312 tokens"]
        assert not any("│" in line for line in stage.drawn())
        assert answers(stage) == ["933"]


async def test_a_thought_can_start_closed() -> None:
    stage = Stage(ChatOptions(show_thoughts=False))
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "Think!")
        stage.engine.think(*STEPS)
        await stage.settle(pilot)
        assert titles(stage) == ["▸ Thinking for 0.0 seconds - 40 tokens"]
        assert not any("│" in line for line in stage.drawn())


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
        await pilot.resize_terminal(80, 80)
        await stage.settle(pilot)
        assert titles(stage) == ["▾ Thought for 7.40 seconds - 312 tokens"]
        assert [line for line in stage.drawn() if "│" in line] == [f"│ {step.strip()}" for step in STEPS]


@pytest.mark.parametrize("how", ["enter", "space", "click"])
async def test_one_thought_opens_and_closes(how: str) -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:

        async def toggle() -> None:
            if how == "click":
                await pilot.click(stage.transcript, offset=(6, stage.row("Thought for")))
            else:
                stage.transcript.focus()
                await pilot.pause()  # the focus moves with the next message
                stage.transcript.select(replies(stage)[-1])
                await pilot.press(how)
            await stage.settle(pilot)

        stage.engine.ready()
        await stage.settle(pilot)
        await converse(stage, pilot)
        await converse(stage, pilot)
        await pilot.press("pageup")
        await pilot.press("pagedown")
        first, second = (turn.thoughts[0] for turn in replies(stage))
        if how == "click":
            first, second = second, first  # both are in view, and the first is clicked
        await toggle()
        assert (first.open, second.open) == (False, True)
        assert "│ " + STEPS[0].strip() in stage.drawn()
        await toggle()
        assert (first.open, second.open) == (False, False)
        assert not any("│" in line for line in stage.drawn())


async def test_all_thoughts_open_and_close() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await converse(stage, pilot)
        await converse(stage, pilot)
        await pilot.press("ctrl+t")
        assert [turn.thoughts[0].open for turn in replies(stage)] == [True, True]
        await pilot.press("ctrl+t")
        assert [turn.thoughts[0].open for turn in replies(stage)] == [False, False]


async def test_opening_a_thought_keeps_its_title_in_place() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await converse(stage, pilot)
        row = stage.row("Thought for")
        await pilot.click(stage.transcript, offset=(6, row))
        await stage.settle(pilot)
        assert stage.row("▾ Thought for") == row
        assert not stage.transcript.at_end
        await pilot.click(stage.transcript, offset=(6, row))
        await stage.settle(pilot)
        assert stage.transcript.at_end
        await stage.say(pilot, "Next")
        stage.engine.text(*("line\n\n" for _ in range(40)))
        await stage.settle(pilot)
        assert stage.transcript.at_end
