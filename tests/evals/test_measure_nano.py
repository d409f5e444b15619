"""The model card's table, from made-up measurements."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parent.parent.parent / "scripts" / "measure_nano.py"
FAMILIES = ("add", "sort")


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("measure_nano", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def part(n: int, accuracy: float) -> dict[str, Any]:
    values = {"accuracy": accuracy, "think_rate": accuracy, "unclosed": 0.0, "looping": 0.0}
    values |= {"thought_tokens": 100 * accuracy, "answer_tokens": 5.0}
    return {"n": n, **{key: {"value": value, "low": value, "high": value} for key, value in values.items()}}


def report(easy: float, hard: float) -> dict[str, Any]:
    tags = {
        "easy": part(8, easy),
        "greet": part(8, easy),
        "hard": part(12, hard),
        **{name: part(6, hard) for name in FAMILIES},
    }
    return {"graded": {"overall": part(20, hard), "tags": tags}}


def work(hard: float) -> dict[str, Any]:
    return {
        "graded": {
            "overall": part(12, hard),
            "tags": {"work": part(12, hard), **{name: part(6, hard) for name in FAMILIES}},
        }
    }


def test_table(script: Any) -> None:
    measured = {
        "base": report(1.0, 0.05),
        "base, asked to show its work": work(0.95),
        "arms": {"ft": {"3407": report(0.98, 0.8), "3408": report(1.0, 0.9)}},
    }
    lines = script.as_markdown(measured).splitlines()
    assert lines[0].startswith("8 easy and 12 hard held-out prompts, greedy")
    assert lines[1] == "mean of 2 seeds (3407, 3408) with the lowest and the highest."
    base = next(line for line in lines if line.startswith("| base |"))
    assert base.split("|")[2:6] == [" 100.0 ", " 5.0 ", " 100.0 ", " 5.0 "]
    trained = next(line for line in lines if line.startswith("| FT (preset `ft`)"))
    assert trained.split("|")[2:4] == [" 99.0 (98.0..100.0) ", " 85.0 (80.0..90.0) "]
    assert trained.split("|")[7] == " 90.0 (85.0..95.0) ", "thought and answer together"
    assert "| | add | sort |" in lines
    assert "| base, asked to show its work | 95.0 | 95.0 |" in lines
    tables = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in tables[:4]} == {10}


def test_table_goes_between_the_markers(script: Any, tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n", encoding="utf-8")
    for table in ("| new |", "| newer |"):
        script.put_between_markers(card, table)
    assert card.read_text(encoding="utf-8") == f"before\n{script.BEGIN}\n| newer |\n{script.END}\nafter\n"
