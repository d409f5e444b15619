"""`ftllm demo`: its parts on made-up results, and the whole of it, shortened, on the nano model."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from ftllm import catalogue
from ftllm.cli import demo
from ftllm.conversations import Conversation, Message
from ftllm.errors import UserError
from ftllm.evals.measure import Graded, Results, Scored, Settings
from ftllm.evals.replies import Outcome
from ftllm.evals.tasks import EvalData, Prompt, Sample
from ftllm.runs import Run
from ftllm.train.stage import TrainResult

ROOT = Path(__file__).resolve().parent.parent.parent
TRAINED = TrainResult(Run(Path("runs/x")), 10, 0.5, 2.0, 1.5, 0.3, 60.0, 10)


def prompt(number: int, level: str, family: str) -> Prompt:
    return Prompt(f"{family}-{number}", (Message("user", f"{family} {number}?"),), "4", "exact", (level, family), "x:1")


PROMPTS = tuple(
    prompt(number, level, family)
    for level, families in (("easy", ("greet", "fact")), ("hard", ("add", "sort", "story")))
    for family in families
    for number in range(4)
)


def replies(*, thinks: bool, right: bool) -> tuple[Outcome, ...]:
    return tuple(
        Outcome(
            prompt=item,
            thought="2+2" if thinks and "hard" in item.tags else "",
            answer="4" if right or "easy" in item.tags else "5",
            right=right or "easy" in item.tags,
            thinks=thinks and "hard" in item.tags,
            unclosed=False,
            looping=False,
            cut=False,
            thought_tokens=20 if thinks and "hard" in item.tags else 0,
            answer_tokens=2,
        )
        for item in PROMPTS
    )


def results(*, scored: bool) -> Results:
    talk = tuple(Sample(Conversation((Message("assistant", "a"),), "y:1")) for _ in range(2))
    graded = (
        Graded("base", Path("base.gguf"), replies(thinks=False, right=False), 1.0),
        Graded("trained", Path("trained.gguf"), replies(thinks=True, right=True), 1.0),
    )
    likelihoods = (
        Scored("base", "llama.cpp", "base.gguf", talk, (20.0, 30.0), (10, 10), 1.0),
        Scored("trained", "llama.cpp", "trained.gguf", talk, (10.0, 20.0), (10, 10), 1.0),
    )
    return Results(EvalData((), PROMPTS, talk if scored else ()), Settings(), graded, likelihoods if scored else ())


def shown(found: Results) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(demo.before_and_after(found, TRAINED))
    return console.export_text()


def test_before_and_after() -> None:
    lines = {
        line.split("│")[1].strip(): line.split("│")[2:-1]
        for line in shown(results(scored=True)).splitlines()
        if "│" in line
    }
    assert [cell.strip() for cell in lines["right %, hard (12)"]] == ["0.0", "100.0", "+100.0 [+100.0, +100.0]"]
    assert [cell.strip() for cell in lines["right %, easy (8)"]] == ["100.0", "100.0", "+0.0 [+0.0, +0.0]"]
    assert [cell.strip() for cell in lines["thinks first %, hard (12)"]][:2] == ["0.0", "100.0"]
    assert [cell.strip() for cell in lines["nats per token (20)"]] == ["2.500", "1.500", "-1.000 [-1.000, -1.000]"]


def test_without_conversations_the_likelihood_is_the_training_s() -> None:
    assert "2.000" in shown(results(scored=False))
    assert "-0.500" in shown(results(scored=False))


def test_six_examples_of_different_kinds() -> None:
    found = demo.examples(results(scored=False))
    assert len(found) == 6
    assert ["hard" in reply.prompt.tags for reply in found] == [True, False] * 3
    assert len({reply.prompt.tags for reply in found}) == 5, "every family once before one comes again"
    assert len({reply.prompt.id for reply in found}) == 6


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.21, "4.2 s"), (59.9, "59.9 s"), (60, "1 min 00 s"), (125.9, "2 min 05 s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert demo.duration(seconds) == text


def test_without_the_nano_model_it_says_where_to_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "CLONE", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="not here") as caught:
        demo.find_nano()
    assert "clone" in caught.value.hint
    (tmp_path / "models" / "nano").mkdir(parents=True)
    (tmp_path / "models" / "nano" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"lacks model\.safetensors, ft\.yaml"):
        demo.find_nano()


def test_the_whole_demo_shortened(tmp_path: Path) -> None:
    arguments = ["--runs", str(tmp_path), "--set", "max_steps=2", "--set", "warmup_steps=0", "--limit", "6"]
    command = [sys.executable, "-m", "ftllm", "demo", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=580, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["name"] for event in events if event["event"] == "step"] == [
        "train",
        "export",
        "export the base",
        "measure",
    ]
    last = events[-1]
    assert last["event"] == "done"
    assert list(last["seconds"]) == ["train", "export", "export the base", "measure"]
    assert Path(last["gguf"]).is_file()
    assert Path(last["base"]).is_file()
    base, trained = last["report"]["graded"]
    assert (base["overall"]["n"], trained["overall"]["n"]) == (6, 6)
    assert "difference" in trained["overall"]
