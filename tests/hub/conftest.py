"""A small run as training and export leave it, made without either."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_run import TYPES, entry, manifest, write_gguf
from hub_server import Hub

from ftllm.progress import Reporter
from ftllm.runs import Run

OWNER = "hf_ownersecret"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base's directory, of which only the card matters here."""
    path = tmp_path / "models" / "gemma"
    path.mkdir(parents=True)
    (path / "LICENSE").write_text("Be good.\n")
    (path / "README.md").write_text(
        "---\nlicense: gemma\nlanguage: [en, de]\nextra_gated_prompt: Do you agree to be good?\n---\n# Gemma\n\n"
        "Hello.\n\n## Terms of use\n\nUse it well.\n\n### Details\n\nVery well.\n\n## Benchmarks\n\n99\n"
    )
    return path


@pytest.fixture
def run(tmp_path: Path, base: Path) -> Run:
    """The run `think`, trained on `org/gemma`, exported to three types."""
    made = Run(tmp_path / "runs" / "think")
    made.adapter.mkdir(parents=True)
    (made.adapter / "adapter_model.safetensors").write_bytes(b"weights" * 1000)
    config = {"base_model_name_or_path": "org/gemma", "r": 16, "lora_alpha": 32, "revision": "c0ffee"}
    (made.adapter / "adapter_config.json").write_text(json.dumps(config))
    (made.adapter / "tokenizer.json").write_text("{}")
    entries = {}
    for number, kind in enumerate(TYPES):
        path = write_gguf(made.gguf / f"gemma-think-{kind}.gguf", kind, 64 * (number + 1))
        entries[path.name] = entry(path, kind, made.adapter)
    (made.gguf / "export.json").write_text(json.dumps({"files": entries}))
    made.metrics.write_text("".join(json.dumps({"step": n, "loss": 2.0 / n}) + "\n" for n in range(1, 21)))
    made.write_manifest(manifest(base, tmp_path))
    sample = {"source": "x.jsonl:3", "held_out": True, "messages": [{"role": "user", "content": "2 + 2?"}]}
    (made.path / "samples.json").write_text(json.dumps([{**sample, "before": "five", "after": "<think>2+2</think>4"}]))
    (made.path / "loss.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    return made


@pytest.fixture
def owner(at_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The local Hub, with the token of its user `owner` in the environment."""
    monkeypatch.setenv("HF_TOKEN", OWNER)
    return at_hub


@pytest.fixture
def reporter() -> Reporter:
    return Reporter()


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither we nor the client wait before trying again."""
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
