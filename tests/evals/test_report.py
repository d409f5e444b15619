"""The report of made-up replies, whose shares and means a person can count."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from ftllm.conversations import Conversation, Message
from ftllm.evals.measure import Graded, Results, Scored, Settings
from ftllm.evals.replies import Outcome
from ftllm.evals.report import as_json, replies_json
from ftllm.evals.statistics import wilson
from ftllm.evals.tables import tables
from ftllm.evals.tasks import EvalData, Prompt, Sample

EASY = tuple(Prompt(f"e{i}", (Message("user", f"easy {i}"),), "1", "exact", ("easy",), f"x:{i}") for i in range(4))
HARD = tuple(
    Prompt(f"h{i}", (Message("user", f"hard {i}"),), "1", "exact", ("hard", "add"), f"x:{i}") for i in range(6)
)
TALK = tuple(
    Sample(Conversation((Message("user", "a"), Message("assistant", "b")), f"y:{i}"), ("talk",) if i else ())
    for i in range(3)
)


def reply(prompt: Prompt, *, right: bool, thought: int, answer: int) -> Outcome:
    return Outcome(
        prompt=prompt,
        thought="so" if thought else "",
        answer="1" if right else "2",
        right=right,
        thinks=bool(thought),
        unclosed=False,
        looping=False,
        cut=False,
        thought_tokens=thought,
        answer_tokens=answer,
    )


@pytest.fixture
def results() -> Results:
    """The base answers easy prompts only and never thinks; the tuned model thinks on hard ones, and gets 5 of 6."""
    base = [reply(prompt, right=prompt in EASY, thought=0, answer=2) for prompt in EASY + HARD]
    tuned = [
        reply(prompt, right=prompt is not HARD[0], thought=30 if prompt in HARD else 0, answer=3)
        for prompt in EASY + HARD
    ]
    graded = (
        Graded("base", Path("base.gguf"), tuple(base), 1.0),
        Graded("tuned", Path("tuned.gguf"), tuple(tuned), 2.0),
    )
    scored = (
        Scored("nano", "transformers", "nano", TALK, (10.0, 20.0, 30.0), (5, 10, 15), 1.0, is_base=True),
        Scored("tuned", "transformers", "adapter", TALK, (5.0, 10.0, 15.0), (5, 10, 15), 1.0),
        Scored("tuned", "llama.cpp", "tuned.gguf", TALK, (5.0, 10.0, 18.0), (5, 10, 15), 1.0),
        Scored("other", "llama.cpp", "other.gguf", TALK, (5.0, 10.0, 18.0), (4, 10, 15), 1.0),
    )
    return Results(EvalData((Path("x.jsonl"),), EASY + HARD, TALK), Settings(), graded, scored)


def test_numbers_by_tag(results: Results) -> None:
    base, tuned = as_json(results, "base")["graded"]
    assert (base["model"], tuned["model"]) == ("base", "tuned")
    assert (tuned["overall"]["n"], tuned["overall"]["accuracy"]["value"]) == (10, 0.9)
    assert (tuned["tags"]["easy"]["n"], tuned["tags"]["easy"]["accuracy"]["value"]) == (4, 1.0)
    assert tuned["tags"]["hard"]["accuracy"]["value"] == pytest.approx(5 / 6)
    assert tuned["tags"]["hard"]["accuracy"]["low"] == wilson(5, 6).low
    assert tuned["tags"]["hard"]["think_rate"]["value"] == 1.0
    assert tuned["tags"]["easy"]["think_rate"]["value"] == 0.0
    assert tuned["overall"]["thought_tokens"]["value"] == 18.0
    assert tuned["overall"]["answer_tokens"] == {"value": 3.0, "low": 3.0, "high": 3.0}
    assert list(tuned["tags"]) == ["easy", "hard", "add"]


def test_differences_are_against_the_named_model(results: Results) -> None:
    base, tuned = as_json(results, "base")["graded"]
    assert "difference" not in base["overall"]
    assert tuned["overall"]["difference"]["accuracy"]["value"] == pytest.approx(0.5)
    assert tuned["tags"]["easy"]["difference"]["accuracy"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert "difference" not in as_json(results, None)["graded"][1]["overall"]


def test_likelihood_per_token(results: Results) -> None:
    base, tuned, quantized, other = as_json(results, None)["likelihood"]
    assert base["overall"]["nll_per_token"] == pytest.approx({"value": 2.0, "low": 2.0, "high": 2.0})
    assert (base["overall"]["tokens"], base["tags"]["talk"]["tokens"]) == (30, 25)
    assert (base["base"], base["compared_with"]) == (True, None)
    assert tuned["compared_with"] == {"model": "nano", "through": "transformers"}
    assert tuned["overall"]["difference"]["value"] == pytest.approx(-1.0)
    assert quantized["overall"]["nll_per_token"]["value"] == pytest.approx(33 / 30)
    assert other["compared_with"] is None, "another tokenizer's tokens are not comparable"


def test_the_report_is_json(results: Results) -> None:
    assert json.loads(json.dumps(as_json(results, "base"), allow_nan=False))["against"] == "base"
    replies = replies_json(results)
    assert len(replies) == 20
    assert replies[10] | {"id": "e0", "model": "tuned", "right": True, "prompt": "easy 0"} == replies[10]


def test_tables_show_what_the_report_says(results: Results) -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    for table in tables(results, "base"):
        console.print(table)
    shown = console.export_text()
    for text in (
        "90.0 [59.6, 98.2]",
        "+50.0 [",
        "hard (6)",
        "think rate",
        "2.0000",
        "-1.0000 [-1.0000, -1.0000] │ nano",
    ):
        assert text in shown, text
    assert shown.count("looping thoughts") == 1, "faults stand by tag only where there are any"
