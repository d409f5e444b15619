"""The `unsloth` backend: Unsloth loads the base and puts the adapter on it; the trainer stays TRL's.

It patches transformers, peft and TRL as it is imported, and so must be imported before them. It is installed
separately (`ftllm[gpu]`), called and never copied: parts of it are under AGPL and LGPL.
"""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from ftllm.train.backend import Device, whole
from ftllm.train.config import TrainConfig
from ftllm.train.layers import fused_experts, lora_pattern


def environment() -> dict[str, str]:
    """What keeps Unsloth from asking the Hub for its statistics, and from writing generated code where we stand."""
    cache = str(user_cache_path("ftllm") / "unsloth_compiled_cache")
    return {
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "UNSLOTH_COMPILE_LOCATION": os.environ.get("UNSLOTH_COMPILE_LOCATION", cache),
    }


def begin() -> None:
    """Import Unsloth, which takes about 15 s, so that nothing it does touches the network or this directory."""
    os.environ.update(environment())
    with _silence():
        import unsloth  # noqa: F401


def _silence() -> redirect_stdout[io.StringIO]:
    """Unsloth prints its banners to stdout, where data goes."""
    return redirect_stdout(io.StringIO())


def loading(path: Path, config: TrainConfig, device: Device) -> dict[str, Any]:
    """The arguments of `FastModel.from_pretrained`; `dtype` by its name.

    The base is given as a directory, so that Unsloth loads it, in 4 bits where asked, and no copy by another name.
    """
    return {
        "model_name": str(path),
        "max_seq_length": config.max_length,
        "dtype": device.precision,
        "load_in_4bit": device.four_bit,
        "full_finetuning": False,
        "local_files_only": True,
        "use_gradient_checkpointing": _checkpointing(config),
    }


def adapting(config: TrainConfig) -> dict[str, Any]:
    """The arguments of `FastModel.get_peft_model`: of vision models, the language layers alone are adapted."""
    return {
        "r": config.lora.rank,
        "lora_alpha": whole(config.lora.alpha),
        "lora_dropout": config.lora.dropout,
        "use_rslora": config.lora.rslora,
        "bias": "none",
        "random_state": config.seed,
        "use_gradient_checkpointing": _checkpointing(config),
        "finetune_vision_layers": False,
        "finetune_language_layers": True,
        "finetune_attention_modules": "attention" in config.lora.targets,
        "finetune_mlp_modules": "mlp" in config.lora.targets,
    }


def _checkpointing(config: TrainConfig) -> str | bool:
    return "unsloth" if config.gradient_checkpointing else False


def load(path: Path, config: TrainConfig, device: Device) -> Any:
    """The base in a directory with a fresh adapter on its language layers, as a PEFT model.

    Of mixtures, Unsloth would adapt the experts too: there it is told the layers that `hf` adapts.
    """
    import torch
    from unsloth import FastModel

    given, shape = loading(path, config, device), adapting(config)
    with _silence():
        model, _ = FastModel.from_pretrained(**given | {"dtype": getattr(torch, given["dtype"])})
        if fused_experts(model):
            shape |= {"target_modules": lora_pattern(model, config.lora.targets), "target_parameters": []}
        return FastModel.get_peft_model(model, **shape)
