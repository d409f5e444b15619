"""Grading one answer. Every rule is a pure function of the answer, its thought taken off, and what was expected."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Literal, get_args

Grade = Literal["exact", "last_line", "number", "contains"]
GRADES: tuple[str, ...] = get_args(Grade)

# Digits grouped by commas in threes ("1,234") are one number; "1,2,3" are three. A minus after a letter or digit is a
# dash or a subtraction. U+2212 is the typographic minus.
NUMBER = re.compile(r"(?:(?<![\w.)])[-+\u2212])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?")


def normalised(text: str) -> str:
    """`text` with every stretch of whitespace as one space and none at the ends."""
    return " ".join(text.split())


def exact(answer: str, expected: str) -> bool:
    """The whole answer is what was expected, whitespace apart."""
    return normalised(answer) == normalised(expected)


def last_line(answer: str, expected: str) -> bool:
    """The answer's last line that is not empty is what was expected, whitespace apart."""
    lines = [line for line in answer.splitlines() if line.strip()]
    return bool(lines) and normalised(lines[-1]) == normalised(expected)


def last_number(text: str) -> Decimal | None:
    """The last number in `text` ("1,234.5" is one number), or None when it holds none."""
    found = NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "").replace("\u2212", "-")) if found else None


def number(answer: str, expected: str) -> bool:
    """The last number in the answer has the expected value: "so 1,234.0" is right where 1234 was expected."""
    value = last_number(answer)
    return value is not None and value == last_number(expected)


def contains(answer: str, expected: str) -> bool:
    """The answer contains what was expected, case and whitespace apart."""
    return normalised(expected).casefold() in normalised(answer).casefold()


RULES: dict[str, Callable[[str, str], bool]] = {
    "exact": exact,
    "last_line": last_line,
    "number": number,
    "contains": contains,
}


def is_right(answer: str, expected: str, grade: Grade) -> bool:
    """Whether `answer` is right by the rule named `grade`."""
    return RULES[grade](answer, expected)
