"""`ftllm eval` end to end, on models whose replies and likelihoods are known exactly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import OFF_CHAIN, ON_CHAIN, TEMPLATE, write_chain

ROOT = Path(__file__).resolve().parent.parent.parent
FOUR = {"id": "four", "prompt": "hello", "answer": "4", "grade": "exact", "tags": ["four"]}
FIVE = {"id": "five", "prompt": "two", "answer": "5", "grade": "number", "tags": ["five"]}
TALK = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "4"}]}
SHARES = ("accuracy", "think_rate", "unclosed", "looping", "cut")
TOKENS = ("thought_tokens", "answer_tokens")


def ftllm_eval(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ftllm", "eval", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def report_of(*arguments: Any) -> dict[str, Any]:
    done = ftllm_eval(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(map(json.dumps, [FOUR, FIVE, {**FOUR, "id": "again"}, TALK])), encoding="utf-8")
    return file


def test_the_whole_report(ggufs: dict[str, Path], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    report = report_of(
        ggufs["thinker"], ggufs["looper"], "--against", ggufs["plain"], "--data", data, "--max-tokens", 60, "--out", out
    )
    plain, thinker, looper = report["graded"]
    assert [model["model"] for model in report["graded"]] == ["plain", "thinker", "looper"]
    shares = {model["model"]: [model["overall"][key]["value"] for key in SHARES] for model in report["graded"]}
    assert shares["plain"] == pytest.approx([1 / 3, 0, 0, 0, 0])
    assert shares["thinker"] == pytest.approx([2 / 3, 1, 0, 0, 0])
    assert shares["looper"] == pytest.approx([0, 1, 1, 1, 1])
    tokens = {model["model"]: [model["overall"][key]["value"] for key in TOKENS] for model in report["graded"]}
    assert tokens == {"plain": [0, 1], "thinker": [3, 1], "looper": [60, 0]}
    assert thinker["tags"]["four"]["accuracy"]["value"] == 1
    assert thinker["tags"]["five"]["difference"]["accuracy"]["value"] == -1
    assert looper["overall"]["difference"]["thought_tokens"] == {"value": 60, "low": 60, "high": 60}
    assert "difference" not in plain["overall"]

    scores = {scored["model"]: scored["overall"]["nll_per_token"]["value"] for scored in report["likelihood"]}
    # The assistant's tokens are "4" after a line's end, which no chain has, and the end of the turn after "4".
    assert scores["thinker"] == pytest.approx((OFF_CHAIN + ON_CHAIN) / 2, abs=1e-4)
    replies = json.loads(out.read_text())["replies"]
    assert len(replies) == 9
    assert (replies[3]["model"], replies[3]["thought"], replies[3]["answer"]) == ("thinker", "2+2 is 4", "4")


def test_a_run_is_asked_on_the_day_of_its_training(tmp_path: Path) -> None:
    """The template writes another word on any other day, and each word leads to another answer."""
    by_day = "{{ 'four' if strftime_now('%Y-%m-%d') == '2001-02-03' else 'five' }}"
    template = TEMPLATE.replace("model\n{% endif %}", by_day + "{% endif %}")
    assert by_day in template
    chain = {"four": "4", "4": "<end_of_turn>"}
    run = tmp_path / "runs" / "mine"
    (run / "gguf").mkdir(parents=True)
    manifest = {"status": "finished", "base": {"path": str(tmp_path)}, "config": {"date": "2001-02-03"}}
    (run / "manifest.json").write_text(json.dumps(manifest))
    theirs = write_chain(run / "gguf" / "theirs.gguf", chain, template)
    alone = write_chain(tmp_path / "alone.gguf", chain, template)
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps(FOUR))
    for models, right in (((run,), [1]), ((theirs,), [1]), ((alone,), [0]), ((alone, run), [1, 1])):
        report = report_of(*models, "--data", data, "--max-tokens", 4)
        assert [model["overall"]["accuracy"]["value"] for model in report["graded"]] == right


def test_tables_for_people(ggufs: dict[str, Path], data: Path) -> None:
    done = ftllm_eval(ggufs["thinker"], "--data", data, "--limit", 2)
    assert done.returncode == 0, done.stderr
    assert "overall (2)" in done.stdout
    assert "think rate" in done.stdout
    assert "nats per token" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing.gguf"], "no model file"),
        (["{thinker}"], "nothing says what to measure thinker on"),
        (["{thinker}", "--data", "nothing.jsonl"], "nothing.jsonl does not exist"),
        (["{bad}", "--data", "{data}"], "bad.gguf"),
        (["--runs", "{empty}"], "no finished run"),
        (["{thinker}", "--data", "{data}", "--limit", "0"], "--limit"),
    ],
)
def test_bad_input_is_one_line_and_a_hint(
    ggufs: dict[str, Path], data: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(ggufs["plain"].read_bytes()[:2000])
    (tmp_path / "empty").mkdir()
    known = {"thinker": ggufs["thinker"], "data": data, "bad": bad, "empty": tmp_path / "empty"}
    done = ftllm_eval(*(argument.format(**known) for argument in arguments))
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert says in error
    assert hint.startswith("hint: ")
