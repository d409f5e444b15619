"""Every action of the conversation, by key and by mouse, over replayed events."""

from __future__ import annotations

import asyncio

import pytest
from textual import events
from textual.widgets import Static
from tui_stage import MODEL, STEPS, Stage, answers, converse, notes, shown, status, titles

from ftllm.chat.options import ChatOptions, LoadSettings, ReplyOptions
from tui.turns import UserTurn
from tui.widgets.composer import Composer
from tui.widgets.keybar import KeyBar


async def test_the_composer_is_usable_while_the_model_loads() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        assert stage.app.focused is stage.screen.query_one(Composer)
        assert "Ask it something." in stage.drawn()
        await pilot.press(*"Hello", "enter")
        await stage.settle(pilot)
        assert stage.engine.asked == []
        assert shown(stage.screen.query_one("#queue", Static)) == "Next: Hello"
        stage.engine.ready()
        await stage.settle(pilot)
        assert stage.engine.asked == [[{"role": "user", "content": "Hello"}]]
        assert not stage.screen.query_one("#queue").display
        assert "▌ Hello" in stage.drawn()


async def test_a_message_is_sent_with_the_options() -> None:
    options = ChatOptions(load=LoadSettings(n_ctx=512), reply=ReplyOptions(max_tokens=7), system="Be brief.")
    stage = Stage(options)
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "  Hello  ")
        assert stage.engine.asked == [
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
        ]
        assert stage.engine.options == [options.reply]
        assert stage.screen.query_one(Composer).text == ""


async def test_a_blank_message_is_not_sent() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await pilot.press("space", "enter")
        assert stage.engine.asked == []


async def test_a_message_of_several_lines() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        height = stage.screen.query_one(Composer).size.height
        await pilot.press("a", "ctrl+j", "b", "shift+enter", "c")
        assert stage.screen.query_one(Composer).size.height == height + 2
        await pilot.press("enter")
        assert stage.engine.asked == [[{"role": "user", "content": "a\nb\nc"}]]


async def test_a_whole_exchange() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await converse(stage, pilot)
        assert titles(stage) == ["▸ Thought for 7.40 seconds - 312 tokens"]
        assert answers(stage) == ["The sum is **933**."]
        assert "52.3 tok/s" in status(stage)
        assert "context 420/8192 5%" in status(stage)
        await stage.say(pilot, "And the half of it?")
        assert stage.engine.asked[1] == [
            {"role": "user", "content": "What is 347 + 586?"},
            {"role": "assistant", "content": "The sum is **933**."},
            {"role": "user", "content": "And the half of it?"},
        ]


async def test_typing_goes_to_the_composer_wherever_the_focus_is() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await converse(stage, pilot)
        await pilot.press("shift+tab", *"Why?")
        assert stage.screen.query_one(Composer).text == "Why?"
        assert stage.app.focused is stage.screen.query_one(Composer)
        await pilot.press("shift+tab", "escape")
        assert stage.app.focused is stage.screen.query_one(Composer)


async def test_escape_stops_and_keeps_what_there_is() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "Count.")
        stage.engine.text("one, two, ")
        await stage.settle(pilot)
        assert stage.screen.busy
        await pilot.press("escape")
        await stage.settle(pilot)
        assert stage.engine.stops == 1
        assert not stage.screen.busy
        assert answers(stage) == ["one, two,"]
        assert notes(stage) == ["Stopped."]
        last = stage.screen.conversation.messages[-1]
        assert (last.content, last.stop_reason) == ("one, two,", "stopped")
        await pilot.press("escape")
        assert stage.engine.stops == 1


async def test_answer_now() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "Think!")
        await pilot.press("ctrl+n")
        assert stage.engine.answers_now == 0
        stage.engine.think(*STEPS)
        await stage.settle(pilot)
        await pilot.press("ctrl+n")
        assert stage.engine.answers_now == 1
        stage.engine.end_thought(2.0, 40, "answer_now")
        stage.engine.text("933")
        stage.engine.done()
        await stage.settle(pilot)
        assert titles(stage) == ["▸ Thought for 2.00 seconds - 40 tokens - asked to answer"]


async def test_a_message_written_meanwhile_waits_its_turn() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "One")
        stage.engine.text("first")
        await stage.say(pilot, "Two")
        await stage.say(pilot, "Three")
        assert len(stage.engine.asked) == 1
        assert shown(stage.screen.query_one("#queue", Static)) == "Next: Two (and 1 more)"
        stage.engine.done()
        await stage.settle(pilot)
        assert [asked[-1]["content"] for asked in stage.engine.asked] == ["One", "Two"]
        assert shown(stage.screen.query_one("#queue", Static)) == "Next: Three"
        assert sum(isinstance(turn, UserTurn) for turn in stage.transcript.turns) == 2


async def test_stopping_hands_queued_messages_back() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "One")
        await stage.say(pilot, "Two")
        await pilot.press(*"more", "escape")
        await stage.settle(pilot)
        assert len(stage.engine.asked) == 1
        assert stage.screen.query_one(Composer).text == "Two\n\nmore"


async def test_escape_takes_back_what_waits_for_the_model() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        await stage.say(pilot, "Hello")
        await pilot.press("escape")
        assert stage.screen.query_one(Composer).text == "Hello"
        stage.engine.ready()
        await stage.settle(pilot)
        assert stage.engine.asked == []


