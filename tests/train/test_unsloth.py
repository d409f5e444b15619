"""The `unsloth` backend on its CPU path, against `hf`: the same losses from the same rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ftllm.train.metrics import read


def losses(backend: str, tiny: Path, data: Path, runs: Path) -> tuple[list[float], dict[str, Any], str]:
    """Trained in a process of its own, since Unsloth must be imported before transformers."""
    settings = ["learning_rate=1e-2", "warmup_steps=2", "batch_size=4", "max_steps=5"]
    command = [sys.executable, "-m", "ftllm", "train", "--model", tiny, "--data", data, "--backend", backend, "--json"]
    options = ["--runs", runs, "--name", backend, *[word for setting in settings for word in ("--set", setting)]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "UNSLOTH_FORCE_CPU": "1"}
    ended = subprocess.run(
        [*map(str, [*command, *options])], env=environment, capture_output=True, text=True, check=True
    )
    manifest = json.loads((runs / backend / "manifest.json").read_text())
    return [line["loss"] for line in read(runs / backend / "metrics.jsonl")], manifest, ended.stdout


@pytest.mark.skipif(find_spec("unsloth") is None, reason="unsloth is not installed")
def test_unsloth_and_hf_have_the_same_losses(tiny: Path, data: Path, tmp_path: Path) -> None:
    ours, _, _ = losses("hf", tiny, data, tmp_path)
    theirs, manifest, output = losses("unsloth", tiny, data, tmp_path)
    assert theirs == pytest.approx(ours, rel=1e-4)
    assert manifest["backend"] == "unsloth"
    for line in output.splitlines():
        json.loads(line)  # no banner where data goes
    adapter = json.loads((tmp_path / "unsloth" / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(tiny)
    assert not Path("unsloth_compiled_cache").exists()
