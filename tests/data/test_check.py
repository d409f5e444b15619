"""What is said of a data set: each kind of problem with its line, and figures a person can count."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

import pytest

from ftllm.data.check import KINDS, Checked, Lengths, check
from ftllm.render import render
from ftllm.vocabulary import DirectoryVocabulary, from_directory

NANO = Path(__file__).parents[2] / "models" / "nano"


@pytest.fixture(scope="module")
def vocabulary() -> DirectoryVocabulary:
    return from_directory(NANO)


def turns(*contents: str, roles: str = "ua") -> dict[str, Any]:
    names = {"u": "user", "a": "assistant", "s": "system"}
    return {"messages": [{"role": names[r], "content": c} for r, c in zip(roles, contents, strict=True)]}


def checked(tmp_path: Path, *rows: dict[str, Any] | str, **options: Any) -> Checked:
    path = tmp_path / "d.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return check([str(path)], **options)


def problems(found: Checked) -> list[tuple[str, int, str]]:
    return [(problem.kind, int(problem.source.rpartition(":")[2]), problem.message) for problem in found.problems]


GOOD = turns("one two three", "<think>\nhm\n</think>\nfour five")


def test_good_rows(tmp_path: Path) -> None:
    found = checked(tmp_path, GOOD, turns("be kind", "six", "seven", roles="sua"))
    assert found.problems == ()
    assert (found.conversations, found.turns, found.thinking) == (2, {"user": 2, "assistant": 2, "system": 1}, 1)
    assert (found.lengths.unit, list(found.lengths.sorted), found.trained) == ("words", [4, 8], None)
    assert found.lengths.longest_at == f"{tmp_path}/d.jsonl:1"
    assert found.as_json()["ok"]


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        ("{", "not a conversation", "not JSON: Expecting property name"),
        (turns("hello", "hi", roles="ua") | {"messages": "x"}, "not a conversation", "'messages' is a string"),
        ({"messages": [{"role": "wizard", "content": ""}]}, "not a conversation", "message 1 has the unknown role"),
        ({"prompt": "a", "completion": "b"}, "not a conversation", "this row is prompt/completion, but the file began"),
        (turns("hello", "<think>hm"), "unclosed thought", "message 2: a thought is opened and never closed"),
        (turns("hello", roles="u"), "no answer", "no assistant turn"),
        (turns("", "hi"), "empty turn", "message 1 (user) is empty"),
        (turns("hello", " \n"), "empty turn", "message 2 (assistant) is empty"),
        (turns("hello", "<think>hm</think>\n"), "empty turn", "message 2 is a thought without an answer"),
        (turns("a", "b", "c", roles="uua"), "role order", "messages 1 and 2 are both the user's"),
        (turns("a", "b", "c", roles="uaa"), "role order", "messages 2 and 3 are both the assistant's"),
        (turns("a", "b", "c", roles="uas"), "role order", "message 3 is a system turn"),
        (turns("a", "b", "c", roles="aua"), "role order", "message 1: the assistant speaks first"),
        (turns("a", "b", "c", roles="uau"), "role order", "message 3, the last, is the user's"),
        (GOOD, "duplicate", "the same as "),
    ],
)
def test_each_problem_has_its_line(tmp_path: Path, bad: Any, kind: str, message: str) -> None:
    found = checked(tmp_path, GOOD, "", bad, turns("last", "row"))
    [(found_kind, line, said)] = problems(found)
    assert (found_kind, line) == (kind, 3)
    assert said.startswith(message)
    assert bool(found.errors) == (KINDS[kind] == "error")
    assert found.as_json()["counts"] == {kind: 1}


def test_every_kind_is_found_by_some_test() -> None:
    marks = test_each_problem_has_its_line.pytestmark  # type: ignore[attr-defined]
    assert {kind for _, kind, _ in marks[0].args[1]} | {"refused", "too long"} == set(KINDS)


def test_a_row_may_have_several_problems_and_a_twin_in_another_file(tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text(json.dumps(GOOD) + "\n")
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(turns("", "", "x", roles="uua")) + "\n" + json.dumps(GOOD) + "\n")
    found = check([str(path), str(tmp_path / "other.jsonl")])
    assert [(problem.kind, problem.source.rpartition("/")[2]) for problem in found.problems] == [
        ("empty turn", "d.jsonl:1"),
        ("empty turn", "d.jsonl:1"),
        ("role order", "d.jsonl:1"),
        ("duplicate", "other.jsonl:1"),
    ]


def test_tokens_are_those_of_the_rows_that_would_be_trained(vocabulary: DirectoryVocabulary) -> None:
    from ftllm.data.sources import load_conversations

    found = check([str(NANO / "ft.jsonl")], vocabulary=vocabulary, max_length=150)
    rows = [row for one in load_conversations(NANO / "ft.jsonl") for row in render(one, vocabulary)]
    assert list(found.lengths.sorted) == sorted(len(row.input_ids) for row in rows)
    assert found.trained == sum(row.trained for row in rows)
    long = [(row.source, len(row.input_ids)) for row in rows if len(row.input_ids) > 150]
    assert long
    assert [(p.kind, p.source, p.message) for p in found.problems] == [
        ("too long", source, f"{tokens} tokens, beyond max_length 150") for source, tokens in long
    ]


def test_what_the_model_refuses_is_said_once(tmp_path: Path, vocabulary: DirectoryVocabulary) -> None:
    """Nano's template wants user and assistant to take turns; an open thought is refused by any."""
    found = checked(tmp_path, GOOD, turns("a", "b", roles="au"), turns("a", "<think>b"), vocabulary=vocabulary)
    assert [(kind, line) for kind, line, _ in problems(found)] == [
        ("role order", 2), ("role order", 2), ("refused", 2), ("unclosed thought", 3),
    ]  # fmt: skip
    assert len(found.lengths.sorted) == 1


def test_other_thought_tags_than_the_models_are_noted(tmp_path: Path, vocabulary: DirectoryVocabulary) -> None:
    row = turns("a", "<thinking>x</thinking>b")
    assert checked(tmp_path, row, row, vocabulary=vocabulary).notes == (
        "the data writes thoughts with <thinking> (2 rows); they are trained between the model's own tags, "
        "<think> and </think>",
    )
    assert checked(tmp_path, GOOD, vocabulary=vocabulary).notes == ()


def test_histogram_and_quantiles() -> None:
    lengths = Lengths("words", array("q", [0, 1, 2, 3, 4, 5, 8, 9, 17, 17]), "x:1")
    assert lengths.histogram() == [(0, 1, 2), (2, 2, 1), (3, 4, 2), (5, 8, 2), (9, 16, 1), (17, 32, 2)]
    assert [lengths.quantile(share) for share in (0.1, 0.5, 0.8, 0.95, 1)] == [0, 4, 9, 17, 17]
    assert Lengths("words", array("q"), "").histogram() == []
    assert Lengths("words", array("q", [100]), "").histogram() == [(65, 128, 1)]
