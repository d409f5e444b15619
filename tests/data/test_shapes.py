"""What a row's columns mean is found by looking; every complaint names the line and what is wrong there."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftllm.data.shapes import canonical, conversation_of, read_row
from ftllm.errors import UserError

HI = {"role": "user", "content": "Hi"}
THOUGHT = "<think>\n2 + 2\n</think>\n\n4"


def turns(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation_of(row, "d.jsonl:2").messages]


ASKED = [("user", "2+2?"), ("assistant", "4")]
THOUGHTFUL = [("user", "2+2?"), ("assistant", THOUGHT)]
SHAPES: list[tuple[str, dict[str, Any], list[tuple[str, str]]]] = [
    ("messages", {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}, ASKED),
    (
        "ShareGPT",
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}], "id": 3},
        ASKED,
    ),
    ("messages", {"conversations": [{"role": "user", "content": "2+2?"}, {"role": "model", "content": "4"}]}, ASKED),
    (
        "ShareGPT",
        {"system": "Be brief.", "conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
        [("system", "Be brief."), *ASKED],
    ),
    ("Alpaca", {"instruction": "2+2?", "input": "", "output": "4"}, ASKED),
    ("Alpaca", {"instruction": "Add.", "input": "2 and 2", "output": "4"}, [("user", "Add.\n\n2 and 2"), ASKED[1]]),
    ("Alpaca", {"instruction": "2+2?", "context": None, "response": "4", "category": "sum"}, ASKED),
    (
        "Alpaca",
        {"instruction": "And 3?", "output": "5", "history": [["2+2?", "4"]]},
        [*ASKED, ("user", "And 3?"), ("assistant", "5")],
    ),
    ("prompt/completion", {"prompt": "2+2?", "completion": "4"}, ASKED),
    (
        "prompt/completion",
        {"prompt": [{"role": "user", "content": "2+2?"}], "completion": [{"role": "assistant", "content": "4"}]},
        ASKED,
    ),
    ("question/answer", {"question": "2+2?", "answer": "4"}, ASKED),
    ("question/response", {"Question": "2+2?", "Complex_CoT": "2 + 2", "Response": "4"}, THOUGHTFUL),
    ("prompt/response", {"system_prompt": "", "prompt": "2+2?", "reasoning": " 2 + 2\n", "response": "4"}, THOUGHTFUL),
    # A table made of files of several shapes has nulls in the columns of the others.
    ("prompt/completion", {"messages": None, "prompt": "2+2?", "completion": "4", "thinking": None}, ASKED),
]


@pytest.mark.parametrize(("name", "row", "expected"), SHAPES, ids=[f"{i}-{s[0]}" for i, s in enumerate(SHAPES)])
def test_shapes_are_found(name: str, row: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert turns(row) == expected
    assert read_row(row, "d:1").format == name


@pytest.mark.parametrize(
    "answer",
    [
        {"content": "4", "reasoning_content": " 2 + 2 \n"},
        {"content": "4", "thinking": "2 + 2"},
        {"content": "4", "thought": "2 + 2", "tool_calls": None},
        {"content": [{"type": "thinking", "thinking": "2 + 2"}, {"type": "text", "text": "4"}]},
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "2 + 2"}]},
                {"type": "text", "text": "4"},
            ]
        },
        {"content": THOUGHT, "reasoning_content": "2 +\n2"},
        {"content": THOUGHT},
        {"content": THOUGHT.replace("think>", "thinking>")},
        {"content": THOUGHT.replace("think>", "Thought>")},
        {"content": THOUGHT.removeprefix("<think>")},
        {"content": THOUGHT.replace("<think>", "[THINK]").replace("</think>", "[/THINK]")},
        {"content": THOUGHT.replace("<think>", "<|channel>thought").replace("</think>", "<channel|>")},
        {"content": "<|begin_of_thought|>\n2 + 2\n<|end_of_thought|>\n\n<|begin_of_solution|>4<|end_of_solution|>"},
    ],
)
def test_thoughts_however_written(answer: dict[str, Any]) -> None:
    row = {"messages": [HI, {"role": "assistant", **answer}]}
    assert turns(row)[1] == ("assistant", THOUGHT)
    assert read_row(row, "d:1").spelling is not None


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "Write `</think>` to end it.",
        "```\n</think>\n```\nis how it ends",
        "The tag <reasoning>a</reasoning> stands for itself here",
        "<think>never closed",
    ],
)
def test_what_is_no_thought_stays(text: str) -> None:
    assert canonical(text)[0] == text


@given(thought=st.text("ab \n`", max_size=12), answer=st.text("cd \n", max_size=12))
def test_respelling_keeps_every_letter(thought: str, answer: str) -> None:
    text, _ = canonical(f"<thinking>{thought}</thinking>{answer}")
    kept = text.replace("<think>", "").replace("</think>", "").replace("<thinking>", "").replace("</thinking>", "")
    assert kept == thought + answer


def test_columns_that_nothing_was_made_of_are_named() -> None:
    row = {"id": 7, "messages": [{**HI, "name": "Ann"}], "tags": [], "source": None}
    assert read_row(row, "d:1").ignored == {"id", "name of a turn"}
    used = {"instruction": "a", "input": "b", "output": "c", "system": "d", "reasoning": "e"}
    assert read_row(used, "d:1").ignored == set()


def row(*messages: object) -> dict[str, Any]:
    return {"messages": list(messages)}


BAD_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"text": "a", "id": 1}, "no conversation in the row (its keys: 'text', 'id')"),
    ({"chosen": [], "rejected": []}, "no conversation in the row (its keys: 'chosen', 'rejected')"),
    ({}, "no conversation in the row (its keys: none)"),
    ({"messages": {}}, "'messages' is an object, not a list"),
    ({"messages": None}, "'messages' is null, not a list"),
    ({"messages": []}, "'messages' is empty"),
    (row("hello"), "message 1 is a string, not an object"),
    (row({"content": "a"}), "message 1 has no role"),
    (row(HI, {"role": "bot"}), 'message 2 has the unknown role "bot"'),
    (row({"role": ["user"]}), 'message 1 has the unknown role ["user"]'),
    (row({"from": "alien", "value": "a"}), 'message 1 has the unknown role "alien"'),
    (row({"role": "tool", "content": "a"}), "message 1 is a tool's ('tool')"),
    (row({"role": "user", "content": 3}), "message 1: its content is a number, not text"),
    (row({"role": "user", "content": True}), "message 1: its content is a boolean, not text"),
    (row({"role": "user", "content": [{"type": "image"}]}), "message 1: its content holds a part of type 'image'"),
    (row({"role": "user", "content": [{"type": "thinking", "thinking": "a"}]}), "message 1 holds a thought, but"),
    (row({"role": "assistant", "content": "a", "thinking": 5}), "message 1: its thought is a number, not text"),
    (row({"role": "assistant", "content": THOUGHT, "thinking": "else"}), "message 1 has one thought in its text and"),
    (row({"role": "assistant", "content": "", "tool_calls": [{}]}), "message 1 calls tools"),
    (row({"role": "assistant", "content": "", "weight": 0}), "message 1 has weight 0"),
    (row({"role": "user", "content": json.loads('"\\ud800"')}), "message 1 holds half of a surrogate pair"),
    ({"prompt": "a", "completion": 4}, "'completion' is a number, not text"),
    ({"prompt": "a", "completion": ["b"]}, "'completion' is a list, not text"),
    ({"instruction": "a", "input": 3, "output": "b"}, "'input' is a number, not text"),
    ({"instruction": "a", "output": "b", "history": [["c"]]}, "its history is not pairs of texts"),
    ({"system": "a", "messages": [{"role": "system", "content": "b"}]}, "one system text in a column and another"),
    ({"system": 3, "messages": [HI]}, "its system text is a number, not text"),
]


@pytest.mark.parametrize(("bad", "message"), BAD_ROWS, ids=[message[:40] for _, message in BAD_ROWS])
def test_bad_rows_are_named(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        conversation_of(bad, "d.jsonl:2")
    assert caught.value.message.startswith(f"d.jsonl:2: {message}")
    assert "\n" not in caught.value.message + caught.value.hint
    assert caught.value.hint
