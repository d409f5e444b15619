"""The `unsloth` backend against `hf`: the same rows, masks and losses; and what it is called with on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ftllm.train import backend
from ftllm.train.backend import Device
from ftllm.train.config import resolve
from ftllm.train.metrics import read
from ftllm.train.settings import Setting
from ftllm.train.unsloth import adapting, environment, loading

SCRIPTS = Path(__file__).parents[2] / "scripts"
installed = pytest.mark.skipif(find_spec("unsloth") is None, reason="unsloth is not installed")
# Runs the program with every batch that the trainer is given noted down.
NOTING = """
import json, sys
from ftllm.train import data
collate, noted = data.collate, open(sys.argv.pop(1), "w")
def noting(rows, pad_id):
    batch = collate(rows, pad_id)
    noted.write(json.dumps({name: tensor.tolist() for name, tensor in batch.items()}) + "\\n")
    return batch
data.collate = noting
from ftllm.cli.main import main
main()
"""


def trained(backend: str, tiny: Path, data: Path, runs: Path) -> tuple[list[float], list[Any], dict[str, Any], str]:
    """Trained in a process of its own, since Unsloth must be imported before transformers: losses, batches, manifest,
    and what it printed."""
    settings = ["learning_rate=1e-2", "warmup_steps=2", "gradient_accumulation=4", "max_steps=5", "samples=0"]
    command = [sys.executable, "-c", NOTING, runs.parent / backend, "train", "--model", tiny, "--data", data, "--json"]
    options = ["--runs", runs, "--name", backend, "--backend", backend]
    options += [word for setting in settings for word in ("--set", setting)]
    ended = subprocess.run(
        [*map(str, [*command, *options])],
        env={**os.environ, "OMP_NUM_THREADS": "1", "UNSLOTH_FORCE_CPU": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    manifest = json.loads((runs / backend / "manifest.json").read_text())
    batches = [json.loads(line) for line in (runs.parent / backend).read_text().splitlines()]
    return [line["loss"] for line in read(runs / backend / "metrics.jsonl")], batches, manifest, ended.stdout


@installed
def test_unsloth_and_hf_train_the_same_rows_to_the_same_losses(tiny: Path, data: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ours, rows, _, _ = trained("hf", tiny, data, tmp_path / "runs")
    theirs, their_rows, manifest, output = trained("unsloth", tiny, data, tmp_path / "runs")
    assert len(rows) >= 5 * 4
    assert their_rows == rows  # token ids, masks and labels
    assert theirs == pytest.approx(ours, rel=1e-4)
    assert manifest["backend"] == "unsloth"
    for line in output.splitlines():
        json.loads(line)  # no banner where data goes
    adapter = tmp_path / "runs" / "unsloth" / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny)
    assert not Path("unsloth_compiled_cache").exists()
    # What Unsloth saved is an adapter to plain peft, with no layer left over.
    names = [
        {
            name
            for name, _ in PeftModel.from_pretrained(
                AutoModelForCausalLM.from_pretrained(tiny), place
            ).named_parameters()
        }
        for place in (adapter, tmp_path / "runs" / "hf" / "adapter")
    ]
    assert names[0] == names[1]


def card(**values: Any) -> Any:
    given = {"model": "m", "data": ["d"], "preset": "seed", **values}
    return resolve([{key: Setting(value, "test") for key, value in given.items()}])


def test_on_a_gpu_unsloth_is_given_the_settings_of_the_card() -> None:
    """Those of the method's published script, which trains the language layers of a vision model, in 4 bits."""
    device = Device("cuda", "bfloat16", four_bit=True, eight_bit=True)
    assert loading(Path("/models/gemma-3-27b-it"), card(), device) == {
        "model_name": "/models/gemma-3-27b-it",
        "max_seq_length": 4096,
        "dtype": "bfloat16",
        "load_in_4bit": True,
        "full_finetuning": False,
        "local_files_only": True,
        "use_gradient_checkpointing": "unsloth",
    }
    given = adapting(card())
    assert {key: given[key] for key in ("r", "lora_alpha", "lora_dropout", "bias", "random_state", "use_rslora")} == {
        "r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "bias": "none", "random_state": 3407, "use_rslora": False,
    }  # fmt: skip
    assert [name for name, value in given.items() if name.startswith("finetune_") and value] == [
        "finetune_language_layers", "finetune_attention_modules", "finetune_mlp_modules",
    ]  # fmt: skip
    only = adapting(card(**{"lora.targets": ["mlp"], "gradient_checkpointing": False}))
    assert (only["finetune_attention_modules"], only["use_gradient_checkpointing"]) == (False, False)


@installed
def test_unsloth_has_every_argument_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, in the installed source: its `**kwargs` would swallow a wrong one without a word."""
    monkeypatch.syspath_prepend(SCRIPTS)
    from signatures import complaints, source_of

    device = Device("cuda", "bfloat16", four_bit=True, eight_bit=True)
    given = loading(Path("m"), card(), device)
    assert complaints("unsloth.models.loader", "FastModel.from_pretrained", given) == []
    assert complaints("unsloth.models.vision", "FastBaseModel.get_peft_model", adapting(card()), "model") == []
    wrong = complaints("unsloth.models.loader", "FastModel.from_pretrained", {"load_in_3bit": True})
    assert wrong == ["unsloth.models.loader.FastModel.from_pretrained has no argument load_in_3bit"]
    assert "unsloth" not in sys.modules
    # The variables are ones that it reads.
    package = source_of("unsloth").parent
    sources = "".join(path.read_text() for folder in (package, source_of("unsloth_zoo").parent)
                      for path in [*folder.glob("*.py"), *folder.glob("models/_utils.py")])  # fmt: skip
    assert all(name in sources for name in environment())


def test_environment_keeps_unsloth_to_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("UNSLOTH_COMPILE_LOCATION", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert environment() == {
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "UNSLOTH_COMPILE_LOCATION": str(tmp_path / "ftllm" / "unsloth_compiled_cache"),
    }


def test_a_gpu_without_unsloth_is_told_what_it_would_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "has_cuda", lambda: True)
    monkeypatch.setattr(backend, "find_spec", lambda name: None if name == "unsloth" else object())
    chosen, why = backend.choose(card())
    assert chosen == "hf"
    assert "unsloth is not installed" in why
    assert "faster in less memory: pip install 'ftllm[gpu]'" in why
    monkeypatch.setattr(backend, "find_spec", lambda _: object())
    assert backend.choose(card()) == ("unsloth", "a CUDA GPU is here")
