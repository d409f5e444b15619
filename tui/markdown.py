"""Markdown written by a model, as lines for the terminal: shown whole, never obeyed.

The libraries that parse and draw it are imported when there is some, behind `tui.document`: the screen is there sooner.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from textual.strip import Strip

from ftllm.values import dataclass
from tui.look import Look

if TYPE_CHECKING:
    from markdown_it.token import Token


@dataclass(frozen=True)
class CodeBlock:
    """One fenced or indented block of code."""

    language: str
    code: str

    @property
    def suffix(self) -> str:
        """What the names of files in its language end in: `.py`; `.txt` where that is not known."""
        from pygments.lexers import get_lexer_by_name
        from pygments.util import ClassNotFound

        try:
            patterns = get_lexer_by_name(self.language).filenames
        except ClassNotFound:
            return ".txt"
        return next((pattern[1:] for pattern in patterns if re.fullmatch(r"\*\.\w+", pattern)), ".txt")


def parse(source: str) -> list[Token]:
    """The tokens of a document that is `harmless` already."""
    from tui.document import PARSER

    return PARSER.parse(source)


def code_blocks(source: str) -> list[CodeBlock]:
    """The code of a document, in the order and number in which `render` shows it."""
    from tui import document

    return document.code_blocks(parse(source))


def links(source: str) -> list[str]:
    """The web pages that a document links to, each once, as `render` shows them."""
    inline = (child for token in parse(source) for child in token.children or ())
    return list(dict.fromkeys(str(child.attrs["href"]) for child in inline if child.type == "link_open"))


def render(
    tokens: Sequence[Token], width: int, look: Look, *, first_code: int | None = 1, headless: bool = False
) -> list[Strip]:
    """A parsed document in lines of at most `width` cells, without blank ones around it.

    Args:
        first_code: the number of its first block of code; None where blocks are not numbered.
        headless: its first block of code goes on from one that was drawn before, and has no title of its own.
    """
    from tui import document

    return document.render(tokens, width, look, first_code, headless)
