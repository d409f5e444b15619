"""The two ways to load a base and put an adapter on it: `hf` (transformers and peft) and `unsloth`.

Both give a PEFT model that the same trainer trains on the same rows.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from ftllm.errors import UserError
from ftllm.train.base import Base
from ftllm.train.config import TrainConfig
from ftllm.train.layers import lora_targets, part_of
from ftllm.train.processes import here

BackendName = Literal["hf", "unsloth"]
SMALL = 1_000_000_000  # weights; beyond, float32 would ask too much of a laptop's memory


@dataclass(frozen=True)
class Device:
    """What is trained on, and in which precision.

    Attributes:
        kind: `cpu`, `cuda` or `mps`.
        precision: of the base weights and the computation.
        four_bit: whether the base is loaded in 4-bit NF4.
        eight_bit: whether AdamW keeps its moments in 8 bits, and pages them.
    """

    kind: str
    precision: Literal["float32", "bfloat16"]
    four_bit: bool
    eight_bit: bool


def choose(config: TrainConfig) -> tuple[BackendName, str]:
    """The backend to take, and why.

    Raises:
        UserError: `unsloth` was asked for and is not installed.
    """
    installed = find_spec("unsloth") is not None
    if here().sharded:
        if config.backend == "unsloth":
            raise UserError(
                "unsloth keeps a model whole, and accelerate is set up to split it (FSDP)", "take DDP, or hf"
            )
        return "hf", "the model is split over processes (FSDP)"
    if config.backend == "unsloth" and not installed:
        raise UserError("unsloth is not installed", "pip install 'ftllm[gpu]', or take --backend hf")
    if config.backend != "auto":
        return config.backend, "as asked"
    if not has_cuda():
        return "hf", "no CUDA GPU here, and hf starts quicker on a CPU"
    if not installed:
        return "hf", "unsloth is not installed; it would train faster in less memory: pip install 'ftllm[gpu]'"
    return "unsloth", "a CUDA GPU is here"


def has_cuda() -> bool:
    """Whether torch sees a CUDA GPU."""
    import torch

    return torch.cuda.is_available()


def gpus() -> int:
    """How many CUDA GPUs this machine has."""
    import torch

    return torch.cuda.device_count()


def peak_memory(device: Device) -> int | None:
    """The most bytes this process has held so far, on the GPU where it trains on one; None where nobody counts."""
    if device.kind == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def threads() -> int:
    """How many threads torch computes with; sums, and so results, depend on it."""
    import torch

    return torch.get_num_threads()


def device(config: TrainConfig, parameters: int) -> Device:
    """Resolve what the configuration leaves to the machine.

    On a CPU, bases of up to `SMALL` weights are trained in float32, which is as quick there as bfloat16 (measured on
    AVX-512 with bf16) and gives the same likelihood as their float32 GGUF; larger ones in bfloat16, for their memory.

    Args:
        config: of the run.
        parameters: how many weights the base has.

    Raises:
        UserError: 4-bit weights or an 8-bit optimizer were asked for where there is no GPU or no bitsandbytes.
    """
    import torch

    kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    sharded = here().sharded
    small = kind == "cuda" and find_spec("bitsandbytes") is not None and not sharded
    for asked, what in (
        (config.load_in_4bit is True, "load_in_4bit"),
        (config.optimizer == "adamw_8bit", "adamw_8bit"),
    ):
        if asked and sharded:
            raise UserError(
                f"{what} cannot be split over processes by FSDP", "leave it at auto, or take DDP (torchrun)"
            )
        if asked and not small:
            raise UserError(
                f"{what} needs a CUDA GPU and bitsandbytes", "leave it at auto, or pip install 'ftllm[gpu]'"
            )
    precision: Literal["float32", "bfloat16"]
    if config.precision != "auto":
        precision = config.precision
    else:
        sixteen = torch.cuda.is_bf16_supported() if kind == "cuda" else parameters > SMALL
        precision = "bfloat16" if sixteen else "float32"
    four_bit = small if config.load_in_4bit == "auto" else config.load_in_4bit
    eight_bit = small if config.optimizer == "auto" else config.optimizer == "adamw_8bit"
    return Device(kind, precision, four_bit, eight_bit)


def load(backend: BackendName, base: Base, config: TrainConfig, device: Device) -> Any:
    """The base with a fresh adapter on it, as a PEFT model; the adapter's start is drawn from the seed.

    Raises:
        UserError: transformers does not know the architecture, or it has no layer to adapt.
    """
    if backend == "unsloth":
        from ftllm.train.unsloth import load as load_unsloth

        model = load_unsloth(base.path, config, device)
    else:
        model = _load_hf(base, config, device)
    trained = {name.partition(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    for name in sorted(trained):
        if part_of(name) is None or name.endswith((".experts", ".experts.base_layer")):
            raise UserError(
                f"{backend} would train {name} too, which no export can merge", "--set lora.targets=[attention]"
            )
    return model


def _load_hf(base: Base, config: TrainConfig, device: Device) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, set_seed

    options: dict[str, Any] = {"dtype": device.precision, "local_files_only": True}
    if device.four_bit:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=device.precision,
        )
        options["device_map"] = {"": here().local_rank}
    try:
        model = AutoModelForCausalLM.from_pretrained(str(base.path), **options)
    except (ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{base.path} cannot be loaded: {reason}", "is it a causal language model?") from error
    if device.four_bit:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=config.gradient_checkpointing)
    targets = lora_targets(model, config.lora.targets)
    set_seed(config.seed)
    return get_peft_model(
        model,
        LoraConfig(
            r=config.lora.rank,
            lora_alpha=whole(config.lora.alpha),
            lora_dropout=config.lora.dropout,
            use_rslora=config.lora.rslora,
            target_modules=targets,
            bias="none",
            task_type="CAUSAL_LM",
        ),
    )


def whole(alpha: float) -> Any:
    """`alpha` as PEFT has it: an integer where it is one."""
    return int(alpha) if alpha == int(alpha) else alpha
