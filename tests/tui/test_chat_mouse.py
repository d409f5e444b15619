"""What the mouse does with messages, and what is pasted, which is the mouse's way of typing."""

from __future__ import annotations

import pytest
from textual import events
from textual.pilot import Pilot
from tui_stage import STEPS, Stage, answer, answers, click, conversation

from ftllm.chat import store as chats
from ftllm.chat.session import ChatMessage
from tui.screens.path import PathScreen
from tui.widgets.composer import Composer

CODE = "Here:\n\n```sh\nls\n```"


async def drag(stage: Stage, pilot: Pilot[None], start: tuple[int, int], end: tuple[int, int]) -> None:
    """As a terminal tells it, so that a click comes of it where Textual makes one."""
    for kind, (x, y) in ((events.MouseDown, start), (events.MouseMove, end), (events.MouseUp, end)):
        stage.app.post_message(kind(None, x, y, 0, 0, 1, False, False, False, x, y))
        await pilot.pause()
    await stage.settle(pilot)


def place(stage: Stage, text: str) -> tuple[int, int]:
    """The first cell of a text that is in view."""
    row = stage.row(text)
    return stage.transcript.render_line(row).text.index(text), row


async def test_the_tools_under_a_message() -> None:
    async with conversation(size=(80, 40)) as (stage, pilot):
        await stage.say(pilot, "Code!")
        await answer(stage, pilot, CODE)

        async def tool(message: str, word: str) -> None:
            await pilot.hover(stage.transcript, offset=(6, stage.row(message)))
            await click(stage, pilot, word)

        await tool("Here:", "save code")
        assert isinstance(stage.app.screen, PathScreen)
        await pilot.press("escape")
        await tool("Code!", "edit")
        assert stage.screen.query_one(Composer).text == "Code!"
        await pilot.press("escape")
        await tool("Here:", "again")
        assert stage.engine.asked[-1][-1]["content"] == "Code!"
        await answer(stage, pilot, "Or so")
        await tool("Or so", "more")
        assert stage.engine.asked[-1][-1]["content"] == "Or so"
        await answer(stage, pilot, ", or so.")
        assert answers(stage)[-1] == "Or so, or so."
        await tool("Or so", "delete")
        assert answers(stage)[-1] == CODE


async def test_a_click_opens_a_thought_and_a_second_one_closes_it() -> None:
    async with conversation() as (stage, pilot):
        thought = stage.transcript.turns[-1].thoughts[0]
        title = place(stage, "Thought for")
        await drag(stage, pilot, title, title)
        assert thought.open
        assert "│ " + STEPS[0].strip() in stage.drawn()
        await drag(stage, pilot, title, title)
        assert not thought.open
        assert stage.screen.get_selected_text() is None


async def test_a_double_click_selects_a_word() -> None:
    async with conversation() as (stage, pilot):
        word = place(stage, "933")
        await drag(stage, pilot, word, word)
        assert stage.screen.get_selected_text() is None
        await drag(stage, pilot, word, word)
        assert stage.screen.get_selected_text() == "933"
        await pilot.press("ctrl+c")
        assert stage.app.clipboard == "933"


async def test_a_drag_that_ends_on_a_link_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    async with conversation() as (stage, pilot):
        monkeypatch.setattr(stage.app, "open_url", lambda url, **_: opened.append(url))
        await stage.say(pilot, "Where?")
        await answer(stage, pilot, "It is [there](https://one.example).")
        (left, row), (column, _) = place(stage, "It is"), place(stage, "there")
        await drag(stage, pilot, (left, row), (column + 4, row))
        assert stage.screen.get_selected_text() == "It is there"
        assert opened == []
        await drag(stage, pilot, (column, row), (column, row))
        assert opened == ["https://one.example"]


@pytest.mark.parametrize("running", [True, False])
async def test_the_scrollbar_is_dragged_and_clicked(running: bool) -> None:
    async with conversation() as (stage, pilot):
        await stage.say(pilot, "Write.")
        stage.engine.text("\n\n".join(f"line {number}" for number in range(60)))
        await stage.settle(pilot)
        if not running:
            stage.engine.done()
            await stage.settle(pilot)
        transcript, bar = stage.transcript, stage.transcript.vertical_scrollbar
        top, bottom, x = bar.region.y, bar.region.bottom - 1, bar.region.x
        assert transcript.at_end
        await drag(stage, pilot, (x, bottom), (x, top))
        assert transcript.scroll_y == 0
        await drag(stage, pilot, (x, top), (x, bottom))
        assert transcript.at_end
        await drag(stage, pilot, (x, top), (x, top))
        assert transcript.scroll_y == transcript.max_scroll_y - transcript.scrollable_content_region.height


async def test_a_session_opens_with_its_scrollbar_in_place() -> None:
    stage = Stage()
    info = chats.create_session(stage.store, title="Long")
    asked = chats.add_user(stage.store, info.id, "Write.", after=None)
    text = "\n\n".join(f"line {number}" for number in range(60))
    chats.add_message(stage.store, info.id, ChatMessage("assistant", text), after=asked.id)
    async with stage.app.run_test() as pilot:
        stage.screen.open_session(info.id)
        await pilot.pause()
        assert stage.transcript.at_end
        assert stage.transcript.vertical_scrollbar.position == stage.transcript.scroll_y > 0


async def test_what_is_pasted_goes_to_the_composer_wherever_the_focus_is() -> None:
    async with conversation() as (stage, pilot):
        composer = stage.screen.query_one(Composer)
        stage.app.post_message(events.Paste("one\n"))
        await pilot.pause()
        await pilot.press("ctrl+up")  # the composer is not empty
        assert stage.app.focused is stage.transcript
        stage.app.post_message(events.Paste("two\nthree"))
        await pilot.pause()
        assert composer.text == "one\ntwo\nthree"
        assert stage.app.focused is composer
