"""The run of lines under the transcript: estimated, drawn when looked at, kept."""

from __future__ import annotations

import pytest
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from tui.lines import KEPT_LINES, Lines
from tui.look import Look, Page
from tui.turns import Turn

PAGE = Page(20, Look(Style.null(), {}))  # three cells of margin


class Block(Turn):
    """So many lines `a0`, `a1`, ..., that were thought to be so many."""

    def __init__(self, name: str, height: int, guess: int) -> None:
        self.name, self.height, self.guess = name, height, guess
        self.drawings = 0

    def draw(self, page: Page) -> list[Strip]:
        self.drawings += 1
        return [Strip([Segment(f"{' ' * page.left}{self.name}{number}")]) for number in range(self.height)]

    def estimate(self, page: Page) -> int:
        del page
        return self.guess


@pytest.fixture
def turns() -> list[Block]:
    return [Block("a", 3, 1), Block("b", 2, 5), Block("c", 4, 1)]


@pytest.fixture
def lines(turns: list[Block]) -> Lines:
    lines = Lines()
    lines.put(turns)
    assert lines.height == 3  # a line each, without a page
    lines.take(PAGE)
    return lines


def test_what_is_looked_at_is_as_high_as_it_is(lines: Lines, turns: list[Block]) -> None:
    _, b, c = turns
    assert (lines.height, lines.span(b), lines.at(1), lines.at(99)) == (7, (1, 6), (b, 0), (c, 93))
    assert lines.look_at(0, 3) == 0
    assert (lines.height, lines.span(b), lines.at(4)) == (9, (3, 8), (b, 1))
    assert lines.look_at(4, 1) == -3  # so much lower is b than it was thought to be
    assert (lines.height, lines.span(b), lines.span(c)) == (6, (3, 5), (5, 6))
    lines.look_at_end(4)
    assert (lines.height, [turn.drawings for turn in turns]) == (9, [1, 1, 1])
    assert Lines().at(0) is None


def test_drawings_are_kept_until_something_changes(lines: Lines, turns: list[Block]) -> None:
    a, b, c = turns
    lines.look_at_end(100)
    lines.put([a, c])
    assert lines.height == 2
    lines.look_at_end(100)
    assert (lines.height, a.drawings, c.drawings) == (7, 1, 1)
    c.height = 1
    assert lines.redraw(c) == 0
    assert lines.redraw(b) is None
    lines.look_at(0, 100)
    assert (lines.height, a.drawings, c.drawings) == (4, 1, 2)
    lines.put([a, c], anew=True)
    lines.look_at_end(100)
    assert (a.drawings, c.drawings) == (2, 3)


def test_only_so_many_lines_are_kept(lines: Lines, turns: list[Block]) -> None:
    lines.add([Block("x", KEPT_LINES, 1)])
    lines.look_at_end(KEPT_LINES)
    lines.of(turns[0])
    lines.of(turns[0])
    assert turns[0].drawings == 1
    lines.look_at_end(KEPT_LINES)
    lines.of(turns[0])
    assert turns[0].drawings == 2


def test_text_is_taken_without_the_margin(lines: Lines) -> None:
    lines.look_at(0, 100)
    assert lines.text((1, 4), (3, 4)) == "1\na2\nb"
    assert lines.text((7, 0)) == "c2\nc3"
    assert lines.text((8, 0), (20, 2)) == "c3"
