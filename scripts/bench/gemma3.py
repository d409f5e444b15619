"""Gemma 3 checkpoints in their real shapes with random weights: 1B (text), 4B, 12B and 27B (with vision).

    python scripts/bench/gemma3.py 4B DIR        # 8.6 GB of bfloat16, in shards of 4 GB; nothing where it is already

For benchmarks and checks that must not download anything. Names and shapes are those that transformers gives the
published configurations; the tokenizer is gemma1b.py's, as large as Gemma's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gemma1b import VOCABULARY, write, write_shards, write_tokenizer

SHARD = 4_000_000_000
SEED = 3407


@dataclass(frozen=True)
class Shape:
    """What the published config.json of a size says.

    Attributes:
        scalar: `query_pre_attn_scalar`, from which attention is scaled.
        vision: whether it sees.
    """

    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    scalar: int
    window: int
    vision: bool
    head: int = 256
    context: int = 131_072


SHAPES = {
    "1B": Shape(1152, 6912, 26, 4, 1, 256, 512, vision=False, context=32_768),
    "4B": Shape(2560, 10_240, 34, 8, 4, 256, 1024, vision=True),
    "12B": Shape(3840, 15_360, 48, 16, 8, 256, 1024, vision=True),
    "27B": Shape(5376, 21_504, 62, 32, 16, 168, 1024, vision=True, head=128),
}
SIGLIP = {"hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "model_type": "siglip_vision_model",
          "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14}  # fmt: skip
# How published checkpoints of vision models call what transformers calls otherwise in memory.
PUBLISHED = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}
PICTURES = {
    "image_processor_type": "Gemma3ImageProcessor", "processor_class": "Gemma3Processor", "image_seq_length": 256,
    "do_resize": True, "size": {"height": 896, "width": 896}, "resample": 2, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    "do_pan_and_scan": None,
}  # fmt: skip


def configuration(shape: Shape, vocabulary: int = VOCABULARY) -> dict[str, Any]:
    """Its config.json."""
    text = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_heads,
        "head_dim": shape.head,
        "query_pre_attn_scalar": shape.scalar,
        "sliding_window": shape.window,
        "vocab_size": vocabulary,
        "max_position_embeddings": shape.context,
        "layer_types": ["full_attention" if layer % 6 == 5 else "sliding_attention" for layer in range(shape.layers)],
        "model_type": "gemma3_text",
    }
    ids = {"bos_token_id": 2, "eos_token_id": [1, 106], "pad_token_id": 0, "dtype": "bfloat16"}
    if not shape.vision:
        return {"architectures": ["Gemma3ForCausalLM"], **text, **ids}
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": text,
        "vision_config": SIGLIP,
        "mm_tokens_per_image": 256,
        **ids,
    }


def tensors(directory: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that a checkpoint with that config.json holds."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    kind = AutoModelForImageTextToText if config.model_type == "gemma3" else AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(config)
    for name, parameter in model.named_parameters():  # tied weights once
        start = next((inside for inside in PUBLISHED if name.startswith(inside)), "")
        yield PUBLISHED.get(start, "") + name.removeprefix(start), tuple(parameter.shape)


def write_weights(directory: Path, limit: int = SHARD) -> None:
    """Random bfloat16 weights, a shard of at most `limit` bytes at a time.

    Matrices are as training begins with; what has one dimension is zero, for Gemma adds one to a norm's weight.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device=device).manual_seed(SEED)

    def fill(shape: tuple[int, ...]) -> Any:
        if len(shape) == 1:
            return torch.zeros(shape, dtype=torch.bfloat16)
        return (torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16) * 0.02).cpu()

    write_shards(directory, tensors(directory), limit, fill)


def make(shape: Shape, directory: Path, *, vocabulary: int = VOCABULARY) -> Path:
    """The checkpoint, made unless it is there."""
    if (directory / "model.safetensors.index.json").is_file():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    write(directory / "config.json", configuration(shape, vocabulary))
    write_tokenizer(directory)
    if shape.vision:
        write(directory / "preprocessor_config.json", PICTURES)
        write(directory / "processor_config.json", {"processor_class": "Gemma3Processor", "image_seq_length": 256})
    write_weights(directory)
    return directory


def size(shape: Shape) -> int:
    """Bytes of its weights, about: the vision tower has 0.4 G."""
    attention = shape.hidden * shape.head * 2 * (shape.heads + shape.key_heads)
    layer = attention + 3 * shape.hidden * shape.inner
    return 2 * (VOCABULARY * shape.hidden + shape.layers * layer + (420_000_000 if shape.vision else 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=list(SHAPES))
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    print(make(SHAPES[arguments.shape], arguments.directory))


if __name__ == "__main__":
    main()
