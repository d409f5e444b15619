"""What is put on the transcript's lines while they are in view, and what stands there before the first of them."""

from __future__ import annotations

import re

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from tui.look import GUTTER, Page

WELCOME_TOP = 3
"""Blank lines above the welcome."""


def marked(strip: Strip, page: Page) -> Strip:
    """A line of the selected message, with its bar."""
    start = page.left - GUTTER
    mark = Strip([Segment("┃", page.look["selected"] + page.look.base.background_style)])
    return Strip.join([strip.crop(0, start), mark, strip.crop(start + 1)])


def highlighted(strip: Strip, span: tuple[int, int], style: Style) -> Strip:
    """A line with some of its characters on a style's ground: from the first of `span` up to the second, -1 for all."""
    text = strip.text
    start = cell_len(text[: span[0]])
    end = strip.cell_length if span[1] == -1 else cell_len(text[: span[1]])
    ground = Style(bgcolor=style.bgcolor)
    chosen = Strip(Segment.apply_style(strip.crop(start, end), post_style=ground))
    parts = [strip.crop(0, start), chosen, strip.crop(end)]
    return Strip.join([part for part in parts if part.cell_length])


def word_at(text: str, place: int) -> tuple[int, int]:
    """Where the word begins and ends that has the character at `place`; signs and spaces are words of their own.

    >>> word_at("The sum is 933.", 12)
    (11, 14)
    """
    words = (match.span() for match in re.finditer(r"\w+|[^\w\s]+|\s+", text))
    return next(((start, end) for start, end in words if start <= place < end), (place, place))


def welcome_line(y: int, model: str, page: Page) -> Strip:
    """A line of the view, from 0, while there is no message."""
    lines = [("ftllm", page.look["heading"]), (model, page.look["muted"]), ("", page.look["muted"])]
    lines.append(("Ask it something.", page.look["muted"]))
    if not WELCOME_TOP <= y < WELCOME_TOP + len(lines):
        return page.blank
    text, style = lines[y - WELCOME_TOP]
    left = max((page.total - cell_len(text)) // 2, 0)
    strip = Strip([Segment(" " * left), Segment(text, style)])
    return strip.apply_style(page.look.base).adjust_cell_length(page.total, page.look.base)
