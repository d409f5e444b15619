"""Whether a LoRA GGUF changes a model as its PEFT adapter does: layer by layer, without the base's weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ftllm.export.blocks import NUMBERS, Floats, dequantize
from ftllm.export.shares import KINDS, halves_alternating, relative_change
from ftllm.export.structure import NORMAL
from ftllm.llama import native
from ftllm.llama.header import Header, TensorInfo, read_header
from ftllm.llama.model import Model

ROWS = 64  # of each layer's change
CLOSE = {"F32": 1e-5, "F16": 2e-3, "BF16": 1e-2}  # relative error of a product of two rounded matrices


def check_adapter(
    path: Path, base: Path, adapter: Path, names: Mapping[str, str], experts: Sequence[str] = ()
) -> list[str]:
    """Every layer's `alpha / rank * B @ A` in the file is PEFT's `scale * B @ A`, rows in llama.cpp's order.

    Args:
        names: PEFT's modules by GGUF name.
        experts: those of single experts, which become parts of tensors `[experts, out, in]`.
    """
    from ftllm.export.reference import factors_of

    header = read_header(path)
    infos = {info.name: info for info in header.tensors}
    alpha = header.metadata.get("adapter.lora.alpha")
    assert isinstance(alpha, float)
    heads, permuted = _attention(base, str(header.architecture))
    factors = factors_of(adapter)
    for name, module in names.items():
        if f"{name}.lora_a" not in infos or f"{name}.lora_b" not in infos:
            return [f"it lacks the change of {module}"]
        left, right = (_matrix(header, infos[f"{name}.lora_{part}"]) for part in "ba")
        a, b, scale = factors[module]
        rows = np.unique(np.linspace(0, len(left) - 1, ROWS).astype(np.int64))
        count = heads.get(name.rpartition(".")[0].rpartition(".")[2]) if permuted else None
        order = halves_alternating(count, len(left)) if count else np.arange(len(left))
        ours: Floats = (left[rows] @ right) * np.float32(alpha / left.shape[1])
        theirs: Floats = ((b[order[rows]] @ a) * scale).numpy()
        share, _ = relative_change(np.zeros_like(theirs), theirs, ours)
        bound = CLOSE[infos[f"{name}.lora_b"].type]
        if np.linalg.norm(ours - theirs) > bound * np.linalg.norm(theirs):
            if np.linalg.norm(ours - share * theirs) <= 2 * bound * np.linalg.norm(ours):
                return [f"{module} holds {share:.2f} times what the adapter adds"]
            return [f"{module} is not what the adapter adds (its rows may be in another order)"]
    for module in experts:
        a, b, scale = factors[module]
        wanted: Floats = ((b @ a) * scale).numpy()
        distances = [
            float(np.linalg.norm(one - wanted)) / float(np.linalg.norm(wanted)) / bound
            for one, bound in _of_expert(header, infos, module, alpha)
            if one.shape == wanted.shape
        ]
        if not distances:
            return [f"it lacks the change of {module}"]
        if min(distances) > 1:
            return [f"{module} is not what the adapter adds"]
    return []


def _of_expert(
    header: Header, infos: Mapping[str, TensorInfo], module: str, alpha: float
) -> Iterator[tuple[Floats, float]]:
    """What the file adds to each kind of an expert's matrices, and how near that comes to what it should be."""
    layer, number = (module.split(mark)[1].split(".")[0] for mark in (".layers.", ".experts."))
    for kind in KINDS:
        pair = [infos.get(f"blk.{layer}.ffn_{kind}_exps.weight.lora_{part}") for part in "ba"]
        if pair[0] is None or pair[1] is None or pair[0].shape[2] <= int(number):
            continue
        left, right = (
            _matrix(header, info).reshape(info.shape[2], info.shape[1], -1)[int(number)] for info in pair if info
        )
        yield (left @ right) * np.float32(alpha / left.shape[1]), CLOSE[pair[0].type]


def _attention(base: Path, architecture: str) -> tuple[dict[str, int], bool]:
    """Heads of q and k, and whether llama.cpp wants their rows with the halves of each head alternating."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ftllm.export.reference import rotates_halves

    config = AutoConfig.from_pretrained(base, local_files_only=True)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    heads = {"attn_q": text.num_attention_heads, "attn_k": getattr(text, "num_key_value_heads", None)}
    known = {name: int(count) for name, count in heads.items() if count}
    return known, bool(rotates_halves(model)) and rope_type(architecture) == NORMAL


def rope_type(architecture: str) -> int:
    """llama.cpp's `llama_rope_type` of an architecture, asked of a model that has nothing but its name."""
    with tempfile.TemporaryDirectory(prefix="ftllm-rope-") as directory:
        path = Path(directory) / "named.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_tokenizer_model("no_vocab")
        writer.add_vocab_size(1)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with Model.load(path, vocab_only=True) as model:
            return int(native.api().llama_model_rope_type(model.handle))


def _matrix(header: Header, info: TensorInfo) -> Floats:
    data = np.fromfile(header.path, dtype=np.uint8, count=info.nbytes, offset=info.offset)
    return dequantize(NUMBERS[info.type], data, info.shape[0])
