"""`ftllm train` as typed: configuration printed, dry runs, refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ftllm.cli.main import main

NANO = Path(__file__).parents[2] / "models" / "nano"


class Program:
    """Runs the program in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch = monkeypatch
        self.capsys = capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        self.capsys.readouterr()
        self.monkeypatch.setattr(sys, "argv", ["ftllm", "train", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        output = self.capsys.readouterr()
        return int(caught.value.code or 0), output.out, output.err


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Program:
    monkeypatch.chdir(tmp_path)
    return Program(monkeypatch, capsys)


@pytest.fixture
def config(tiny: Path, data: Path, tmp_path: Path) -> Path:
    (tmp_path / "settings").mkdir()
    path = tmp_path / "settings" / "ft.yaml"
    path.write_text(f"model: {tiny}\ndata: ../here.jsonl\nbatch_size: 4\n")
    (tmp_path / "here.jsonl").write_bytes(data.read_bytes())
    return path


def test_printed_configuration_prints_itself(program: Program, config: Path, tmp_path: Path) -> None:
    code, printed, _ = program(config, "--set", "learning_rate=1e-3", "--preset", "sft", "--print-config")
    assert code == 0
    assert f"data: [{tmp_path / 'here.jsonl'}]" in printed
    assert "learning_rate: 0.001" in printed
    assert "  unit: none" in printed
    again = tmp_path / "elsewhere.yaml"
    again.write_text(printed)
    assert program(again, "--print-config") == (0, printed, "")


def test_options_are_relative_to_where_one_is(program: Program, tiny: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "base").symlink_to(tiny)
    (tmp_path / "d.jsonl").write_bytes(data.read_bytes())
    code, printed, _ = program("--model", "base", "--data", "d.jsonl", "--eval", "d.jsonl", "--print-config")
    assert code == 0
    assert f"model: {tiny}" in printed
    assert f"eval: {tmp_path / 'd.jsonl'}" in printed


def test_refusals_are_a_line_and_a_hint(program: Program, config: Path, tmp_path: Path) -> None:
    cases: list[tuple[list[Any], str, str]] = [
        ([config, "--set", "learning_rte=1"], "--set learning_rte: unknown key", "did you mean learning_rate"),
        ([], "no model given", "name one: --model PATH"),
        (["--model", "x/y/z", "--data", "here.jsonl"], f"no model directory {tmp_path}/x/y/z", "give a directory"),
        ([config, "--data", "none.jsonl"], f"{tmp_path}/none.jsonl does not exist", "give a file, a directory"),
        (["none.yaml"], "none.yaml: no such file", "give the path"),
        ([config, "--name", "../x"], "'../x' is not a run name", "use letters"),
        (["--resume"], "no unfinished run in runs", "start one"),
        (["--resume", "--name", "x"], "no run x in runs", "`--runs DIR`"),
        (["mine.jsonl"], "mine.jsonl is no configuration but data", "give it with --data mine.jsonl"),
        ([config, "--resume"], f"--resume goes on with the run's own settings, and cannot take {config}", "leave it"),
        (["--resume", "--set", "epochs=9"], "--resume goes on with the run's own settings, and cannot take --set", ""),
    ]  # fmt: skip
    for arguments, message, hint in cases:
        code, out, err = program(*arguments)
        lines = err.splitlines()
        assert (code, out) == (2, ""), arguments
        assert lines[0].startswith(f"error: {message}"), arguments
        assert lines[1].startswith(f"hint: {hint}"), arguments
        assert len(lines) == 2
    assert not list((tmp_path).glob("runs/*"))


def test_dry_run_shows_what_would_be_trained(program: Program, config: Path, tmp_path: Path) -> None:
    code, out, _ = program(config, "--dry-run", "--eval", "25%", "--set", "epochs=4")
    assert code == 0
    for expected in (
        "here.jsonl (messages, 12 conversations)",
        "9 to train, 3 held out",
        "12 (3 an epoch)",
        "of 126 units move",
        "noised  ",
        "[[<|",
        "backend: hf",
        "precision: float32",
        "here.jsonl:",
        "learning_rate: 2.0e-05",
        "transformers 5.",
    ):
        assert expected in out, expected
    assert not (tmp_path / "runs").exists()


def test_dry_run_names_the_format_and_every_row_left_out(program: Program, tiny: Path, tmp_path: Path) -> None:
    rows = [{"instruction": "Say it", "output": f"<thinking>{'so ' * n}</thinking>it"} for n in (1, 99, 2, 99)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"instruction": "no"}]))
    given = ["--model", tiny, "--data", "a.jsonl", "--dry-run", "--set", "max_length=64", "--set", "bad_rows=drop"]
    code, out, _ = program(*given)
    lines = [line.strip() for line in out.splitlines()]
    assert code == 0
    assert f"data      {tmp_path}/a.jsonl (Alpaca, 4 conversations)" in lines
    start = lines.index("left out: 3")
    assert [line.partition(": ")[0] for line in lines[start + 1 : start + 4]] == [
        f"{tmp_path}/a.jsonl:{number}" for number in (2, 4, 5)
    ]
    assert lines[start + 1].endswith("tokens, beyond max_length 64")
    assert "no conversation in the row" in lines[start + 3]
    assert sum("<thinking> (4 rows)" in line for line in lines) == 1


def test_dry_run_as_json_agrees_with_the_model(program: Program, config: Path, tiny: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    code, out, _ = program(config, "--dry-run", "--json", "--set", "max_length=64", "--set", "preset=sft")
    assert code == 0
    facts = json.loads(out.splitlines()[-1])
    assert (facts["event"], facts["rows"] + len(facts["dropped"]), facts["share_moved"]) == ("done", 12, 0)
    model = AutoModelForCausalLM.from_pretrained(tiny)
    assert facts["base"]["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert facts["memory"]["weights"] == 4 * facts["base"]["parameters"]
    tuned = get_peft_model(
        model,
        LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
    )
    trainable = sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
    assert facts["memory"]["adapter"] == 16 * trainable
    assert facts["memory"]["total"] == sum(
        facts["memory"][part] for part in ("weights", "adapter", "activations", "program")
    )


def test_help_has_examples(program: Program) -> None:
    code, out, _ = program("--help")
    assert code == 0
    assert "ftllm train models/nano/ft.yaml" in out
