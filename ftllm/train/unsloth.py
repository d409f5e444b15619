"""The `unsloth` backend: Unsloth loads the base and puts the adapter on it; the trainer stays TRL's.

It patches transformers, peft and TRL as it is imported, and so must be imported before them. It is installed
separately (`ftllm[gpu]`), called and never copied: parts of it are under AGPL and LGPL.
"""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout
from typing import Any

from platformdirs import user_cache_path

from ftllm.train.backend import Device, whole
from ftllm.train.base import Base
from ftllm.train.config import TrainConfig


def begin() -> None:
    """Import Unsloth, which takes about 15 s, so that nothing it does touches the network or this directory."""
    os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(user_cache_path("ftllm") / "unsloth_compiled_cache"))
    with _silence():
        import unsloth  # noqa: F401


def _silence() -> redirect_stdout[io.StringIO]:
    """Unsloth prints its banners to stdout, where data goes."""
    return redirect_stdout(io.StringIO())


def load(base: Base, config: TrainConfig, device: Device) -> Any:
    """The base with a fresh adapter on the language layers, as a PEFT model."""
    import torch
    from unsloth import FastModel

    with _silence():
        model, _ = FastModel.from_pretrained(
            model_name=str(base.path),
            max_seq_length=config.max_length,
            dtype=getattr(torch, device.precision),
            load_in_4bit=device.four_bit,
            full_finetuning=False,
            local_files_only=True,
            use_gradient_checkpointing="unsloth" if config.gradient_checkpointing else False,
        )
        return FastModel.get_peft_model(
            model,
            r=config.lora.rank,
            lora_alpha=whole(config.lora.alpha),
            lora_dropout=config.lora.dropout,
            use_rslora=config.lora.rslora,
            bias="none",
            random_state=config.seed,
            finetune_vision_layers=False,
            finetune_language_layers=True,
            finetune_attention_modules="attention" in config.lora.targets,
            finetune_mlp_modules="mlp" in config.lora.targets,
        )
