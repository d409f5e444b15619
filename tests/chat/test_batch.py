"""`ftllm chat --batch`: answers in order, the same as one by one, and going on after an interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_command import ROOT, chat

from ftllm.chat import batch
from ftllm.chat.batch import Journal, Result, answer_all, read_questions
from ftllm.chat.options import ChatOptions, LoadSettings, ReplyOptions
from ftllm.errors import UserError

QUESTIONS = ["T", "L", "Q", "P", "U", "E", "T", "Q"]
ANSWERS = [
    ("Let me see.", "It is 42."),
    ("", "la lila lila lila"),
    ("", "xyz"),
    ("", "Hi 🙂!"),
    ("never closed", ""),
    ("", "\x1b[31mred"),
    ("Let me see.", "It is 42."),
    ("", "xyz"),
]


def write(path: Path, questions: list[Any]) -> Path:
    rows = [row if isinstance(row, dict) else {"id": number, "prompt": row} for number, row in enumerate(questions)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers(path: Path, model: Path, options: ChatOptions, journals: Path, parallel: int = 8) -> list[Result]:
    rows = read_questions(path, options.system)
    journal = Journal(rows, model, options, journals)
    results: list[Result] = []
    answer_all(rows, model, options, journal, lambda _number, result: results.append(result), parallel=parallel)
    journal.close(remove=True)
    return results


@pytest.mark.parametrize("parallel", [1, 3])
def test_answers_are_those_of_one_by_one_in_order(scripted: Path, tmp_path: Path, parallel: int) -> None:
    options = ChatOptions(reply=ReplyOptions(max_tokens=7))
    questions = write(tmp_path / "q.jsonl", QUESTIONS)
    results = answers(questions, scripted, options, tmp_path / "journals", parallel)
    cut = {"T": ("Let me see.", ""), "P": ("", "Hi 🙂!"), "L": ("", "la lila lila lila")}
    expected = [cut.get(question, answer) for question, answer in zip(QUESTIONS, ANSWERS, strict=True)]
    assert [(result["thought"], result["answer"]) for result in results] == expected
    assert [result["stop_reason"] for result in results] == ["length", "length", *["stop"] * 4, "length", "stop"]
    assert results[2]["answer_tokens"] == 3
    assert results[0]["thought_tokens"] == 7
    assert not list((tmp_path / "journals").iterdir())


def test_thinking_is_held_to_its_budget(scripted: Path, tmp_path: Path) -> None:
    options = ChatOptions(reply=ReplyOptions(think_budget=6, max_tokens=60))
    (result,) = answers(write(tmp_path / "q.jsonl", ["R"]), scripted, options, tmp_path)
    assert (result["thought"], result["answer"]) == ("Well, hmm and hmm and\n\nTime to answer.", "So yes.")
    loops = ChatOptions(reply=ReplyOptions(loops="stop", max_tokens=4000))
    thought, answer = answers(write(tmp_path / "q.jsonl", ["R", "L"]), scripted, loops, tmp_path)
    assert thought["answer"] == "So yes."
    assert answer["stop_reason"] == "loop"
    assert answer["answer_tokens"] < 1000


def test_rows_may_hold_conversations_and_their_own_system_prompt(scripted: Path, tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "T"}, {"role": "assistant", "content": "42"}, {"role": "user", "content": "Q"}]
    rows = [{"messages": talk}, {"messages": [{"role": "system", "content": "S"}, *talk], "id": "own"}, {"prompt": "Q"}]
    options = ChatOptions(system="Be brief.")
    path = write(tmp_path / "q.jsonl", rows)
    assert [row.messages[0]["content"] for row in read_questions(path, "Be brief.")] == ["Be brief.", "S", "Be brief."]
    assert [row.id for row in read_questions(path, None)] == [None, "own", None]
    assert {result["answer"] for result in answers(path, scripted, options, tmp_path)} == {"xyz"}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"text": "x"}', "q.jsonl:2: neither 'prompt' nor 'messages'"),
        ('{"prompt": 3}', "q.jsonl:2: message 1: its content is a number"),
        ('{"prompt": " "}', "q.jsonl:2: the prompt is empty"),
        ('{"messages": []}', "q.jsonl:2: 'messages' is empty"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "q.jsonl:2: the last turn is the assistant's"),
        ('{"prompt": "x"', "q.jsonl:2: not JSON"),
        ('"x"', "q.jsonl:2: a string instead of an object"),
    ],
)
def test_a_bad_row_is_refused_before_anything_is_asked(tmp_path: Path, line: str, complaint: str) -> None:
    (tmp_path / "q.jsonl").write_text(f'{{"prompt": "T"}}\n{line}\n')
    with pytest.raises(UserError) as caught:
        read_questions(tmp_path / "q.jsonl", None)
    assert complaint in caught.value.message


def test_a_row_that_does_not_fit_costs_only_itself(scripted: Path, tmp_path: Path) -> None:
    questions = write(tmp_path / "q.jsonl", ["T", "a" * 300 + "T", "Q"])
    done = chat(scripted, "--batch", questions, "--ctx", "256")
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result.get("answer") for result in results] == ["It is 42.", None, "xyz"]
    assert [result["id"] for result in results] == [0, 1, 2]
    assert "309 tokens long" in results[1]["error"]
    assert done.returncode == 1
    assert done.stderr.startswith("error: 1 of 3 rows could not be answered")


def test_a_batch_that_was_killed_goes_on(scripted: Path, tmp_path: Path) -> None:
    questions = write(tmp_path / "q.jsonl", [*["T"] * 5, "L", "Q"])
    command = [sys.executable, "-m", "ftllm", "chat", str(scripted), "--batch", str(questions), "--parallel", "2"]
    process = subprocess.Popen([*command, "--max-tokens", "100000"], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    first = [process.stdout.readline() for _ in range(5)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [json.loads(line)["answer"] for line in first] == ["It is 42."] * 5
    (journal,) = (Path(os.environ["XDG_STATE_HOME"]) / "ftllm" / "batches").iterdir()
    kept = journal.read_text()
    journal.write_text(kept[:-3] + "\n[0, {")  # cut off while it was written
    again = subprocess.Popen(
        [*command, "--max-tokens", "100000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    assert again.stdout is not None
    assert [again.stdout.readline() for _ in range(5)] == [line.encode() for line in first]
    again.send_signal(signal.SIGINT)
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 130
    assert b"were answered before" in errors
    assert b"the same command again goes on from there" in errors
    other = chat(scripted, "--batch", questions, "--max-tokens", "20")  # asked in another way, it begins anew
    assert len(other.stdout.splitlines()) == 7
    assert "before" not in other.stderr
    assert journal.exists()


def test_a_finished_answer_is_not_asked_for_again(
    scripted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ChatOptions(reply=ReplyOptions(max_tokens=9), load=LoadSettings(n_ctx=512))
    rows = read_questions(write(tmp_path / "q.jsonl", QUESTIONS), None)
    journal = Journal(rows, scripted, options, tmp_path / "journals")
    for number in (0, 1, 3):
        journal.add(number, {"answer": f"known {number}"})
    journal.close(remove=False)
    asked: list[int] = []
    generate: Callable[..., Any] = batch.generate_batch

    def counting(model: Any, prompts: list[Any], **options: Any) -> Any:
        asked.append(len(prompts))
        return generate(model, prompts, **options)

    monkeypatch.setattr(batch, "generate_batch", counting)
    results = answers(tmp_path / "q.jsonl", scripted, options, tmp_path / "journals")
    assert asked == [5]
    assert [result["answer"] for result in results[:4]] == ["known 0", "known 1", "xyz", "known 3"]


@pytest.mark.parametrize("arguments", [("-p", "T"), ("--session", "s")])
def test_batch_stands_alone(scripted: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = chat(scripted, "--batch", write(tmp_path / "q.jsonl", ["T"]), *arguments)
    assert done.returncode == 2
    assert "--batch goes with neither" in done.stderr
