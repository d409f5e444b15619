"""Trainings of the tiny model as tests ask for them."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

from ftllm.files import sha256_file
from ftllm.progress import Reporter
from ftllm.runs import Run
from ftllm.train.config import resolve
from ftllm.train.metrics import read
from ftllm.train.settings import Setting
from ftllm.train.stage import TrainResult, train

TIMINGS = ("seconds", "tokens_per_second")


class Trainer:
    """Trains the tiny model on the small data, as a test asks."""

    def __init__(self, model: Path, data: Path, runs: Path) -> None:
        self.given = {"model": str(model), "data": [str(data)], "batch_size": 4, "learning_rate": 1e-2,
                      "warmup_steps": 2, "save_steps": 0, "samples": 0}  # fmt: skip
        self.runs = runs

    def __call__(self, name: str, reporter: Reporter | None = None, **values: Any) -> TrainResult:
        given = {**self.given, **{key.replace("__", "."): value for key, value in values.items()}}
        config = resolve([{key: Setting(value, "test") for key, value in given.items()}])
        return train(config, reporter or Reporter(quiet=True), runs=self.runs, name=name)


class Impatient(Reporter):
    """Presses Ctrl-C when a step is shown."""

    stop_at = 0

    def event(self, event: str, **fields: Any) -> None:
        if event == "progress" and fields.get("task") == "training" and fields["completed"] == self.stop_at:
            os.kill(os.getpid(), signal.SIGINT)


def impatient(step: int) -> Impatient:
    reporter = Impatient(quiet=True)
    reporter.stop_at = step
    return reporter


def adapter_hashes(run: Run) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in run.adapter.iterdir()}


def without_timings(run: Run) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in read(run.metrics)]


def dated_copy(model: Path, place: Path) -> Path:
    """`model` with a chat template that begins every chat with the date, as gpt-oss's does."""
    shutil.copytree(model, place, dirs_exist_ok=True)
    template = place / "chat_template.jinja"
    bos = "{{- bos_token -}}"
    opened, _, rest = template.read_text(encoding="utf-8").partition(bos)
    template.write_text(opened + bos + "{{- strftime_now('%Y-%m-%d') -}}" + rest, encoding="utf-8")
    return place
