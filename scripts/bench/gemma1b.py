"""A checkpoint of Gemma 3 1B's shape with random weights, in 600 MB shards, and a rank-16 adapter: for benchmarks.

    python scripts/bench/gemma1b.py DIR      # DIR/base (2 GB) and DIR/adapter (52 MB); nothing where they are already

The tokenizer is the nano model's with 260,096 pieces more, so that it is as large as Gemma's; no text contains them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

NANO = Path(__file__).resolve().parents[2] / "models" / "nano"
COPIED = ("chat_template.jinja", "generation_config.json", "special_tokens_map.json", "tokenizer_config.json")
VOCABULARY, WIDTH, LAYERS, INNER, HEADS, HEAD = 262_144, 1152, 26, 6912, 4, 256
SHARD = 600_000_000
RANK = 16
SEED = 3407
LINEAR = {  # name within a layer -> (out, in)
    "self_attn.q_proj": (HEADS * HEAD, WIDTH),
    "self_attn.k_proj": (HEAD, WIDTH),
    "self_attn.v_proj": (HEAD, WIDTH),
    "self_attn.o_proj": (WIDTH, HEADS * HEAD),
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}
NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of the checkpoint, in order."""
    yield "model.embed_tokens.weight", (VOCABULARY, WIDTH)
    for layer in range(LAYERS):
        for name, shape in LINEAR.items():
            yield f"model.layers.{layer}.{name}.weight", shape
        for name in NORMS:
            yield f"model.layers.{layer}.{name}.weight", (WIDTH,)
        for name in ("q_norm", "k_norm"):
            yield f"model.layers.{layer}.self_attn.{name}.weight", (HEAD,)
    yield "model.norm.weight", (WIDTH,)


def write_weights(base: Path) -> None:
    """Random bfloat16 weights, a shard at a time."""
    import torch

    torch.manual_seed(SEED)
    write_shards(base, shapes(), SHARD, lambda shape: (torch.randn(shape) * 0.02).bfloat16())


def write_shards(
    base: Path, tensors: Iterable[tuple[str, tuple[int, ...]]], limit: int, fill: Callable[[tuple[int, ...]], Any]
) -> None:
    """Bfloat16 tensors by name and shape, a shard of at most `limit` bytes at a time, and the index of them."""
    from safetensors.torch import save_file

    groups: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    held = 0
    for name, shape in tensors:
        size = 2 * prod(shape)
        if held and held + size > limit:
            groups.append([])
            held = 0
        groups[-1].append((name, shape))
        held += size
    places, total = {}, 0
    for number, group in enumerate(groups, 1):
        shard = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        filled = {name: fill(shape) for name, shape in group}
        save_file(filled, base / shard, metadata={"format": "pt"})
        places |= dict.fromkeys(filled, shard)
        total += sum(tensor.nbytes for tensor in filled.values())
    write(base / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})


def write_config(base: Path) -> None:
    config: dict[str, Any] = json.loads((NANO / "config.json").read_text())
    config |= {
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "head_dim": HEAD,
        "query_pre_attn_scalar": HEAD,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 32768,
        "layer_types": ["full_attention" if layer % 6 == 5 else "sliding_attention" for layer in range(LAYERS)],
    }
    write(base / "config.json", config)


def write_tokenizer(base: Path) -> None:
    """The nano model's tokenizer and as many pieces more, pairs of private characters, as Gemma's has."""
    from sentencepiece import sentencepiece_model_pb2 as sentencepiece

    for name in COPIED:
        shutil.copy(NANO / name, base / name)
    model = sentencepiece.ModelProto()
    model.ParseFromString((NANO / "tokenizer.model").read_bytes())
    fast: dict[str, Any] = json.loads((NANO / "tokenizer.json").read_text(encoding="utf-8"))
    private = map(chr, range(0xE000, 0xE000 + 520))
    lowest = min(piece.score for piece in model.pieces)
    for pair in itertools.product(private, repeat=2):
        number = len(model.pieces)
        if number == VOCABULARY:
            break
        text = "".join(pair)
        model.pieces.add(piece=text, score=lowest - number)
        fast["model"]["vocab"][text] = number
    model.trainer_spec.vocab_size = VOCABULARY
    (base / "tokenizer.model").write_bytes(model.SerializeToString())
    write(base / "tokenizer.json", fast)


def write_adapter(adapter: Path, base: Path) -> None:
    """A LoRA of rank 16 on every linear layer, as peft saves it."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(SEED + 1)
    tensors = {}
    for layer in range(LAYERS):
        for name, (out, into) in LINEAR.items():
            stem = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(RANK, into) / into**0.5
            tensors[f"{stem}.lora_B.weight"] = torch.randn(out, RANK) * 0.01
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    write(adapter / "adapter_config.json", {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base.resolve()),
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({name.rpartition(".")[2] for name in LINEAR}),
    })  # fmt: skip


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")


def make(directory: Path) -> tuple[Path, Path]:
    """`directory/base` and `directory/adapter`, each made whole or not at all."""
    base, adapter = directory / "base", directory / "adapter"
    with _whole(base) as place:
        if place is not None:
            write_weights(place)
            write_config(place)
            write_tokenizer(place)
    with _whole(adapter) as place:
        if place is not None:
            write_adapter(place, base)
    return base, adapter


@contextmanager
def _whole(place: Path) -> Iterator[Path | None]:
    """A directory to fill, which then becomes `place`; None where `place` is there already."""
    if place.is_dir():
        yield None
        return
    unfinished = place.with_name(place.name + ".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    unfinished.rename(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    for place in make(parser.parse_args().directory):
        print(place)


if __name__ == "__main__":
    main()
