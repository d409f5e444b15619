"""What the mouse does with messages, and what is pasted, which is the mouse's way of typing."""

from __future__ import annotations

import pytest
from textual import events
from textual.pilot import Pilot
from textual.scrollbar import ScrollBar
from tui_stage import STEPS, Stage, answer, answers, click, conversation

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


async def test_the_scrollbar_is_dragged() -> None:
    async with conversation() as (stage, pilot):
        await answer_long(stage, pilot)
        transcript = stage.transcript
        bar = transcript.vertical_scrollbar
        assert isinstance(bar, ScrollBar)
        assert transcript.at_end
        top, bottom, x = bar.region.y, bar.region.bottom - 1, bar.region.x
        await drag(stage, pilot, (x, bottom), (x, top))
        await stage.until(pilot, lambda: transcript.scroll_y == 0)
        await drag(stage, pilot, (x, top), (x, bottom))
        await stage.until(pilot, lambda: transcript.at_end)


async def answer_long(stage: Stage, pilot: Pilot[None]) -> None:
    await stage.say(pilot, "Write.")
    await answer(stage, pilot, "\n\n".join(f"line {number}" for number in range(60)))


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
