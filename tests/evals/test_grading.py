"""Grading rules, on answers a person can check."""

from __future__ import annotations

from decimal import Decimal

import pytest

from ftllm.evals.grading import GRADES, RULES, is_right, last_number


@pytest.mark.parametrize(
    ("grade", "answer", "expected", "right"),
    [
        ("exact", "  Paris \n", "Paris", True),
        ("exact", "a  b\nc", "a b c", True),
        ("exact", "Paris.", "Paris", False),
        ("exact", "paris", "Paris", False),
        ("last_line", "First this.\n\n  c b a \n\n", "c b a", True),
        ("last_line", "c b a\nDone.", "c b a", False),
        ("last_line", "", "", False),
        ("number", "The sum is 1,234.", "1234", True),
        ("number", "7 plus 5 is 12", "12.0", True),
        ("number", "It is 12, not 13", "12", False),
        ("number", "no idea", "12", False),
        ("contains", "It is PARIS, of course", "paris", True),
        ("contains", "It is Lyon", "Paris", False),
        ("contains", "new\nyork", "New York", True),
    ],
)
def test_rules(grade: str, answer: str, expected: str, right: bool) -> None:
    assert is_right(answer, expected, grade) is right  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234,567", "1234567"),
        ("1,2,3", "3"),
        ("12,3456", "3456"),
        ("x = -5", "-5"),
        ("10-5", "5"),
        ("\u22127", "-7"),
        ("3.50 euros", "3.50"),
        ("about 1e3", "1000"),
        ("$1,000.25.", "1000.25"),
    ],
)
def test_last_number(text: str, value: str) -> None:
    assert last_number(text) == Decimal(value)


def test_no_number_is_none() -> None:
    assert last_number("none") is None


def test_every_grade_has_a_rule() -> None:
    assert set(GRADES) == set(RULES)
