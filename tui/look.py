"""The colours of the transcript, read from the stylesheet, and how one of its lines is framed."""

from __future__ import annotations

import io
from functools import cached_property
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from rich.theme import Theme
from textual.strip import Strip

from ftllm.values import dataclass
from tui.text import wrap

if TYPE_CHECKING:
    from rich.syntax import ANSISyntaxTheme
    from textual.widget import Widget

COLUMN = 104
"""Cells of text a line holds at most: longer ones are hard to read."""
GUTTER = 2
"""Cells on the left of each line, for the bar of a selected turn."""

NAMES = [
    *("muted", "heading", "user", "user-bar", "thought-bar", "code", "code-name", "inline-code", "link"),
    *("failure", "failure-bar", "warning", "selected", "keyword", "string", "comment", "number", "name"),
]


class Look:
    """Styles by name, each `transcript--NAME` of the stylesheet; `base` is the transcript's own.

    Only `user`, `code` and `inline-code` have a background of their own, for they are drawn as a surface.
    """

    def __init__(self, base: Style, styles: dict[str, Style]) -> None:
        self.base = base
        self._styles = styles

    @classmethod
    def of(cls, widget: Widget) -> Look:
        """What the stylesheet says for this widget now."""
        base = widget.rich_style
        surfaces = ("user", "code", "inline-code")
        styles = {name: widget.get_component_rich_style(f"transcript--{name}") for name in NAMES}
        return cls(base, {name: style if name in surfaces else _bare(style) for name, style in styles.items()})

    def __getitem__(self, name: str) -> Style:
        return self._styles[name]

    @cached_property
    def console(self) -> Console:
        """Renders Rich's renderables in these styles; its width is given with each rendering."""
        bold = Style(bold=True)
        theme = Theme(
            {
                "markdown.h1": self["heading"] + bold + Style(underline=True),
                "markdown.h2": self["heading"] + bold,
                **{f"markdown.h{level}": bold for level in (3, 4, 5, 6)},
                "markdown.code": self["inline-code"],
                "markdown.item.bullet": self["heading"],
                "markdown.item.number": self["heading"],
                "markdown.block_quote": self["muted"],
                "markdown.hr": self["muted"],
                "markdown.link_url": self["link"] + Style(underline=True),
                "markdown.table.border": self["muted"],
                "markdown.table.header": bold,
                "markdown.s": Style(strike=True),
            }
        )
        return Console(
            file=io.StringIO(), force_terminal=True, color_system="truecolor", legacy_windows=False, theme=theme
        )

    @cached_property
    def syntax(self) -> ANSISyntaxTheme:
        """Highlighting of code."""
        from pygments.token import Token
        from rich.syntax import ANSISyntaxTheme

        return ANSISyntaxTheme(
            {
                Token.Comment: self["comment"],
                Token.Keyword: self["keyword"],
                Token.Operator.Word: self["keyword"],
                Token.Literal.String: self["string"],
                Token.Literal.Number: self["number"],
                Token.Name.Function: self["name"],
                Token.Name.Class: self["name"],
                Token.Name.Decorator: self["name"],
                Token.Name.Tag: self["keyword"],
                Token.Name.Attribute: self["name"],
                Token.Generic.Heading: Style(bold=True),
                Token.Generic.Inserted: self["string"],
                Token.Generic.Deleted: self["failure"],
            }
        )


def _bare(style: Style) -> Style:
    """The style without its background."""
    return Style(
        color=style.color,
        bold=style.bold or None,
        italic=style.italic or None,
        underline=style.underline or None,
        strike=style.strike or None,
    )


@dataclass(frozen=True)
class Page:
    """Where the text column stands in a transcript `total` cells wide; equal pages draw the same."""

    total: int
    look: Look

    @property
    def width(self) -> int:
        """Cells for text."""
        return max(min(self.total - GUTTER - 2, COLUMN), 8)

    @property
    def left(self) -> int:
        """Cells in front of the text, gutter included."""
        return max((self.total - self.width - GUTTER) // 2, 0) + GUTTER

    def frame(self, content: Strip) -> Strip:
        """A whole line of the transcript."""
        return (
            Strip([Segment(" " * self.left), *content])
            .apply_style(self.look.base)
            .adjust_cell_length(self.total, self.look.base)
        )

    def plain(self, text: str, style: Style, bar: tuple[str, Style] | None = None) -> list[Strip]:
        """Text as it is, folded to the column, on the style's ground; behind a bar when there is one."""
        width = self.width - (2 if bar else 0)
        lines = []
        for line in (folded for given in text.split("\n") for folded in wrap(given, width)):
            filled = line + " " * (width - cell_len(line)) if style.bgcolor else line
            front = [Segment(bar[0], bar[1]), Segment(" ", style)] if bar else []
            lines.append(self.frame(Strip([*front, Segment(filled, style)])))
        return lines

    @cached_property
    def blank(self) -> Strip:
        """An empty line."""
        return Strip.blank(self.total, self.look.base)
