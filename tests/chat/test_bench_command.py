"""`ftllm bench` from outside, on the scripted model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ftllm", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


def test_figures_that_hang_together(scripted: Path) -> None:
    done = bench(str(scripted), "--length", "96", "--length", "700", "--tokens", "16", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["model"] == str(scripted)
    assert report["size_bytes"] > scripted.stat().st_size * 0.9
    assert report["memory_bytes"] > report["size_bytes"]
    assert report["n_ctx"] >= 700 + 16
    assert 0 < report["load_seconds"] < report["start_seconds"]
    assert "CPU" in report["placement"] or "GPU" in report["placement"]
    short, long = report["readings"]
    for reading, length in ((short, 96), (long, 700)):
        assert abs(reading["prompt_tokens"] - length) <= max(10, length // 15)
        assert reading["generated"] == 16  # though the model ends its turn earlier
        assert reading["prompt_speed"] > 0
        assert reading["generation_speed"] > 0
        # the second turn: its message and what surrounds it, letter by letter, and not the first turn's
        assert reading["warm_evaluated"] < 60
        assert reading["first_token_cold"] >= reading["prompt_tokens"] / reading["prompt_speed"]
    assert long["first_token_warm"] < long["first_token_cold"]


def test_a_table_for_people(scripted: Path) -> None:
    done = bench(str(scripted), "--length", "64", "--tokens", "4")
    assert done.returncode == 0, done.stderr
    assert "read tokens/s  write tokens/s  first token cold s  warm s" in done.stdout
    assert "on the CPU" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.gguf",), "missing.gguf"),
        (("--gpu-layers", "many"), "--gpu-layers many: not a number"),
        (("--length", "9000"), "do not fit"),
        (("--length", "3"), "--length"),
    ],
)
def test_what_cannot_be(scripted: Path, arguments: tuple[str, ...], message: str) -> None:
    given = arguments if arguments[0].endswith("gguf") else (str(scripted), *arguments)
    done = bench(*given)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
