"""Emoji that a terminal takes for narrower or wider leave the rest of their line in place."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from rich.cells import cell_len, split_graphemes
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Input, OptionList
from tui_stage import Stage

from ftllm.chat import store as chats
from tui.steady import SteadyStrip, steady, unsure

LINE = "a ❤️ heart, 👍🏽 hand, 👨‍👩‍👧 family, 1️⃣ key, 🏳️‍🌈 flag, 🇩🇪 flag, 🙂 七 é end"


def alone(text: str) -> int:
    """Cells as tmux 3.3 counts them: a selector has none, what joins has none, the colour of a skin has two."""
    return sum(2 if "\U0001f3fb" <= one <= "\U0001f3ff" else cell_len(one) for one in text)


def one_each(text: str) -> int:
    """Cells as a terminal might count that knows no wide characters in a grapheme."""
    return cell_len(text) if len(text) == 1 else 1


def shown(sequences: str, measure: Callable[[str], int]) -> dict[int, str]:
    """What stands where, on a terminal that measures graphemes so; cells under a wide one are not in it."""
    cells: dict[int, str] = dict.fromkeys(range(120), "x")  # what was there before
    at, kept = 0, 0
    for code, text in re.findall("\x1b(7|8|\\[[0-9;]*[A-Za-z])|([^\x1b]+)", sequences):
        for start, end, _ in split_graphemes(text)[0]:
            cells[at] = text[start:end]
            width = measure(text[start:end])
            for covered in range(at + 1, at + width):
                cells.pop(covered, None)
            at += width
        if code == "7":
            kept = at
        elif code == "8":
            at = kept
        elif code.endswith("C"):
            at += int(code[1:-1])
    return cells


@pytest.mark.parametrize("measure", [cell_len, alone, one_each])
@pytest.mark.parametrize("style", [None, Style(color="red", bgcolor="blue")])
def test_the_rest_of_the_line_stands_where_it_should(measure: Callable[[str], int], style: Style | None) -> None:
    middle = LINE.index("hand")
    strip = Strip([Segment(LINE[:middle], style), Segment(LINE[middle:] + " " * 20, style)])
    console = Console(force_terminal=True, color_system="truecolor", legacy_windows=False)
    cells = shown(steady(strip).render(console), measure)
    for word in re.findall(r"[a-z]+", LINE):
        column = cell_len(LINE[: LINE.index(word)])
        assert "".join(cells[column + place] for place in range(len(word))) == word
    assert "x" not in [cells.get(column) for column in range(strip.cell_length)]  # nothing of what was there before


def test_what_is_sure_is_left_alone() -> None:
    strip = Strip([Segment("七十 🙂 🇩🇪 é 한 plain")])
    assert steady(strip) is strip
    assert [LINE[start:end] for start, end, _ in unsure(LINE)] == ["❤️", "👍🏽", "👨‍👩‍👧", "1️⃣", "🏳️‍🌈"]


@pytest.mark.parametrize("measure", [cell_len, alone])
def test_parts_of_a_line_are_steady_too(measure: Callable[[str], int]) -> None:
    """As where a list lies over the text."""
    strip = steady(Strip([Segment(LINE[: LINE.index("flag")])]))  # of longer ones, rich 15 cuts into what is joined
    console = Console(force_terminal=True, color_system=None, legacy_windows=False)
    at = cell_len(LINE[: LINE.index("family")])
    for parts in (strip.divide([at, strip.cell_length]), [strip.crop(0, at), strip.crop(at)]):
        first, second = (shown(part.render(console), measure) for part in parts)
        for cells, words, start in ((first, ("heart", "hand"), 0), (second, ("family", "key"), at)):
            for word in words:
                column = cell_len(LINE[: LINE.index(word)]) - start
                assert "".join(cells[column + place] for place in range(len(word))) == word


async def test_titles_and_what_is_typed_in_dialogs_are_steady() -> None:
    stage = Stage()
    chats.create_session(stage.store, title="❤️ arithmetic")
    async with stage.app.run_test() as pilot:

        def steadied(widget: Widget) -> list[str]:
            lines = widget.render_lines(Region(0, 0, widget.size.width, widget.size.height))
            return [strip.text.strip() for strip in lines if isinstance(strip, SteadyStrip)]

        await pilot.press("ctrl+s")
        await pilot.pause()
        assert [line.startswith("❤️ arith") for line in steadied(stage.screen.query_one(OptionList))] == [True]
        field = stage.screen.query_one(Input)
        field.value = "❤️"
        await pilot.pause()
        assert steadied(field) == ["❤️"]
        await pilot.press("escape", "escape")
        await stage.say(pilot, "❤️ waits")
        assert ["❤️ waits" in line for line in steadied(stage.screen.query_one("#queue"))] == [True]
