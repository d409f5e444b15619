"""Every action of the conversation, by key and by mouse, over replayed events."""

from __future__ import annotations

import asyncio

import pytest
from textual import events
from textual.pilot import Pilot
from textual.widgets import Footer, Static
from textual.widgets.markdown import MarkdownFence
from tui_stage import MODEL, Stage

from ftllm.chat.options import ChatOptions, LoadSettings, ReplyOptions
from tui.screens.keys import KeysScreen
from tui.widgets.composer import Composer
from tui.widgets.prose import Prose
from tui.widgets.status import StatusLine
from tui.widgets.thought import ThoughtPane, ThoughtTail, ThoughtTitle
from tui.widgets.transcript import EndMarker, Transcript
from tui.widgets.turns import Notice, ReplyTurn, UserTurn, Welcome

STEPS = [f"Step {number}: write {number} and carry one.\n" for number in range(40)]


def shown(widget: Static) -> str:
    """A widget's text as drawn."""
    return str(widget.visual)


def titles(stage: Stage) -> list[str]:
    return [shown(title) for title in stage.screen.query(ThoughtTitle)]


def status(stage: Stage) -> str:
    return shown(stage.screen.query_one(StatusLine))


def answers(stage: Stage) -> list[str]:
    return [prose.source for prose in stage.screen.query(Prose) if isinstance(prose.parent, ReplyTurn)]


async def converse(stage: Stage, pilot: Pilot[None], text: str = "What is 347 + 586?") -> None:
    """A whole exchange with a thought."""
    await stage.say(pilot, text)
    stage.engine.prompt()
    stage.engine.think(*STEPS)
    stage.engine.end_thought()
    stage.engine.text("The sum ", "is **933**.")
    stage.engine.done()
    await stage.settle(pilot)


async def test_the_composer_is_usable_while_the_model_loads() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        assert stage.app.focused is stage.screen.query_one(Composer)
        assert stage.screen.query(Welcome)
        await pilot.press(*"Hello", "enter")
        await stage.settle(pilot)
        assert stage.engine.asked == []
        assert shown(stage.screen.query_one("#queue", Static)) == "Next: Hello"
        stage.engine.ready()
        await stage.settle(pilot)
        assert stage.engine.asked == [[{"role": "user", "content": "Hello"}]]
        assert not stage.screen.query_one("#queue").display
        assert not stage.screen.query(Welcome)


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


async def test_typing_goes_to_the_composer_wherever_the_focus_is() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await converse(stage, pilot)
        await pilot.press("shift+tab", *"half?")
        assert stage.screen.query_one(Composer).text == "half?"
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
        assert answers(stage) == ["one, two, "]
        assert shown(stage.screen.query_one(Notice)) == "Stopped."
        last = stage.screen.session.messages[-1]
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
        assert len(stage.screen.query(UserTurn)) == 2


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


async def test_scrolling_away_holds_and_coming_back_follows() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        transcript, marker = stage.screen.query_one(Transcript), stage.screen.query_one(EndMarker)
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "Write.")
        stage.engine.text(*(f"line {number}\n\n" for number in range(40)))
        await stage.settle(pilot)
        assert transcript.at_end
        assert not marker.display
        await pilot.press("pageup")
        await stage.settle(pilot)
        place = transcript.scroll_y
        assert 0 < place < transcript.max_scroll_y
        assert marker.display
        stage.engine.text(*(f"line {number}\n\n" for number in range(40, 80)))
        await stage.settle(pilot)
        assert transcript.scroll_y == place
        await pilot.click(marker)
        await stage.settle(pilot)
        assert transcript.at_end
        assert not marker.display
        stage.engine.text(*(f"line {number}\n\n" for number in range(80, 120)))
        await stage.settle(pilot)
        assert transcript.at_end


async def test_scrolling_by_wheel_and_keys() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        transcript = stage.screen.query_one(Transcript)
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "Write.")
        stage.engine.text(*(f"line {number}\n\n" for number in range(40)))
        await stage.settle(pilot)
        end = transcript.scroll_y
        await pilot._post_mouse_events([events.MouseScrollUp], transcript, (10, 5), button=0)
        await stage.settle(pilot)
        assert transcript.scroll_y < end
        await pilot.press("ctrl+home")
        await stage.settle(pilot)
        assert transcript.scroll_y == 0
        await pilot.press("pagedown")
        await stage.settle(pilot)
        assert transcript.scroll_y == transcript.size.height - 2
        await pilot.press("ctrl+end")
        stage.engine.text("more\n\n")
        await stage.settle(pilot)
        assert transcript.scroll_y > end


