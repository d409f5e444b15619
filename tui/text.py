"""Text on its way to the terminal: made harmless, wrapped, counted and put into words."""

from __future__ import annotations

import re

from rich.cells import cell_len, split_graphemes

TAB = "    "

_BIDI_CONTROLS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def _harmless_table() -> dict[int, str | None]:
    """What becomes of each character that a terminal would obey rather than print."""
    table: dict[int, str | None] = {code: chr(0x2400 + code) for code in range(0x20)}
    table |= dict.fromkeys(range(0x80, 0xA0), "\ufffd")
    table |= dict.fromkeys(range(0xD800, 0xE000), "\ufffd")
    table |= dict.fromkeys(map(ord, _BIDI_CONTROLS), None)
    table |= {0x0A: "\n", 0x09: TAB, 0x0D: None, 0x7F: "\u2421", 0x85: "\n", 0x2028: "\n", 0x2029: "\n", 0xFEFF: None}
    return table


_HARMLESS = _harmless_table()


def harmless(text: str) -> str:
    """Text that a terminal only prints.

    Control characters become their pictures (ESC is shown as `␛`), C1 controls and lone surrogates the replacement
    character. Bidirectional overrides are dropped, for they show text in another order than it has. Every line
    separator becomes a newline, so that `str.splitlines` and CommonMark agree on what a line is.
    """
    return text.translate(_HARMLESS)


def without_controls(text: str) -> str:
    """Text for the clipboard: as written, tabs included, but with nothing a terminal would obey when it is pasted."""
    return "\n".join("\t".join(map(harmless, line.split("\t"))) for line in text.split("\n"))


def one_line(text: str, width: int) -> str:
    """The text on one line of at most `width` cells, shortened with an ellipsis."""
    line = " ".join(harmless(text).split())
    return line if cell_len(line) <= width else cut(line, max(width - 1, 0)) + "…"


def shortened(text: str, width: int) -> str:
    """The text on one line of at most `width` cells, its middle left out: names of models differ at their ends."""
    line = " ".join(harmless(text).split())
    if cell_len(line) <= width:
        return line
    head = cut(line, max(width - 1, 0) // 3)
    tail_cells = max(width - 1 - cell_len(head), 0)
    start = next(place for place in range(len(line) + 1) if cell_len(line[place:]) <= tail_cells)
    return f"{head}…{line[start:]}"


def cut(text: str, width: int) -> str:
    """The longest beginning of `text` that fits `width` cells."""
    return _cut(text, width)[0]


def _cut(text: str, width: int) -> tuple[str, str]:
    """`text` as a beginning of at most `width` cells, and the rest; a grapheme is never cut."""
    used = 0
    for start, _, size in split_graphemes(text)[0]:
        if used + size > width:
            return text[:start], text[start:]
        used += size
    return text, ""


def wrap(line: str, width: int) -> list[str]:
    """One line folded to `width` cells: at spaces where there are any, else where it is full."""
    width = max(width, 2)
    folded: list[str] = []
    while cell_len(line) > width:
        head, rest = _cut(line, width)
        space = head.rfind(" ")
        if not rest.startswith(" ") and space > 0 and head[:space].strip(" "):
            head, rest = head[:space], head[space:] + rest
        folded.append(head.rstrip(" "))
        line = rest.lstrip(" ")
    folded.append(line)
    return folded


def tail(text: str, width: int, height: int) -> str:
    """The last `height` lines of `text` as it looks folded to `width` cells.

    Looks at no more of the text than can be shown, so its cost does not grow with the text.
    """
    recent = text[-2 * width * height :].rstrip("\n")
    lines = [folded for line in recent.split("\n")[-height:] for folded in wrap(line, width)]
    return "\n".join(lines[-height:])


def file_name(title: str, suffix: str) -> str:
    """A name for a file from a title: `What is 2 + 2?` -> `what-is-2-2.md`."""
    words = re.findall(r"\w+", title.lower())
    return ("-".join(words)[:60].rstrip("-") or "chat") + suffix


def counted(number: int, noun: str) -> str:
    """`1 token`, `312 tokens`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