async def test_an_engine_that_dies_leaves_the_session_open() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "One")
        stage.engine.text("partial")
        stage.engine.think(*STEPS)
        await stage.settle(pilot)
        stage.clock.now += 2
        stage.engine.crash()
        await stage.settle(pilot)
        (text,) = notes(stage)
        assert "the engine's process has died (signal 9)" in text
        assert "ggml: out of memory" in text
        assert titles(stage) == ["▸ Thought for 2.00 seconds - interrupted"]
        assert "failed" in status(stage)
        assert stage.screen.conversation.messages[-1].content == "partial"
        await stage.say(pilot, "Two")
        assert len(stage.engine.asked) == 2
        stage.engine.text("hello again")
        stage.engine.done()
        await stage.settle(pilot)
        assert answers(stage) == ["partial", "hello again"]
        assert "ready" in status(stage)


async def test_a_load_that_fails_is_tried_again_with_the_next_message() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        await stage.say(pilot, "Hello")
        stage.engine.fail_to_load()
        await stage.settle(pilot)
        assert "nano.gguf is cut short" in notes(stage)[0]
        assert stage.screen.query_one(Composer).text == "Hello"
        assert stage.engine.loads == []
        await pilot.press("enter")
        assert stage.engine.loads == [(MODEL, LoadSettings())]
        stage.engine.ready()
        await stage.settle(pilot)
        assert stage.engine.asked == [[{"role": "user", "content": "Hello"}]]


async def test_an_engine_that_cannot_be_asked() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        stage.engine.refuse = True
        await stage.say(pilot, "Hello")
        await stage.settle(pilot)
        assert "no process can be started" in notes(stage)[0]
        assert not stage.screen.busy


@pytest.mark.parametrize("key", ["ctrl+q", "ctrl+c"])
async def test_quitting_while_it_streams(key: str) -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "Write.")
        stage.engine.text(*(f"line {number}\n\n" for number in range(40)))
        await pilot.press(key)
        stage.engine.text("one more")
        await asyncio.sleep(0.05)
        assert not stage.app.is_running
    assert stage.app.return_code == 0
    stage.engine.text("too late")


async def test_copying_the_last_reply() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await pilot.press("ctrl+o")
        assert stage.app.clipboard == ""
        await converse(stage, pilot)
        await pilot.press("ctrl+o")
        assert stage.app.clipboard == "The sum is **933**."


async def test_ctrl_c_copies_a_selection() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await pilot.press(*"Hello", "shift+home", "ctrl+c")
        assert stage.app.is_running
        assert stage.app.clipboard == "Hello"
        await converse(stage, pilot)
        line = stage.row("The sum is")
        await pilot.mouse_down(offset=(3, line))
        await pilot.hover(offset=(5, line))
        await pilot.mouse_up(offset=(5, line))
        segments = [(part.text, part.style) for part in stage.transcript.render_line(line)]
        (chosen,) = [style for text, style in segments if text == "The"]
        assert chosen is not None
        assert chosen.bgcolor != stage.transcript.rich_style.bgcolor  # it is seen
        await pilot.press("ctrl+c")
        assert stage.app.is_running
        assert stage.app.clipboard == "The"


async def test_the_footer_offers_what_can_be_done() -> None:
    stage = Stage()

    def offered() -> set[str]:
        return {what for _, _, what in stage.screen.query_one(KeyBar).keys}

    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        assert offered() == {"Sessions", "Thoughts", "Help", "Settings", "Model", "Quit"}
        await stage.say(pilot, "Think!")
        stage.engine.think(*STEPS)
        await stage.settle(pilot)
        always = {"Stop", "Answer now", "Sessions", "Thoughts", "Help", "Settings", "Model", "Quit"}
        assert offered() == always | {"Messages", "Copy"}
        await pilot.press("up")
        assert offered() == always | {"Select", "Thought"}
        line = shown(stage.screen.query_one(KeyBar))
        assert line.endswith(" f1 Help ")
        assert "Settings" not in line  # there is no room for it
        await pilot.click(KeyBar, offset=(line.index("Stop") + 1, 0))
        await stage.settle(pilot)
        assert stage.engine.stops == 1


async def test_light_and_dark() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        dark = stage.app.current_theme.dark
        await pilot.press("f9")
        assert stage.app.current_theme.dark is not dark


async def test_resizing_while_it_streams() -> None:
    stage = Stage()
    async with stage.app.run_test(size=(80, 24)) as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "Write.")
        stage.engine.think(*STEPS)
        for size in [(40, 12), (200, 60), (20, 8), (80, 24)]:
            await pilot.resize_terminal(*size)
            stage.engine.play([])
            await stage.settle(pilot)
        assert stage.transcript.at_end
        assert "│ " + STEPS[-1].strip() in stage.drawn()


async def test_emoji_that_are_joined_can_be_typed() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        composer = stage.screen.query_one(Composer)
        await stage.until(pilot, lambda: composer.has_focus)
        for character in "👨\u200d👩\u200d👧":
            composer.post_message(events.Key(character, character))  # as a terminal's parser makes them
        await pilot.pause()
        assert composer.text == "👨\u200d👩\u200d👧"
