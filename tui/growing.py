"""A document that grows at its end: what is finished of it is drawn once, only its last block again and again."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from textual.strip import Strip

from tui.look import Page
from tui.markdown import parse, render
from tui.text import harmless

if TYPE_CHECKING:
    from markdown_it.token import Token

LONG_LINES, PARAGRAPH_LINES = 12, 4
"""A paragraph of more than so many lines is drawn for good but for its last ones."""
MARKUP = re.compile(r"[*_`\[\]<>\\&~|$]")
BLOCK = re.compile(r"$|[-+#=]|\d+[.)]")
"""What begins another block than a paragraph; or there is no rest."""
FENCE_LINES = 4
"""Lines of an unfinished block of code that are drawn again; those above keep the colours they have."""


class GrowingProse:
    """Markdown as it arrives.

    Its blocks are taken one after the other, as they look when the next one begins. The same document parsed at once
    can differ (reference links, lists with blank lines, strings over many lines of code), so whoever ends it draws
    the whole `text` anew.

    Args:
        first_code: the number of its first block of code.
    """

    def __init__(self, first_code: int = 1) -> None:
        self._first_code = first_code
        self._pieces: list[str] = []
        self._page: Page | None = None
        self._fresh: list[str] = []  # fed since the last drawing
        self._tail = ""  # source of what is drawn again
        self._joined = False  # the tail goes on in the block above, with no blank line between
        self._headless = False  # the tail begins inside a block of code whose title is drawn already
        self._codes = 0  # blocks of code above the tail
        self._frozen: list[Strip] = []
        self._drawn: list[Strip] = []

    @property
    def text(self) -> str:
        """Everything fed so far, made harmless."""
        return "".join(self._pieces)

    def feed(self, text: str) -> None:
        """Take more text; nothing is drawn yet."""
        clean = harmless(text)
        self._pieces.append(clean)
        self._fresh.append(clean)

    def draw(self, page: Page) -> list[Strip]:
        """The document so far, in framed lines. Costs no more for a long document than for a short one."""
        if page != self._page:
            self._page, self._tail, self._fresh = page, "", [self.text]
            self._joined = self._headless = False
            self._codes, self._frozen, self._drawn = 0, [], []
        if self._fresh:
            self._tail += "".join(self._fresh)
            self._fresh.clear()
            tokens = self._freeze(page)
            self._drawn = [*self._frozen, *self._rendered(tokens, page)]
        return self._drawn

    def _freeze(self, page: Page) -> list[Token]:
        """Draw for good all but the last block of the tail; the tokens of what remains."""
        tokens = parse(self._tail)
        while True:
            last = _last_block(tokens)
            if last is None:
                return tokens
            index, line = last
            if index > 0:
                self._keep(tokens[:index], line, page)
                self._joined = self._headless = False
            elif (item := _last_item(tokens)) is not None:
                self._keep([*tokens[: item[0]], tokens[-1]], item[1], page)
                self._joined = True
            elif tokens[0].type == "paragraph_open" and len(self._tail) > LONG_LINES * page.width:
                if not self._keep_plain(tokens, page):
                    return tokens
            elif tokens[0].type == "fence" and tokens[0].content.count("\n") > 2 * FENCE_LINES:
                self._keep_code(tokens[0], page)
            else:
                return tokens
            tokens = parse(self._tail)

    def _keep(self, tokens: list[Token], line: int, page: Page) -> None:
        self._frozen += self._rendered(tokens, page)
        self._codes += sum(token.type in ("fence", "code_block") for token in tokens)
        self._tail = "".join(self._tail.splitlines(keepends=True)[line:])

    def _keep_plain(self, tokens: list[Token], page: Page) -> bool:
        """Draw for good the first lines of a long paragraph without markup; whether that can be."""
        if MARKUP.search(self._tail):
            return False
        lines = self._rendered(tokens, page)[:-PARAGRAPH_LINES]
        drawn = [word for line in lines for word in line.text.split()]
        words = list(re.finditer(r"\S+", self._tail))
        rest = words[len(drawn)].start() if drawn and len(drawn) < len(words) else len(self._tail)
        if drawn != [word[0] for word in words[: len(drawn)]] or BLOCK.match(self._tail, rest):
            return False  # a word was folded, or the rest would begin something else
        self._frozen += lines
        self._tail = self._tail[rest:]
        self._joined = True
        return True

    def _keep_code(self, fence: Token, page: Page) -> None:
        lines = self._tail.splitlines(keepends=True)
        count = fence.content.count("\n") - FENCE_LINES
        first = fence.map[0] if fence.map else 0
        whole = fence.content
        fence.content = "".join(whole.splitlines(keepends=True)[:count])
        self._frozen += self._rendered([fence], page)
        self._tail = f"{fence.markup}{fence.info}\n" + "".join(lines[first + 1 + count :])
        self._joined = self._headless = True

    def _rendered(self, tokens: list[Token], page: Page) -> list[Strip]:
        lines = render(
            tokens, page.width, page.look, first_code=self._first_code + self._codes, headless=self._headless
        )
        blank = [page.blank] if self._frozen and lines and not self._joined else []
        return blank + [page.frame(line) for line in lines]


def _last_block(tokens: list[Token]) -> tuple[int, int] | None:
    """Where the last top-level block begins, among the tokens and in the source's lines."""
    for index in range(len(tokens) - 1, -1, -1):
        token = tokens[index]
        if token.level == 0 and token.nesting >= 0 and token.map:
            return index, token.map[0]
    return None


def _last_item(tokens: list[Token]) -> tuple[int, int] | None:
    """Where the last item begins of the list that the tokens are, if it is not the only one."""
    if not tokens[0].type.endswith("_list_open"):
        return None
    items = [(i, t.map[0]) for i, t in enumerate(tokens) if t.type == "list_item_open" and t.level == 1 and t.map]
    return items[-1] if len(items) > 1 else None
