"""Small random checkpoints of published families, as they lie on the Hub, and adapters for them.

Weights are drawn so that predictions are decided, norms are not 1 and positions matter: a slip in the conversion shows.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from real_tokenizers import copy_tokenizer

NANO = Path(__file__).parents[2] / "models" / "nano"
WIDTH = 256  # k-quants need rows divisible by 256
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
COMMON = {
    "hidden_size": WIDTH, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
LLAMA3_SCALING = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,  # small, so that short texts reach what is scaled
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A family: its configuration, what it is stored as, and the adapter it is tried with (peft's LoraConfig)."""

    model_type: str
    tokenizer: str
    config: dict[str, Any]
    dtype: str
    shard: str = "1GB"
    adapter: dict[str, Any] | None = None
    published: dict[str, Any] = field(default_factory=dict)  # config.json as transformers 4 wrote it
    rename: Callable[[str], str] = lambda name: name
    added: tuple[str, ...] = ()  # special tokens beyond the tokenizer's own


def _vision(**text: Any) -> dict[str, Any]:
    """With an MLP that is not square: llama.cpp takes a square one for a file of old that named its halves wrongly."""
    vision = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 56,
        "patch_size": 14,
    }  # fmt: skip
    return {"text_config": {**GEMMA, **text}, "vision_config": vision, "mm_tokens_per_image": 4}


def _old_vision_name(name: str) -> str:
    """Where transformers 4 kept it, and Google's checkpoints have it."""
    for new, old in {
        "model.language_model.": "language_model.model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        "model.vision_tower.": "vision_tower.vision_model.",
        "vision_tower.": "vision_tower.vision_model.",
    }.items():
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def _new_vision_name(name: str) -> str:
    """What transformers 5 calls it in memory, and tools that dump a state dictionary write."""
    for old, new in {
        "language_model.model.": "model.language_model.",
        "vision_tower.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
    }.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


GEMMA = {
    **COMMON, "vocab_size": 2048, "head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 32,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "hidden_activation": "gelu_pytorch_tanh",
}  # fmt: skip
EVERY = {"r": 8, "lora_alpha": 16, "target_modules": LINEAR}

