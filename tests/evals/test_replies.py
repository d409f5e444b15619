"""Replies taken apart, with token boundaries in awkward places."""

from __future__ import annotations

import pytest

from ftllm.conversations import Message
from ftllm.evals.replies import outcome, thinking
from ftllm.evals.tasks import Prompt
from ftllm.thoughts import ThoughtTags

PROMPT = Prompt("a", (Message("user", "2+3?"),), "5", "number", ("easy",), "x.jsonl:1")
TAGS = ThoughtTags()


def pieces(*texts: str) -> list[bytes]:
    return [text.encode() for text in texts]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["Five", " is", " it"], [0, 0, 0]),
        (["<think>", "2", "</think>", "5"], [1, 1, 1, 0]),
        (["<", "think", ">", "2", "</", "think", ">", "\n", "5"], [1, 1, 1, 1, 1, 1, 1, 0, 0]),
        (["a", "<", "b"], [0, 0, 0]),
        (["<think>", "a", "</thi"], [1, 1, 1]),
        (["<think>a</think>b"], [0]),
    ],
)
def test_tokens_of_thoughts(texts: list[str], expected: list[int]) -> None:
    assert thinking(pieces(*texts), TAGS) == [bool(flag) for flag in expected]


def test_a_thought_the_prompt_opened() -> None:
    assert thinking(pieces("2", "+3", "</think>", "5"), TAGS, opened=True) == [True, True, True, False]
    assert thinking(pieces("</think>", "5"), TAGS, opened=True) == [True, False]
    assert thinking(pieces("</", "think>", "5"), TAGS, opened=True) == [True, True, False]


def test_a_character_cut_over_tokens() -> None:
    euro = "€".encode()
    assert thinking([euro[:1], euro[1:], b"<think>", euro[:2], euro[2:]], TAGS) == [False, False, True, True, True]


def test_a_right_answer_behind_a_thought() -> None:
    found = outcome(PROMPT, [1, 2, 3, 4, 5], pieces("<think>", "2+3 = 6?", "</think>", "\n", "5"), cut=False, tags=TAGS)
    assert (found.right, found.thinks, found.unclosed, found.looping, found.cut) == (True, True, False, False, False)
    assert (found.thought, found.answer) == ("2+3 = 6?", "5")
    assert (found.thought_tokens, found.answer_tokens) == (3, 2)


def test_only_the_answer_is_graded() -> None:
    assert not outcome(PROMPT, [1, 2, 3, 4], pieces("<think>", "5", "</think>", "6"), cut=False, tags=TAGS).right


def test_an_unclosed_looping_thought() -> None:
    words = ["<think>", *["so ", "it ", "is ", "5 "] * 5]
    found = outcome(PROMPT, list(range(1)) + [1, 2, 3, 4] * 5, pieces(*words), cut=True, tags=TAGS)
    assert (found.right, found.thinks, found.unclosed, found.looping, found.cut) == (False, True, True, True, True)
    assert (found.thought_tokens, found.answer_tokens, found.answer) == (21, 0, "")


def test_an_empty_thought_is_no_thinking() -> None:
    found = outcome(PROMPT, [1, 2], pieces("<think>\n\n</think>", "5"), cut=False, tags=TAGS)
    assert (found.thinks, found.right) == (False, True)


def test_a_repeating_answer_is_no_looping_thought() -> None:
    assert not outcome(PROMPT, [7] * 40, pieces(*["5 "] * 40), cut=True, tags=TAGS).looping
