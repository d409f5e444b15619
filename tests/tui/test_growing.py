"""A document drawn as it grows, against the same document drawn at once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.style import Style

from tui.growing import FENCE_LINES, LONG_LINES, GrowingProse
from tui.look import NAMES, Look, Page
from tui.markdown import parse, render

LOOK = Look(Style.parse("white on black"), {name: Style.parse("cyan") for name in NAMES})
CODE = "".join(f"x{number} = {number}  # 数\n" for number in range(5 * FENCE_LINES))
DOCUMENT = f"""# Sum

A line with *words*
and another one. | not | a table |

| a | 数 |
|---|--:|
| 1 | 七 🙂 |

- one
- two
  - three

```python
{CODE}```

1. first
2. second

> quoted

The end.
"""


def whole(source: str, page: Page) -> list[str]:
    return [page.frame(line).text.rstrip() for line in render(parse(source), page.width, page.look)]


def lines(prose: GrowingProse, page: Page) -> list[str]:
    return [line.text.rstrip() for line in prose.draw(page)]


@given(cuts=st.lists(st.integers(1, 60), min_size=1), width=st.sampled_from([30, 80, 200]))
@settings(max_examples=15, deadline=None)
def test_it_ends_as_if_drawn_at_once(cuts: list[int], width: int) -> None:
    prose, page, start = GrowingProse(), Page(width, LOOK), 0
    for cut in cuts * len(DOCUMENT):
        prose.feed(DOCUMENT[start : start + cut])
        prose.draw(page)
        start += cut
        if start >= len(DOCUMENT):
            break
    assert lines(prose, page) == whole(DOCUMENT, page)


@pytest.mark.parametrize("start", ["```python\n", "", "- "])
def test_only_the_end_is_drawn_again(start: str) -> None:
    prose, page = GrowingProse(), Page(80, LOOK)
    prose.feed(start + CODE.replace("\n", "\n- " if start == "- " else "\n\n" if not start else "\n"))
    before = prose.draw(page)
    prose.feed("y = 1\n")
    after = prose.draw(page)
    same = sum(left is right for left, right in zip(before, after, strict=False))
    assert len(before) - 2 * FENCE_LINES <= same


@pytest.mark.parametrize("odd", ["", "*", "[", "x" * 90, "- ", "3. "])
def test_a_paragraph_without_an_end(odd: str) -> None:
    """It is drawn as it will be, and only its end again and again, if nothing in it asks for more."""
    prose, page, document = GrowingProse(), Page(80, LOOK), ""
    for number in range(600):
        end = "\n" if number % 37 == 0 else " "
        piece = f"wörd{number % 9} 数{number}{end}{odd if number == 300 else ''}"
        prose.feed(piece)
        document += piece
        if number % 7 == 0:
            assert lines(prose, page) == whole(document, page)
    before = prose.draw(page)
    prose.feed("end")
    same = sum(left is right for left, right in zip(before, prose.draw(page), strict=False))
    assert odd[:1] in ("*", "[", "x") or same > len(before) - 2 * LONG_LINES


def test_another_width_draws_all_of_it_again() -> None:
    prose = GrowingProse()
    prose.feed(DOCUMENT)
    prose.draw(Page(80, LOOK))
    assert lines(prose, Page(40, LOOK)) == whole(DOCUMENT, Page(40, LOOK))


def test_code_is_numbered_as_in_the_whole() -> None:
    document = "```a\n1\n```\n\nx\n\n```b\n2\n```\n"
    prose, page = GrowingProse(), Page(40, LOOK)
    for character in document:
        prose.feed(character)
        prose.draw(page)
    assert [line.split()[-1] for line in lines(prose, page) if "copy" in line] == ["1", "2"]
