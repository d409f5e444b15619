"""Thoughts on the screen: open while they last, folded away after, left alone once touched."""

from __future__ import annotations

import pytest
from tui_stage import STEPS, Stage, answers, converse, notes, replies, status, titles

from ftllm.chat.events import LoopSuspected, ThinkDelta, ThinkEnd, ThinkEndReason, ThinkStart, TurnsDropped
from ftllm.chat.options import ChatOptions, ReplyOptions, ThoughtMode
from tui.turns import ReplyTurn


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


async def test_a_budget_and_a_loop_while_it_thinks() -> None:
    stage = Stage(ChatOptions(reply=ReplyOptions(think_budget=80)))
    async with stage.app.run_test(size=(100, 24)) as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "Think!")
        stage.engine.think(*STEPS)
        await stage.settle(pilot)
        assert stage.title().endswith("40 tokens  ━━━━━━━━──────── of 80")
        assert "think auto ≤80" in status(stage)
        stage.engine.play([LoopSuspected(stage.clock(), 1, period=12, count=4, thought=True)])
        await stage.settle(pilot)
        assert "repeating itself (x4), press Ctrl+N to answer now" in stage.drawn()
        await pilot.press("up", "a")
        assert stage.engine.answers_now == 1
        stage.engine.end_thought(2.0, 80, "budget")
        stage.engine.text("round ")
        stage.engine.play([LoopSuspected(stage.clock(), 1, period=2, count=5, thought=False)])
        await stage.settle(pilot)
        assert titles(stage) == ["▸ Thought for 2.00 seconds - 80 tokens - budget used up"]
        assert "repeating itself (x5), Esc stops it" in stage.drawn()
        stage.engine.done("loop")
        await stage.settle(pilot)
        assert "repeating itself (x5), Esc stops it" not in stage.drawn()
        assert notes(stage) == ["Stopped: the answer went in circles."]
        info = stage.screen.conversation.info
        assert info is not None
        stage.screen.open_session(info.id)  # and so it is when it is read again
        await stage.settle(pilot)
        assert titles(stage) == ["▸ Thought for 2.00 seconds - 80 tokens - budget used up"]
        assert notes(stage) == ["Stopped: the answer went in circles."]


@pytest.mark.parametrize(
    ("why", "said"),
    [
        ("unclosed", "never closed"),
        ("cut", "cut off"),
        ("stopped", "stopped"),
        ("answer_now", "asked to answer"),
        ("loop", "went in circles"),
    ],
)
def test_a_thought_says_why_it_was_ended(why: ThinkEndReason, said: str) -> None:
    turn = ReplyTurn(lambda: 0.0)
    turn.take(ThinkStart(0.0, 1))
    turn.take(ThinkDelta(0.0, 1, "so", 1))
    turn.take(ThinkEnd(1.0, 1, why, 1.5, 9))
    assert turn.thoughts[0].title == f"▸ Thought for 1.50 seconds - 9 tokens - {said}"


async def test_what_the_model_no_longer_sees_is_told() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await converse(stage, pilot)
        await stage.say(pilot, "More")
        stage.engine.play([TurnsDropped(stage.clock(), 2, 2)])
        stage.engine.text("yes")
        stage.engine.done()
        await stage.settle(pilot)
        assert "The context is full: the model no longer sees the first 2 messages." in stage.drawn()


@pytest.mark.parametrize(
    ("mode", "while_it_lasts", "afterwards"),
    [("open", "▾", "▾"), ("closed", "▸", "▸"), ("hidden", "▸", ""), ("auto", "▾", "▸")],
)
def test_how_thoughts_are_preferred(mode: ThoughtMode, while_it_lasts: str, afterwards: str) -> None:
    turn = ReplyTurn(lambda: 0.0, mode=mode)
    turn.take(ThinkStart(0.0, 1))
    turn.take(ThinkDelta(0.0, 1, "so", 1))
    thought = turn.thoughts[0]
    assert (thought.shown, thought.title[0]) == (True, while_it_lasts)
    turn.take(ThinkEnd(1.0, 1, "closed", 1.5, 9))
    assert thought.shown is bool(afterwards)
    assert thought.title[0] == (afterwards or "▸")


async def test_a_turn_without_an_answer_is_told_so() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "Think!")
        stage.engine.think("so")
        stage.engine.end_thought()
        stage.engine.done()
        await stage.settle(pilot)
        assert notes(stage) == ["The model ended its turn without an answer."]
        info = stage.screen.conversation.info
        assert info is not None
        stage.screen.open_session(info.id)  # and so it is when it is read again
        await stage.settle(pilot)
        assert notes(stage) == ["The model ended its turn without an answer."]


async def test_several_thoughts_are_opened_again_as_they_were() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "Think twice!")
        stage.engine.think("so\n")
        stage.engine.end_thought(1.0, 3, "budget")
        stage.engine.text("First:\n\n```\na\n```\n")
        stage.engine.think("or so")
        stage.engine.end_thought(2.0, 5)
        stage.engine.text("Second:\n\n```\nb\n```\n")
        stage.engine.done()
        await stage.settle(pilot)
        before = stage.drawn()
        assert [line for line in before if "Thought" in line] == [
            "▸ Thought for 1.00 seconds - 3 tokens - budget used up",
            "▸ Thought for 2.00 seconds - 5 tokens",
        ]
        info = stage.screen.conversation.info
        assert info is not None
        stage.screen.open_session(info.id)
        await stage.settle(pilot)
        assert stage.drawn() == before
