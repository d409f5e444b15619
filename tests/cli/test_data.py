"""`ftllm data` as typed: exit codes, what is printed where, JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ftllm.cli.main import main

NANO = Path(__file__).parents[2] / "models" / "nano"
Program = Callable[..., tuple[int, str, str]]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Program:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["ftllm", "data", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        output = capsys.readouterr()
        return int(caught.value.code or 0), output.out, output.err

    return run


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Twelve rows that leave a thought open, among a good one and its twin."""
    good, bad = ({"prompt": "Say it", "completion": text} for text in ("it", "<think>"))
    path = tmp_path / "mixed.jsonl"
    rows = [good, good, *({**bad, "prompt": f"Say {i}"} for i in range(12))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_good_data_is_zero(program: Program) -> None:
    code, out, err = program("check", NANO / "ft.jsonl", "--model", NANO)
    assert (code, err) == (0, "")
    assert f"{NANO / 'ft.jsonl'} (messages, 248 conversations)" in out
    assert "248 assistant, 248 user" in out
    assert "in 124 of 248 answers (<think>)" in out
    assert "error" not in out


def test_bad_data_is_two_with_every_line(program: Program, mixed: Path) -> None:
    code, out, err = program("check", mixed.name)
    assert code == 2
    assert err.splitlines() == [
        "error: 12 rows cannot be trained on",
        "hint: mend or remove them, or leave them out of training with --set bad_rows=drop",
    ]
    assert "(prompt/completion, 14 conversations)" in out
    assert "mixed.jsonl:2: the same as mixed.jsonl:1" in out
    assert "mixed.jsonl:12: message 2: a thought is opened and never closed" in out
    assert "and 2 more (--verbose lists them)" in out
    assert "mixed.jsonl:14" not in out
    assert "mixed.jsonl:14" in program("check", mixed.name, "--verbose")[1]
    quiet = program("check", mixed.name, "--quiet")[1]
    assert "conversations" not in quiet
    assert "mixed.jsonl:2: the same" in quiet


def test_check_as_json(program: Program, mixed: Path) -> None:
    code, out, _ = program("check", mixed.name, "--json")
    found = json.loads(out)
    assert (code, found["ok"], found["counts"]) == (2, False, {"unclosed thought": 12, "duplicate": 1})
    assert found["problems"][0] == {
        "severity": "warning", "kind": "duplicate", "source": "mixed.jsonl:2", "message": "the same as mixed.jsonl:1",
    }  # fmt: skip
    assert [problem["source"] for problem in found["problems"][1:]] == [f"mixed.jsonl:{i}" for i in range(3, 15)]


def test_preview_is_in_nanos_tokens_unless_told(program: Program) -> None:
    code, out, err = program("preview", NANO / "ft.jsonl", "--line", 3)
    assert code == 0
    assert "nano's" in err
    assert "data    Please tell me how many wheels does a car have." in out
    assert "noised  Please {wheels} {car} {me} many {have.} does {how} {tell} {a}" in out
    assert "[[4|<end_of_turn>]]" in out
    assert "2 of 26 tokens trained" in out


def test_preview_takes_trainings_settings(program: Program) -> None:
    code, out, _ = program("preview", NANO / "ft.jsonl", "--preset", "sft", "--rows", 2, "--set", "loss=full", "--json")
    rows = json.loads(out)["rows"]
    assert (code, len(rows)) == (0, 2)
    for row in rows:
        assert row["before"] == row["after"]
        assert all(piece["trained"] for piece in row["rows"][0])
    first, second = (
        json.loads(program("preview", NANO / "ft.jsonl", "--line", 3, "--epoch", epoch, "--json")[1])["rows"][0]
        for epoch in (1, 2)
    )
    assert first["before"] == second["before"]
    assert first["after"] != second["after"]


def test_refusals(program: Program, mixed: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    assert mixed.name == "mixed.jsonl"
    for arguments, message in (
        (["check", "none.jsonl"], "none.jsonl does not exist"),
        (["check", "empty.jsonl"], "empty.jsonl is empty"),
        (["check"], "missing argument"),
        (["look", "mixed.jsonl"], "invalid value for"),
        (["check", "mixed.jsonl", "--model", "nowhere"], "nowhere is not a directory"),
        (["check", "mixed.jsonl", "--set", "max_lenth=3"], "--set max_lenth: unknown key"),
        (["preview", "mixed.jsonl", "mixed.jsonl"], "preview shows one"),
        (["preview", "mixed.jsonl", "--line", "99"], "mixed.jsonl: no row on line 99"),
        (["preview", "mixed.jsonl", "--set", "epochs=x"], "--set epochs: epochs is"),
    ):
        code, _, err = program(*arguments)
        assert (code, err.splitlines()[-2].startswith(f"error: {message}")) == (2, True), (arguments, err)
        assert err.splitlines()[-1].startswith("hint: "), arguments
