"""A LoRA adapter on disk: what it changes and by how much, and what about it cannot be merged.

The change of a linear layer is `scale * B @ A` (arXiv 2106.09685, section 4.1) with `scale = alpha / r`, or
`alpha / sqrt(r)` for rsLoRA (arXiv 2312.03732); both may differ by module (`rank_pattern`, `alpha_pattern`).
Anything else an adapter can hold is refused by name: ignoring it would give another model than the one trained.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftllm.errors import UserError
from ftllm.export.checkpoint import Tensors, read_header, read_json

PREFIX = "base_model.model."
# A layer as a whole: peft saves an output layer beside a LoRA on it, and embeddings that it takes for resized.
WHOLE = re.compile(r"(.+?)(\.base_layer)?\.weight")
FLOATS = {"F64", "F32", "F16", "BF16"}
# Settings that only matter to training, or that `scale` and `merge` follow.
UNDERSTOOD = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora",
    "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "megatron_core",
    "qalora_group_size", "runtime_config", "eva_config", "lora_ga_config", "loftq_config", "corda_config",
    "ensure_weight_tying",
}  # fmt: skip
# Initialisations that leave the base's weights as they are; the others (PiSSA, OLoRA, CorDA, LoftQ...) change them.
UNCHANGED_BASE = {True, False, "gaussian", "eva", "orthogonal", None}
PLAIN = "train with plain LoRA on linear layers"
DAMAGED = "the adapter is damaged; copy or train it again"
ELSEWHERE = "merge it with peft (merge_and_unload), save that with the base's tokenizer files beside it, and export it"
REFUSED = {
    "use_dora": "DoRA",
    "modules_to_save": "modules trained whole (modules_to_save)",
    "target_parameters": "LoRA on fused parameters such as experts (target_parameters)",
    "trainable_token_indices": "trained embeddings (trainable_token_indices)",
    "lora_bias": "LoRA with a bias (lora_bias)",
    "layer_replication": "replicated layers (layer_replication)",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens)",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
}
MERGED_BY_PEFT = {"use_dora", "modules_to_save", "target_parameters", "trainable_token_indices", "lora_bias"}


@dataclass(frozen=True)
class Pair:
    """One linear layer's A and B in the adapter file.

    Args:
        module: the layer's name in the trained model, such as `model.layers.0.self_attn.q_proj`.
        a, b: tensor names; shapes `[rank, in]` and `[out, rank]`.
        scale: the factor on `B @ A`.
    """

    module: str
    a: str
    b: str
    rank: int
    shape: tuple[int, int]
    scale: float


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that can be merged.

    Attributes:
        transposed: fan_in_fan_out: the layer keeps its weight as [in, out].
        copies: tensors that must equal the base's, by the name of their layer: peft saves embeddings and output layers
            whole where a LoRA is on them, or where it is told to or takes them for resized.
    """

    weights: Path
    pairs: tuple[Pair, ...]
    transposed: bool
    config: dict[str, Any]
    copies: dict[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Weights in all its A and B."""
        return sum(pair.rank * sum(pair.shape) for pair in self.pairs)


def read_adapter(directory: Path) -> Adapter:
    """Read an adapter's configuration and tensor names; no weights are loaded.

    Raises:
        UserError: a damaged file, or something that cannot be merged, by name.
    """
    path = directory / "adapter_config.json"
    config = read_json(path, DAMAGED)
    check_config(config, path)
    weights = directory / "adapter_model.safetensors"
    header = read_header(weights)
    copies = {
        match[1].removeprefix(PREFIX): name
        for name in header
        if ".lora_" not in name and (match := WHOLE.fullmatch(name))
    }
    pairs = _pairs({name: value for name, value in header.items() if name not in copies.values()}, config, weights)
    return Adapter(weights, pairs, bool(config.get("fan_in_fan_out")), config, copies)


def check_config(config: dict[str, Any], path: Path) -> None:
    """Refuse, by name, every setting whose effect would be lost in a merge."""
    kind = str(config.get("peft_type") or "LORA").upper()
    if kind != "LORA":
        raise UserError(f"{path}: {kind} adapters cannot be merged", "only LoRA is supported")
    if config.get("bias", "none") != "none":
        raise UserError(f"{path}: trained biases (bias={config['bias']!r}) cannot be merged", ELSEWHERE)
    for key, value in config.items():
        if not value or key in UNDERSTOOD:
            continue
        if key == "megatron_config":
            raise UserError(f"{path}: Megatron layers cannot be merged", "train with plain LoRA")
        what = REFUSED.get(key, f"{key}={value!r}")
        raise UserError(f"{path}: {what} cannot be merged into a GGUF", ELSEWHERE if key in MERGED_BY_PEFT else PLAIN)
    start = config.get("init_lora_weights", True)
    if not any(start is known or start == known for known in UNCHANGED_BASE):
        raise UserError(
            f"{path}: init_lora_weights={start!r} changes the base's weights, so the adapter does not fit the original",
            "convert it with peft's path_initial_model_for_weight_conversion, or export the merged model",
        )
    for key, value in {"lora_alpha": config.get("lora_alpha", 8), **_pattern(config, "alpha_pattern", path)}.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{path}: the alpha of {key} is {value!r}, not a number", DAMAGED)
    for key, value in {"r": config.get("r", 8), **_pattern(config, "rank_pattern", path)}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{path}: the rank of {key} is {value!r}, not a whole number from 1 on", DAMAGED)


def _pattern(config: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    """`rank_pattern` or `alpha_pattern`: numbers by expression."""
    found = config.get(key) or {}
    if not isinstance(found, dict):
        raise UserError(f"{path}: {key} is {found!r}, not numbers by module", DAMAGED)
    for expression in found:
        try:
            re.compile(expression)
        except re.error as error:
            raise UserError(f"{path}: {key} has {expression!r}, no regular expression: {error}", DAMAGED) from None
    return found


def scale(config: dict[str, Any], module: str) -> float:
    """The factor on `B @ A` for one module, rsLoRA and per-module patterns included."""
    rank = int(_by_pattern(config.get("rank_pattern"), module, config.get("r", 8)))
    alpha = float(_by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8)))
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _by_pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule (`get_pattern_key`): the first key that, as an expression, is the module's name or ends it."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _pairs(header: Tensors, config: dict[str, Any], path: Path) -> tuple[Pair, ...]:
    found: dict[str, dict[str, str]] = {}
    for name, (dtype, _) in header.items():
        match = re.fullmatch(r"(.+)\.lora_(A|B)\.weight", name)
        if match is None:
            raise UserError(f"{path}: {_name_of_stranger(name)} cannot be merged", ELSEWHERE)
        if match[1].endswith((".base_layer", ".experts")):
            raise UserError(f"{path}: LoRA on fused experts ({name}) cannot be merged", ELSEWHERE)
        if dtype not in FLOATS:
            raise UserError(f"{path}: {name} is {dtype}, not a float type", "save the adapter unquantized")
        found.setdefault(match[1], {})[match[2]] = name
    if not found:
        raise UserError(f"{path} holds no LoRA weights", "was anything trained?")
    return tuple(_pair(key, names, header, config, path) for key, names in sorted(found.items()))


def _pair(key: str, names: dict[str, str], header: Tensors, config: dict[str, Any], path: Path) -> Pair:
    if set(names) != {"A", "B"}:
        raise UserError(f"{path}: {key} has lora_{next(iter(names))} only", DAMAGED)
    a, b = header[names["A"]][1], header[names["B"]][1]
    module = key.removeprefix(PREFIX)
    rank = int(_by_pattern(config.get("rank_pattern"), module, config.get("r", 8)))
    if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        raise UserError(
            f"{path}: {key} has shapes {list(a)} and {list(b)}, not those of a linear layer", "it cannot be merged"
        )
    if a[0] != rank:
        raise UserError(
            f"{path}: {key} has rank {a[0]} where adapter_config.json says {rank}",
            "weights and configuration do not belong together",
        )
    return Pair(module, names["A"], names["B"], rank, (b[0], a[1]), scale(config, module))


def _name_of_stranger(name: str) -> str:
    if "lora_magnitude_vector" in name:
        return f"DoRA ({name})"
    if "lora_embedding_" in name or "trainable_tokens" in name:
        return f"a trained embedding ({name})"
    if name.endswith(".bias"):
        return f"a trained bias ({name})"
    return f"the tensor {name}"
