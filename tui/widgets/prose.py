"""Markdown written by a model: shown whole, never obeyed."""

from __future__ import annotations

from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from textual import on
from textual.widgets import Markdown

from tui.text import harmless, one_line


def parser() -> MarkdownIt:
    """GitHub's Markdown with HTML shown as text (Textual drops HTML blocks) and line breaks kept as written."""
    markdown = MarkdownIt("gfm-like", {"html": False})
    markdown.core.ruler.push("keep_line_breaks", _keep_line_breaks)
    return markdown


def _keep_line_breaks(state: StateCore) -> None:
    """Models break lines where they mean to; CommonMark would join them."""
    for token in state.tokens:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"


class Prose(Markdown):
    """Markdown that can grow at its end.

    `feed` only collects; `paint` shows what was collected; `finish` parses the whole text once more, for a document
    that was streamed can differ from the same document parsed at once (tables, reference links, fences in lists).
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(harmless(text), parser_factory=parser, open_links=False)
        self._fed: list[str] = []
        self._streamed = False

    def feed(self, text: str) -> None:
        """Take more text; nothing is drawn yet."""
        self._fed.append(text)

    async def paint(self) -> None:
        """Draw what was fed since the last time."""
        if text := self._take():
            self._streamed = True
            await self.append(text)

    async def finish(self) -> None:
        """The text is whole."""
        rest = self._take()
        if self._streamed:
            await self.update(self.source + rest)
            self._streamed = False
        elif rest:
            await self.update(rest)

    @property
    def text(self) -> str:
        """Everything fed so far, made harmless."""
        return self.source + harmless("".join(self._fed))

    def _take(self) -> str:
        text = harmless("".join(self._fed))
        self._fed.clear()
        return text

    @on(Markdown.LinkClicked)
    def _follow(self, event: Markdown.LinkClicked) -> None:
        event.stop()
        event.prevent_default()
        if urlsplit(event.href).scheme in ("http", "https"):
            self.app.open_url(event.href)
        else:
            self.notify(f"Not opened: {one_line(event.href, 60)}", markup=False, severity="warning")
