"""The adapter on disk: as checkpoints keep it, and as plain peft, vLLM and export take it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ftllm.files import write_json
from ftllm.runs import Run
from ftllm.train import checkpoints
from ftllm.train.base import Base

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
TRAINING = "training.json"


def save(model: Any, directory: Path, tensors: dict[str, Any] | None = None) -> None:
    """Write the adapter's weights and configuration, and no model card.

    Args:
        model: a PEFT model.
        directory: where they go.
        tensors: the adapter's, by their names in the model, where the model itself holds but a part of each.
    """
    model.save_pretrained(str(directory), save_embedding_layers=False, state_dict=tensors)
    (directory / "README.md").unlink(missing_ok=True)


def publish(run: Run, model: Any, found: Base, record: dict[str, Any], tensors: dict[str, Any] | None = None) -> None:
    """Write the run's adapter: weights, a configuration that names the 16-bit base, the base's tokenizer files.

    What peft's configuration has no place for is in `training.json`: the base's hashes, and the precision that was
    trained on and that is merged into. It names no place of this machine, for adapters are published whole.

    Args:
        run: whose it is.
        model: a PEFT model.
        found: the base.
        record: the run's manifest.
        tensors: as in `save`.
    """
    with checkpoints.whole_directory(run.adapter) as directory:
        save(model, directory, tensors)
        path = directory / CONFIG
        config = json.loads(path.read_text(encoding="utf-8"))
        config |= {"base_model_name_or_path": found.reference, "revision": found.revision}
        if isinstance(config.get("target_modules"), list):
            config["target_modules"].sort()  # a set in peft: its order would differ from run to run
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (directory / WEIGHTS).chmod(path.stat().st_mode)  # safetensors makes it the owner's alone
        found.copy_tokenizer(directory)
        base = {"name": found.name} | {key: value for key, value in record["base"].items() if key != "path"}
        write_json(directory / TRAINING, {"base": base, "precision": record["precision"]})
