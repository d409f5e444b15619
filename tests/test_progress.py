"""Progress without a bar: a line now and then, and nothing that a pipe cannot take."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from ftllm import progress
from ftllm.progress import Reporter, minutes, paced


def test_minutes() -> None:
    assert [minutes(seconds) for seconds in (5.9, 65, 3600 + 120 + 7)] == ["0:05", "1:05", "1:02:07"]


def test_quick_work_says_every_ten_seconds_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    output = io.StringIO()
    reporter = Reporter(console=Console(file=output, width=200))
    with reporter.task("rendering", 400, "rows") as task, reporter.task("checking", None, "rows") as endless:
        advance, count = paced(task, "rendered"), paced(endless, "checked")
        for done in range(1, 401):
            now = done / 10
            advance(done)
            count(done)
    assert output.getvalue().splitlines() == [
        "rendered 100 of 400 rows, 0:30 left",
        "checked 100 rows",
        "rendered 200 of 400 rows, 0:20 left",
        "checked 200 rows",
        "rendered 300 of 400 rows, 0:10 left",
        "checked 300 rows",
        "checked 400 rows",
    ]


def test_json_lines_come_once_a_second(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    reporter = Reporter(json_lines=True)
    with reporter.task("rendering", 25, "rows") as task:
        advance = paced(task, "rendered")
        for done in range(1, 26):
            now = done / 10
            advance(done)
    lines: list[dict[str, Any]] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["completed"] for line in lines] == [10, 20, 25]


def test_what_others_print_is_not_among_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(json_lines=True)
    with reporter.alone():
        print("[INFO] a greeting")
        with reporter.alone():
            reporter.event("start")
        reporter.event("done")
    print("after")
    out, err = capsys.readouterr()
    assert [json.loads(line)["event"] for line in out.splitlines()[:2]] == ["start", "done"]
    assert (out.splitlines()[2:], err) == (["after"], "[INFO] a greeting\n")
