"""Reading graded prompts and conversations, and the complaint for every way a row can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ftllm.conversations import Message
from ftllm.errors import UserError
from ftllm.evals.tasks import EvalData, all_tags, load

GOOD: dict[str, Any] = {"id": "a", "prompt": "1+1?", "answer": "2", "grade": "number", "tags": ["easy", "add"]}
TALK: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}


def write(path: Path, *rows: Any) -> Path:
    file = path / "data.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return file


def load_one(path: Path) -> EvalData:
    return load([path])


def test_graded_prompts(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    data = load_one(write(tmp_path, GOOD, {"messages": messages, "answer": 4, "grade": "number", "tags": "easy"}))
    first, second = data.prompts
    assert (first.id, first.messages, first.answer, first.grade) == ("a", (Message("user", "1+1?"),), "2", "number")
    assert (second.id, second.answer, second.tags) == (second.source, "4", ("easy",))
    assert second.messages == (Message("system", "Be brief."), Message("user", "2+2?"))
    assert data.samples == ()
    assert all_tags(data.prompts) == ["easy", "add"]


def test_conversations_and_rows_that_are_both(tmp_path: Path) -> None:
    data = load_one(write(tmp_path, TALK, {**TALK, "answer": "hello", "grade": "contains", "tags": ["greet"]}))
    assert [prompt.messages for prompt in data.prompts] == [(Message("user", "Hi"),)]
    assert [sample.conversation.messages[-1].content for sample in data.samples] == ["Hello!", "Hello!"]
    assert [sample.tags for sample in data.samples] == [(), ("greet",)]


def test_conversations_in_a_json_array(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text(json.dumps([TALK, TALK]), encoding="utf-8")
    assert len(load_one(file).samples) == 2


def test_limit_spreads_over_the_file(tmp_path: Path) -> None:
    data = load_one(write(tmp_path, *({**GOOD, "id": i} for i in range(10)), TALK))
    assert [prompt.id for prompt in data.limited(3).prompts] == ["0", "3", "6"]
    assert data.limited(None) == data
    assert len(data.limited(50).prompts) == 10
    assert len(data.limited(1).samples) == 1


@pytest.mark.parametrize(
    ("row", "says", "hints"),
    [
        ({**GOOD, "answer": None}, "no 'answer'", "give"),
        ({**GOOD, "answer": True}, "no 'answer'", "give"),
        ({**GOOD, "answer": " "}, "no 'answer'", "give"),
        ({**GOOD, "answer": "two"}, "holds no number", "number"),
        ({**GOOD, "grade": "exactly"}, "unknown grade 'exactly'", "'exact'"),
        ({**GOOD, "grade": "zzz"}, "unknown grade 'zzz'", "last_line"),
        ({"prompt": "1+1?", "answer": "2"}, "no 'grade'", "exact"),
        ({**GOOD, "prompt": ""}, "no text in 'prompt'", "give"),
        ({**GOOD, "prompt": 5}, "no text in 'prompt'", "give"),
        ({"answer": "2", "grade": "exact"}, "no text in 'prompt'", "give"),
        ({**GOOD, "tags": [1]}, "'tags' is not", "easy"),
        ({**GOOD, "id": [1]}, "'id' is not", "give"),
        ({**GOOD, **TALK}, "both", "one"),
        (
            {"answer": "2", "grade": "exact", "messages": [{"role": "assistant", "content": "x"}]},
            "no user turn",
            "user",
        ),
        ({"messages": [{"role": "user", "content": "x"}]}, "no assistant turn", "assistant"),
        ({"text": "x"}, "neither", "give"),
    ],
)
def test_complaints_name_file_and_line(tmp_path: Path, row: dict[str, Any], says: str, hints: str) -> None:
    file = write(tmp_path, {**GOOD, "id": "first"}, row)
    with pytest.raises(UserError) as caught:
        load_one(file)
    assert caught.value.message.startswith(f"{file}:2: ")
    assert says in caught.value.message
    assert hints in caught.value.hint


def test_a_repeated_id_names_both_lines(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD, {**GOOD, "id": "b"}, GOOD)
    with pytest.raises(UserError, match=r"data\.jsonl:3: the id 'a' is taken by .*data\.jsonl:1"):
        load_one(file)


def test_a_line_that_is_not_json(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"id": "a"\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"data\.jsonl:1"):
        load_one(file)


def test_several_files_share_one_space_of_ids(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    first, second = write(tmp_path, GOOD), write(tmp_path / "b", {**GOOD, "id": "b"}, TALK)
    data = load([first, second])
    assert ([prompt.id for prompt in data.prompts], len(data.samples)) == (["a", "b"], 1)
    with pytest.raises(UserError, match="taken by"):
        load([first, first])
