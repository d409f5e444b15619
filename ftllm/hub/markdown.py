"""Markdown as model cards need it: front matter, sections, tables, and text that must not be read as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\n(.*?\n)?---[ \t]*(?:\n|\Z)", re.DOTALL)
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


def split_front_matter(text: str) -> tuple[dict[str, Any], str]:
    """A document's YAML front matter and the rest; an empty mapping where there is none.

    Raises:
        ValueError: the front matter is not YAML, or not a mapping.
    """
    text = text.replace("\r\n", "\n").lstrip("\ufeff")
    match = FRONT_MATTER.match(text)
    if match is None:
        return {}, text
    try:
        value = yaml.safe_load(match[1] or "")
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    if value is not None and not isinstance(value, dict):
        raise ValueError("it is not a mapping of keys")
    return {str(key): item for key, item in (value or {}).items()}, text[match.end() :]


def split_sections(text: str, level: int = 2) -> list[tuple[str, str]]:
    """Title and text of each section of a level, in order; what comes before the first has an empty title.

    A section's text begins with its heading's line. Headings inside fenced code are text.
    """
    heading = re.compile(rf"#{{1,{level}}}[ \t]+(.+?)[ \t#]*$")
    sections: list[tuple[str, list[str]]] = [("", [])]
    fence = ""
    for line in text.split("\n"):
        mark = FENCE.match(line)
        if mark and (not fence or (mark[1].startswith(fence) and not line.strip(" `~"))):
            fence = "" if fence else mark[1]
        match = None if fence or mark else heading.match(line)
        if match:
            sections.append((match[1].strip(), []))
        sections[-1][1].append(line)
    return [(title, "\n".join(lines).strip("\n")) for title, lines in sections if title or any(map(str.strip, lines))]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A table; columns whose index is in `right` are right-aligned."""
    rule = ["---:" if index in right else "---" for index in range(len(head))]
    return "\n".join(
        "| " + " | ".join(row) + " |"
        for row in ([cell(text) for text in head], rule, *(map(cell, row) for row in rows))
    )


def cell(text: str) -> str:
    """Text on one line that cannot end its cell."""
    return " ".join(text.split()).replace("|", "\\|")


def fenced(text: str, language: str = "") -> str:
    """Text as a code block whose fence is longer than any in it: nothing in it is read as Markdown or HTML."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.strip(chr(10))}\n{fence}"


def code(text: str) -> str:
    """Text as inline code."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    ticks = "`" * (longest + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{space}{text}{space}{ticks}"
