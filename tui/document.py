"""How `tui.markdown` parses and draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from rich import box, markdown
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text
from textual.strip import Strip

from tui.look import Look
from tui.markdown import CodeBlock


def parser() -> MarkdownIt:
    """GitHub's Markdown with HTML shown as text, line breaks kept as written, and images as words."""
    parsing = MarkdownIt("gfm-like", {"html": False})
    parsing.core.ruler.push("keep_as_written", _keep_as_written)
    return parsing


def _keep_as_written(state: StateCore) -> None:
    """Models break lines where they mean to, which CommonMark would join.

    No image is fetched, and only links to web pages are links: of the others the address is shown.
    """
    for token in state.tokens:
        unsafe: list[str] = []
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
            elif child.type == "image":
                _to_text(child, f"[image: {' '.join(filter(None, [child.content, str(child.attrs.get('src', ''))]))}]")
            elif child.type == "link_open":
                href = str(child.attrs.get("href", ""))
                if urlsplit(href).scheme not in ("http", "https"):
                    unsafe.append(href)
                    _to_text(child, "[")
                else:
                    unsafe.append("")
            elif child.type == "link_close" and (href := unsafe.pop() if unsafe else ""):
                _to_text(child, f"]({href})")


def _to_text(token: Token, text: str) -> None:
    token.type, token.tag, token.nesting, token.content, token.children = "text", "", 0, text, None


PARSER = parser()


def code_blocks(tokens: Sequence[Token]) -> list[CodeBlock]:
    """The code among `tokens`."""
    code = (token for token in tokens if token.type in ("fence", "code_block"))
    return [CodeBlock(_language(token), token.content.rstrip("\n")) for token in code]


def render(tokens: Sequence[Token], width: int, look: Look, first_code: int | None, headless: bool) -> list[Strip]:
    """`tui.markdown.render`."""
    document = _Document(tokens, look, first_code, headless)
    options = look.console.options.update(width=width)
    lines = [Strip(line) for line in look.console.render_lines(document, options, pad=False)]
    while lines and not lines[-1].text.strip():
        lines.pop()
    while lines and not lines[0].text.strip():
        lines.pop(0)
    return lines


def code_lines(code: str, language: str, width: int, look: Look) -> list[list[Segment]]:
    """Highlighted code in lines of exactly `width` cells; long ones are folded."""
    ground = look["code"]
    text = Syntax(code, language or "text", theme=look.syntax).highlight(code)
    text.rstrip()
    lines = []
    for line in text.split("\n", allow_blank=True):
        fits = cell_len(line.plain) <= width - 2
        for part in [line] if fits else line.wrap(look.console, width - 2, overflow="fold"):
            part.end = ""
            segments = [Segment(" "), *part.render(look.console), Segment(" " * (width - 1 - cell_len(part.plain)))]
            lines.append(list(Segment.apply_style(segments, ground)))
    return lines


def _language(token: Token) -> str:
    return token.info.split()[0] if token.info.split() else ""


class _Document(markdown.Markdown):
    """Rich's Markdown over our tokens, in our styles."""

    def __init__(self, tokens: Sequence[Token], look: Look, first_code: int | None, headless: bool) -> None:
        # Not Rich's own, which makes a parser each time.
        self.markup, self.code_theme, self.justify, self.style = "", "", None, "none"
        self.hyperlinks, self.inline_code_lexer, self.inline_code_theme = True, None, ""
        self.parsed = list(tokens)
        self.look = look
        self.next_code = first_code
        self.headless = headless


class _Heading(markdown.Heading):
    """On the left, whatever its level."""

    LEVEL_ALIGN = {}  # noqa: RUF012


class _Code(markdown.CodeBlock):
    """Code under a title that names its language and number, and saves or copies it when clicked."""

    def __init__(self, language: str, number: int | None, look: Look, headless: bool) -> None:
        super().__init__(language, "")
        self.number, self.look, self.headless = number, look, headless

    @classmethod
    def create(cls, document: markdown.Markdown, token: Token) -> _Code:
        document = cast(_Document, document)
        code = cls(_language(token), document.next_code, document.look, document.headless)
        if document.next_code is not None:
            document.next_code += 1
        document.headless = False
        return code

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        if not self.headless:
            save, copy = ("save  ", f"copy {self.number} ") if self.number is not None else ("", "")
            name = Text(f" {self.lexer_name}", no_wrap=True, end="")
            name.truncate(max(width - len(save + copy), 0), pad=True, overflow="ellipsis")
            style = self.look["code-name"] + Style(bgcolor=self.look["code"].bgcolor)
            yield Segment(name.plain, style)
            yield Segment(save, style + Style.from_meta({"save": self.number}))
            yield Segment(copy, style + Style.from_meta({"code": self.number}))
            yield Segment.line()
        for line in code_lines(str(self.text).rstrip("\n"), self.lexer_name, width, self.look):
            yield from line
            yield Segment.line()


class _Quote(markdown.BlockQuote):
    """Behind a thin bar."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        inner = options.update(width=max(options.max_width - 2, 1))
        for line in console.render_lines(self.elements, inner, style=self.style, pad=False):
            yield Segment("│ ", self.style)
            yield from line
            yield Segment.line()


class _Rule(markdown.MarkdownElement):
    """A thin line."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Segment("─" * options.max_width, console.get_style("markdown.hr"))
        yield Segment.line()


class _Table(markdown.TableElement):
    """A line under its head, and nothing around it."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, style="markdown.table.border")
        for cell in self.header.row.cells if self.header and self.header.row else ():
            heading = cell.content.copy()
            heading.stylize("markdown.table.header")
            table.add_column(heading, justify=cell.justify, overflow="fold")
        for row in self.body.rows if self.body else ():
            table.add_row(*(cell.content for cell in row.cells))
        yield table


_Document.elements = {
    **markdown.Markdown.elements,
    "heading_open": _Heading,
    "fence": _Code,
    "code_block": _Code,
    "blockquote_open": _Quote,
    "hr": _Rule,
    "table_open": _Table,
}
