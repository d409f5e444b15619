"""The check of GPUs, as far as a machine without one can tell: its plan, its calls, its models and its table."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Any:
    for place in (SCRIPTS / "bench", SCRIPTS):
        monkeypatch.syspath_prepend(place)
    import gpu_check

    return gpu_check


installed = pytest.mark.skipif(find_spec("unsloth") is None, reason="unsloth is not installed")


@installed
def test_without_a_gpu_it_says_what_it_would_do_and_checks_its_calls(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPTS / "gpu_check.py", "--dry-run", "--shapes", "1B", "27B", "--scratch", tmp_path]
    ended = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[-1] == "every call fits what is installed"
    assert any(line.startswith("make     Gemma 3 27B, random, 54.9 GB of ") for line in lines)
    assert sum(line.startswith("train    ") and "--preset seed" in line for line in lines) == 4
    assert any("load_in_4bit=True" in line and line.startswith("call  FastModel.from_pretrained(") for line in lines)
    assert any(line.startswith("build    cmake") and "-DGGML_CUDA=ON" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


@installed
def test_a_call_that_does_not_fit_is_told(
    check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ftllm.train import unsloth

    given = unsloth.adapting
    monkeypatch.setattr(unsloth, "adapting", lambda config: given(config) | {"finetune_hearing_layers": False})
    plan = check.Check(tmp_path, ["1B"], 20, 1024, None, None)
    monkeypatch.setattr(
        plan.__class__, "train", lambda *_: [sys.executable, "-c", "raise SystemExit('no such option')"]
    )
    found = check.unfit(plan)
    assert found[0] == "unsloth.models.vision.FastBaseModel.get_peft_model has no argument finetune_hearing_layers"
    assert found[1].endswith("no such option")
    capsys.readouterr()


@pytest.mark.parametrize("size", ["1B", "4B"])
def test_its_models_load_whole_and_their_language_layers_are_adapted(check: Any, size: str, tmp_path: Path) -> None:
    """The shapes with fewer, narrower layers: every name is one that transformers finds, none is missing."""
    import torch
    from transformers import AutoModelForCausalLM

    from ftllm.train.backend import lora_targets
    from ftllm.train.base import find

    small = replace(check.gemma3.SHAPES[size], hidden=64, inner=64, layers=2, heads=2, key_heads=1, head=16)
    config = check.gemma3.configuration(small, vocabulary=512)
    if "vision_config" in config:
        config["vision_config"] |= {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
                                    "num_attention_heads": 2}  # fmt: skip
    directory = tmp_path / size
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    check.gemma3.write_weights(directory, limit=100_000)
    (directory / "tokenizer.model").touch()
    assert len(list(directory.glob("model-*.safetensors"))) > 1
    model, said = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, dtype=torch.float32)
    assert not said["missing_keys"]
    assert not said["unexpected_keys"]
    loss = model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss
    assert 5 < loss < 8  # about ln(512)
    targets = lora_targets(model, ["attention", "mlp"])
    assert "vision" not in (targets if isinstance(targets, str) else " ".join(targets))
    assert find(str(directory)).parameters() == sum(parameter.numel() for parameter in model.parameters())


def test_the_real_shapes_have_the_sizes_they_are_named_for(check: Any) -> None:
    sizes = {name: check.gemma3.size(shape) / 2e9 for name, shape in check.gemma3.SHAPES.items()}
    assert sizes == pytest.approx({"1B": 1.0, "4B": 4.3, "12B": 12.2, "27B": 27.4}, rel=5e-3)


def test_the_table_has_what_was_measured_and_what_failed(check: Any) -> None:
    arm = {"tokens_per_second": 1000.0, "peak_memory_gib": 5.1, "estimated_gib": 5.5, "drawing_share": 0.004}
    results = {
        "machine": {"gpu": "H100", "at": "2026-11-25T10:00:00", "cuda": "13.0", "versions": {"torch": "2.13.0"}},
        "train 1B": {"unsloth": arm, "hf": arm, "losses": {}, "loss_difference": 0.001},
        "train 4B": {"failed": "RuntimeError: out of\nmemory"},
        "export": {"files": [], "verified": True, "seconds": 20.0},
        "speed": {"engine": 99.0, "llama_bench": 100.0, "ratio": 0.99},
    }
    text = check.table(results)
    assert "| 1B | unsloth | 1000.0 | 5.1 | 5.5 | 0.40% | 0.10% |" in text
    assert "llama-bench 100.0 (ratio 0.990)" in text
    assert "- train 4B: RuntimeError: out of memory" in text
