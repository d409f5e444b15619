"""Text made harmless, wrapped and cut."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from tui.text import counted, harmless, one_line, shortened, tail, without_controls, wrap

PLAIN = st.text(st.characters(exclude_categories=("Cc", "Cs", "Mn", "Me", "Cf", "Zl", "Zp")))


@pytest.mark.parametrize(
    ("text", "width", "short"),
    [
        ("models/gemma-Q4_K_M.gguf", 30, "models/gemma-Q4_K_M.gguf"),
        ("models/gemma-Q4_K_M.gguf", 16, "model…4_K_M.gguf"),
        ("千问千问千问", 7, "千…千问"),
        ("abc", 1, "…"),
    ],
)
def test_names_are_shortened_in_their_middle(text: str, width: int, short: str) -> None:
    assert shortened(text, width) == short


def test_escapes_become_pictures() -> None:
    assert harmless("\x1b[31mred\x1b]0;title\x07") == "␛[31mred␛]0;title␇"
    assert harmless("a\x9b2Jb\x7f") == "a\ufffd2Jb␡"


def test_lines_end_in_newlines_only() -> None:
    assert harmless("a\r\nb\u2028c\x85d\te") == "a\nb\nc\nd    e"


def test_text_keeps_its_direction() -> None:
    assert harmless("user\u202e txt.exe\u202c") == "user txt.exe"


def test_markup_is_only_text() -> None:
    assert harmless("[bold]x[/bold] $primary") == "[bold]x[/bold] $primary"


def test_the_clipboard_gets_tabs_but_no_escapes() -> None:
    assert without_controls("all:\r\n\tcc \x1b[2Jmain.c") == "all:\n\tcc ␛[2Jmain.c"


@settings(deadline=None)
@given(st.text())
def test_nothing_harmful_passes(text: str) -> None:
    kept = harmless(text)
    assert not [c for c in kept if c != "\n" and unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert kept.splitlines() == kept.split("\n")[: len(kept.splitlines())]


def test_wrap_at_spaces() -> None:
    assert wrap("carry the one and add", 10) == ["carry the", "one and", "add"]


def test_wrap_where_there_are_none() -> None:
    assert wrap("abcdefgh", 3) == ["abc", "def", "gh"]
    assert wrap("你好世界", 5) == ["你好", "世界"]
    assert wrap("0\u00a00", 2) == ["0\u00a0", "0"]


def test_a_grapheme_is_never_cut() -> None:
    assert wrap("ab👨‍👩‍👧cd❤️x", 4) == ["ab👨‍👩‍👧", "cd❤️", "x"]


@settings(deadline=None)
@given(PLAIN, st.integers(2, 30))
def test_every_line_fits_and_nothing_but_spaces_is_lost(text: str, width: int) -> None:
    lines = wrap(text, width)
    assert all(cell_len(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_tail_is_the_end_of_what_was_folded() -> None:
    text = "\n".join(f"line {number} of the thought" for number in range(100))
    folded = [part for line in text.split("\n") for part in wrap(line, 12)]
    assert tail(text, 12, 5).split("\n") == folded[-5:]


def test_tail_of_little_is_all_of_it() -> None:
    assert tail("", 20, 12) == ""
    assert tail("one\ntwo\n", 20, 12) == "one\ntwo"


@settings(deadline=None)
@given(PLAIN, st.integers(2, 40), st.integers(1, 12))
def test_tail_fits(text: str, width: int, height: int) -> None:
    lines = tail(text, width, height).split("\n")
    assert len(lines) <= height
    assert all(cell_len(line) <= width for line in lines)


def test_one_line() -> None:
    assert one_line("a\nb\tc", 20) == "a b c"
    assert one_line("a long message", 8) == "a long …"
    assert one_line("你好世界", 5) == "你好…"


def test_counted() -> None:
    assert [counted(1, "token"), counted(0, "token"), counted(1312, "token")] == ["1 token", "0 tokens", "1,312 tokens"]