async def test_sending_goes_to_the_end() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        transcript = stage.screen.query_one(Transcript)
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "Write.")
        stage.engine.text(*(f"line {number}\n\n" for number in range(40)))
        stage.engine.done()
        await stage.settle(pilot)
        await pilot.press("ctrl+home")
        await stage.say(pilot, "More.")
        await stage.settle(pilot)
        assert transcript.at_end


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
        text = shown(stage.screen.query_one(Notice))
        assert "the engine's process has died (signal 9)" in text
        assert "ggml: out of memory" in text
        assert titles(stage) == ["▸ Thought for 2.00 seconds - interrupted"]
        assert "failed" in status(stage)
        assert stage.screen.session.messages[-1].content == "partial"
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
        assert "nano.gguf is cut short" in shown(stage.screen.query_one(Notice))
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
        assert "no process can be started" in shown(stage.screen.query_one(Notice))
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


async def test_every_key_is_listed() -> None:
    stage = Stage()
    async with stage.app.run_test(size=(100, 40)) as pilot:
        await pilot.press("f1")
        assert isinstance(stage.app.screen, KeysScreen)
        text = " ".join(shown(row) for row in stage.app.screen.query(Static))
        for binding in [*stage.screen.BINDINGS, *stage.app.BINDINGS]:
            assert (binding.tooltip or binding.description) in text  # type: ignore[union-attr]
        assert "Ctrl+T" in text
        await pilot.press("escape")
        assert stage.app.screen is stage.screen


async def test_the_footer_offers_what_can_be_done() -> None:
    stage = Stage()

    def offered() -> set[str]:
        return {key.description for key in stage.screen.query_one(Footer).query("FooterKey")}  # type: ignore[attr-defined]

    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        assert offered() == {"Thoughts", "Copy", "Keys", "Quit"}
        await stage.say(pilot, "Think!")
        stage.engine.think(*STEPS)
        await stage.settle(pilot)
        assert offered() == {"Stop", "Answer now", "Thoughts", "Copy", "Keys", "Quit"}


async def test_light_and_dark() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        dark = stage.app.current_theme.dark
        await pilot.press("f2")
        assert stage.app.current_theme.dark is not dark


async def test_what_a_model_writes_is_only_text() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "[red]hello[/red] \x1b[31m")
        stage.engine.think("[bold]x[/bold] ", "\x1b]0;owned\x07 [@click=app.quit]y[/]")
        await stage.settle(pilot)
        assert shown(stage.screen.query_one(UserTurn)) == "[red]hello[/red] ␛[31m"
        assert shown(stage.screen.query_one(ThoughtTail)) == "[bold]x[/bold] ␛]0;owned␇ [@click=app.quit]y[/]"
        stage.engine.end_thought()
        stage.engine.text("[b]a[/b] \x1b[2J\n", "<div>\nkept\n</div>\n")
        stage.engine.done()
        await stage.settle(pilot)
        drawn = " ".join(shown(block) for block in stage.screen.query("MarkdownBlock").results(Static))
        assert "[b]a[/b] ␛[2J" in drawn
        assert "<div>\nkept\n</div>" in drawn


async def test_a_streamed_document_ends_as_if_read_at_once() -> None:
    document = "# Sum\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
    document += "- one\n  ```python\n  print(1)\n  ```\n- [two][ref]\n\n[ref]: https://x.org\n"
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "Write.")
        for start in range(0, len(document), 7):
            stage.engine.text(document[start : start + 7])
            await pilot.pause(0.06)
        stage.engine.done()
        await stage.settle(pilot)
        streamed = stage.screen.query_one(Prose)
        whole = Prose(document)
        await stage.screen.query_one(Transcript).add(whole)
        await stage.settle(pilot)
        assert streamed.source == document
        assert outline(streamed) == outline(whole)
        assert len(streamed.query(MarkdownFence)) == 1


def outline(prose: Prose) -> list[str]:
    return [type(widget).__name__ for widget in prose.walk_children()]


async def test_links_of_other_kinds_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    stage = Stage()
    async with stage.app.run_test() as pilot:
        monkeypatch.setattr(stage.app, "open_url", lambda url, **_: opened.append(url))
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "Links.")
        stage.engine.text("[safe](https://example.org/)\n\n[file](file:///etc/passwd)\n")
        stage.engine.done()
        await stage.settle(pilot)
        safe, file = stage.screen.query("MarkdownParagraph")
        await pilot.click(safe, offset=(1, 0))
        await pilot.click(file, offset=(1, 0))
        await stage.settle(pilot)
        assert opened == ["https://example.org/"]


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
        assert stage.screen.query_one(Transcript).at_end
        assert shown(stage.screen.query_one(ThoughtTail)).split("\n")[-1] == STEPS[-1].strip()