KINDS = {
    "gemma3-62": Kind(  # 27B's own attention scale: n_embd / n_head, which is not the size of a head
        "gemma3_text", "nano",
        {**GEMMA, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 62, "num_attention_heads": 2,
         "num_key_value_heads": 1, "head_dim": 32, "query_pre_attn_scalar": 64},
        "bfloat16", shard="4MB", adapter={**EVERY, "target_modules": ["q_proj", "down_proj"]},
    ),
    "gemma3-vision-4": Kind("gemma3", "nano", _vision(), "bfloat16", adapter=EVERY, rename=_old_vision_name),
    "gemma3-vision-5": Kind("gemma3", "nano", _vision(), "bfloat16", adapter=EVERY, rename=_new_vision_name),
    "llama-think": Kind(  # small, with thought tags that are special tokens, and a LoRA on its output layer
        "llama", "nano",
        {**COMMON, "vocab_size": 2050, "tie_word_embeddings": False, "rms_norm_eps": 1e-5, "bos_token_id": 2,
         "eos_token_id": [1, 5], "pad_token_id": 0,
         "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        "bfloat16",
        adapter={**EVERY, "target_modules": [*LINEAR, "lm_head"], "use_rslora": True, "alpha_pattern": {"lm_head": 5}},
        published={"rope_theta": 10000.0}, added=("<think>", "</think>"),
    ),
    "llama3": Kind(
        "llama", "llama3",
        {**COMMON, "vocab_size": 128256, "tie_word_embeddings": False, "rms_norm_eps": 1e-5, "bos_token_id": 128000,
         "eos_token_id": [128001, 128008, 128009], "rope_parameters": {"rope_theta": 500000.0, **LLAMA3_SCALING}},
        "bfloat16", shard="40MB",
        adapter={**EVERY, "use_rslora": True, "alpha_pattern": {"k_proj": 5},
                 "rank_pattern": {"layers.1.mlp.up_proj": 4}},
        published={"rope_theta": 500000.0, "rope_scaling": LLAMA3_SCALING},
    ),
    "mistral": Kind(
        "mistral", "mistral",
        {**COMMON, "vocab_size": 32000, "tie_word_embeddings": False, "sliding_window": None, "bos_token_id": 1,
         "eos_token_id": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        "float16", adapter=EVERY, published={"rope_theta": 10000.0},
    ),
    "qwen2": Kind(
        "qwen2", "qwen2",
        {**COMMON, "vocab_size": 151936, "tie_word_embeddings": True, "bos_token_id": 151643, "eos_token_id": 151645,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
        "float32", adapter={**EVERY, "target_modules": ["q_proj", "v_proj", "down_proj"]},
        published={"rope_theta": 1000000.0},
    ),
    "qwen3": Kind(
        "qwen3", "qwen3",
        {**COMMON, "vocab_size": 151936, "tie_word_embeddings": True, "head_dim": 128, "bos_token_id": 151643,
         "eos_token_id": 151645, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
        "bfloat16", shard="40MB", adapter=EVERY, published={"rope_theta": 1000000.0, "rope_scaling": None},
    ),
    "qwen3-moe": Kind(  # transformers fuses the experts in memory; the checkpoint has them one by one
        "qwen3_moe", "qwen3",
        {**COMMON, "vocab_size": 151936, "tie_word_embeddings": True, "head_dim": 128, "bos_token_id": 151643,
         "eos_token_id": 151645, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256,
         "norm_topk_prob": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
        "bfloat16", adapter={**EVERY, "target_modules": LINEAR[:4]},
        published={"rope_theta": 1000000.0, "rope_scaling": None},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Tiny:
    """A checkpoint and an adapter for it."""

    base: Path
    adapter: Path


def make(name: str, place: Path) -> Tiny:
    """Write family `name` and its adapter into `place`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = KINDS[name]
    torch.manual_seed(1)
    config = AutoConfig.for_model(kind.model_type, **kind.config)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    draw(model)
    model = model.to(getattr(torch, kind.dtype))
    base, adapter = place / "base", place / "adapter"
    model.save_pretrained(base, max_shard_size=kind.shard)
    rename(base, kind.rename)
    if kind.published:
        written = json.loads((base / "config.json").read_text())
        written.pop("rope_parameters")
        (base / "config.json").write_text(json.dumps({**written, **kind.published}))
    if kind.tokenizer == "nano":
        for path in [*NANO.glob("tokenizer*"), NANO / "special_tokens_map.json", NANO / "chat_template.jinja"]:
            shutil.copy(path, base)
        add_tokens(base, kind.added)
    else:
        copy_tokenizer(kind.tokenizer, base)
    settings = dict(kind.adapter or EVERY)
    if kind.model_type == "gemma3":
        images = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_seq_length": 4}
        (base / "preprocessor_config.json").write_text(json.dumps(images))
        settings["target_modules"] = rf".*language_model.*\.({'|'.join(LINEAR)})"
    tuned: Any = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    for parameter_name, parameter in tuned.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.02)
    tuned.save_pretrained(adapter)
    stored = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**stored, "base_model_name_or_path": str(base)}))
    return Tiny(base, adapter)


def add_tokens(base: Path, texts: Sequence[str]) -> None:
    """Give a tokenizer special tokens after those it has."""
    fast, config = (json.loads((base / f"tokenizer{part}.json").read_text()) for part in ("", "_config"))
    for number, text in enumerate(texts, len(fast["model"]["vocab"])):
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        fast["added_tokens"].append({"id": number, "content": text, **flags})
        config["added_tokens_decoder"][str(number)] = {"content": text, **flags}
    (base / "tokenizer.json").write_text(json.dumps(fast))
    (base / "tokenizer_config.json").write_text(json.dumps({**config, "add_prefix_space": False}))


def draw(model: Any) -> None:
    """Random weights: matrices that keep their input's size, norms about 1, biases that matter, decided logits."""
    import torch

    output = model.get_output_embeddings().weight
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if parameter is output or "embed_tokens" in name:
                parameter.normal_(std=2.4 / WIDTH**0.5)
            elif parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.3)
            else:  # a norm: about 1, or about 0 where the model adds the 1 itself
                parameter.add_(torch.randn_like(parameter) * 0.2)
            if name.endswith("language_model.norm.weight"):
                # few layers change little of Gemma's scaled embedding, whose own token the same matrix finds again:
                # half of the signs turned, it finds nothing, and what the layers do decides
                parameter.sub_(2.0 * torch.randint_like(parameter, 2))


def rename(base: Path, new_name: Callable[[str], str]) -> None:
    """Give the tensors of a checkpoint other names."""
    from safetensors.torch import load_file, save_file

    for path in base.glob("*.safetensors"):
        tensors = {new_name(name): tensor for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    index = base / "model.safetensors.index.json"
    if index.is_file():
        stored = json.loads(index.read_text())
        stored["weight_map"] = {new_name(name): shard for name, shard in stored["weight_map"].items()}
        index.write_text(json.dumps(stored))
