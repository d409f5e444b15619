"""Lines that stay in place in terminals which take an emoji for narrower or wider than it is.

A heart with variation selector 16 has two cells; tmux 3.3 gives it one, and a hand with the colour of its skin four.
What follows on the line would be moved by that, and what was there before would be left at its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from rich.cells import cell_len, split_graphemes
from rich.console import Console
from rich.segment import Segment
from textual.geometry import Region
from textual.strip import Strip

if TYPE_CHECKING:
    from textual.widget import Widget
else:
    Widget = object  # a second base that is a widget would hide the first one's styles

SAVE, BACK = "\x1b7", "\x1b8"
"""Remember where the cursor is, and go back there (DECSC and DECRC, which every terminal has)."""


@lru_cache(4000)
def unsure(text: str) -> tuple[tuple[int, int, int], ...]:
    """Where in the text are graphemes (start, end, cells) that have another width where characters are added up."""
    if text.isascii():
        return ()
    graphemes, _ = split_graphemes(text)
    return tuple(one for one in graphemes if sum(map(_alone, text[one[0] : one[1]])) != one[2])


def _alone(character: str) -> int:
    """Its cells by itself; the colour of a skin is drawn as a square then."""
    return 2 if "\U0001f3fb" <= character <= "\U0001f3ff" else cell_len(character)


def steady(strip: Strip) -> Strip:
    """The strip, drawn so that each of its cells is where it belongs."""
    return SteadyStrip(strip, strip.cell_length) if unsure(strip.text) else strip


class SteadyStrip(Strip):
    """Blanks the cells of each unsure grapheme, draws it, and goes on where it ends, whatever the terminal thinks."""

    def render(self, console: Console) -> str:
        """As control sequences for the terminal."""
        return "".join(_drawn(segment, console) for segment in self)

    def crop(self, start: int, end: int | None = None) -> Strip:
        """A part of it, as steady."""
        return steady(super().crop(start, end))

    def divide(self, cuts: Iterable[int]) -> Sequence[Strip]:
        """Its parts, as where something lies over it, as steady."""
        return [steady(part) for part in super().divide(cuts)]


class Steadily(Widget):
    """Put before a widget's own class, it draws that one's lines steadily, frame and all."""

    def render_lines(self, crop: Region) -> list[Strip]:
        """The lines within `crop`."""
        return [steady(strip) for strip in super().render_lines(crop)]


def _drawn(segment: Segment, console: Console) -> str:
    def drawn(text: str) -> str:
        return Strip([Segment(text, segment.style)]).render(console) if text else ""

    parts, done = [], 0
    for start, end, cells in unsure(segment.text):
        parts += [drawn(segment.text[done:start]), SAVE, drawn(" " * cells), BACK, drawn(segment.text[start:end])]
        parts.append(f"{BACK}\x1b[{cells}C")
        done = end
    return "".join([*parts, drawn(segment.text[done:])])
