"""Metrics sent elsewhere: only where asked, the same numbers, and no training lost by it."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trainings import Trainer, impatient

from ftllm.errors import UserError
from ftllm.progress import Reporter
from ftllm.runs import Run
from ftllm.train import trackers
from ftllm.train.config import resolve, to_yaml
from ftllm.train.interrupt import Interrupted
from ftllm.train.metrics import read
from ftllm.train.settings import Setting, read_yaml
from ftllm.train.stage import resume


def configured(value: Any) -> Any:
    given = {"model": "m", "data": ["d"], "report_to": value}
    return resolve([{key: Setting(setting, f"--set {key}") for key, setting in given.items()}])


def test_nothing_is_sent_unless_asked(tmp_path: Path) -> None:
    assert resolve([{key: Setting("x", "test") for key in ("model", "data")}]).report_to == ()
    assert configured("none").report_to == ()
    assert configured("tensorboard").report_to == ("tensorboard",)
    both = configured(["wandb", "trackio"])
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(both))
    assert resolve([read_yaml(path)]) == both
    with pytest.raises(UserError, match=r"report_to is .*: it must be tensorboard, wandb or trackio"):
        configured("mlflow")


def test_one_that_is_not_installed_is_named_before_anything_is_trained(
    trained: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="report_to names wandb, which is not installed") as caught:
        trained("a", report_to="wandb")
    assert caught.value.hint == "pip install wandb"
    assert not (trained.runs / "a").exists()


def test_a_failing_tracker_stops_no_training(
    trained: Trainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def __enter__(self) -> Any:
            def send(_numbers: dict[str, float], step: int) -> None:
                if step == 2:
                    raise OSError("connection lost")

            return send

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(trackers, "require", lambda _: None)
    monkeypatch.setattr(trackers, "_wandb", lambda *_: Broken())
    result = trained("a", Reporter(json_lines=True), report_to="wandb", max_steps=3)
    assert result.steps == 3
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    warned = [event["message"] for event in events if event["event"] == "warning" and "wandb" in event["message"]]
    assert warned == ["wandb failed and is left out from here on: connection lost"]
    monkeypatch.setattr(trackers, "_wandb", lambda *_: (_ for _ in ()).throw(RuntimeError("no key\nset one")))
    with pytest.raises(UserError, match="wandb cannot begin: no key set one") as caught:
        trained("b", report_to="wandb", max_steps=3)
    assert "wandb login" in caught.value.hint


def scalars(run: Run) -> dict[str, dict[int, float]]:
    """What TensorBoard shows of a run: by name and step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run.path / "tensorboard"))
    found.Reload()
    return {tag: {event.step: event.value for event in found.Scalars(tag)} for tag in found.Tags()["scalars"]}


def test_tensorboard_shows_what_the_metrics_say(trained: Trainer) -> None:
    pytest.importorskip("tensorboard")
    given = {"report_to": "tensorboard", "eval": "25%", "max_steps": 6, "save_steps": 2}
    with pytest.raises(Interrupted):
        trained("a", impatient(3), **given)
    run = resume(Run(trained.runs / "a"), Reporter(quiet=True)).run
    lines = read(run.metrics)
    shown = scalars(run)
    for key in ("loss", "learning_rate", "grad_norm", "tokens", "eval_nll"):
        assert shown[key] == pytest.approx({line["step"]: line[key] for line in lines if key in line}, rel=1e-6)


def test_wandb_keeps_it_here_when_offline(
    trained: Trainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    run = trained("a", Reporter(json_lines=True), report_to="wandb", max_steps=3).run
    (log,) = run.path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"grad_norm" in log.read_bytes()
    for line in capsys.readouterr().out.splitlines():
        json.loads(line)  # no greeting where data goes


def test_trackio_keeps_it_here(trained: Trainer, tmp_path: Path) -> None:
    """Through the program: trackio reads where it keeps things as it is imported."""
    pytest.importorskip("trackio")
    given = {**trained.given, "report_to": "trackio", "max_steps": 3}
    (tmp_path / "train.yaml").write_text(json.dumps(given))
    command = [sys.executable, "-m", "ftllm", "train", tmp_path / "train.yaml", "--runs", trained.runs, "--name", "a"]
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    ended = subprocess.run([*map(str, command), "--json"], capture_output=True, env=environment, text=True)
    assert ended.returncode == 0, ended.stderr
    for line in ended.stdout.splitlines():
        json.loads(line)
    (database,) = (tmp_path / "trackio").rglob("*.db")
    with sqlite3.connect(database) as connection:
        kept = [json.loads(text) for (text,) in connection.execute("select metrics from metrics order by step")]
    lines = read(trained.runs / "a" / "metrics.jsonl")
    assert [numbers["loss"] for numbers in kept] == pytest.approx([line["loss"] for line in lines])
