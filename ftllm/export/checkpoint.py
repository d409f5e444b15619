"""A model directory as it lies on disk: its shards' headers, and what of it the converter would stumble over late."""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ftllm.errors import UserError

INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors")
LARGEST_HEADER = 100 << 20  # safetensors' own limit
EXPERTS = re.compile(r"(?P<layer>.+\.experts)\.(?P<number>\d+\.)?")
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
TOKENIZERS = ("tokenizer.model", "tokenizer.json", "vocab.json", "vocab.txt", "tekken.json")
AGAIN = "download the model again"
# What the metadata of a GGUF is made of but for what was trained: people change these, and it stays the same base.
SETTINGS = ("generation_config.json", "README.md")
DECISIVE = (
    "config.json", *TOKENIZERS, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt",
    "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
)  # fmt: skip
LARGE = ("tokenizer.json", "vocab.json", "tekken.json")  # vocabularies: parsing them takes a while
LAYER = re.compile(r"(?:model\.|language_model\.)+layers\.(\d+)\.")
EMBEDDING = re.compile(r"(?:model\.|language_model\.)+embed_tokens\.weight")

Tensors = dict[str, tuple[str, tuple[int, ...]]]  # dtype and shape by name


def check_checkpoint(model: Path) -> None:
    """Refuse early what the converter would refuse late.

    Raises:
        UserError: no config, no safetensors weights, missing or damaged shards, weights of another shape than the
            config's, no tokenizer, or 4-bit weights.
    """
    config = read_json(model / "config.json", "a model directory needs config.json")
    quantized = config.get("quantization_config")
    if isinstance(quantized, dict) and quantized.get("quant_method") == "bitsandbytes":
        raise UserError(
            f"{model} holds weights quantized by bitsandbytes",
            "export merges into the 16-bit original: name it with --base",
        )
    check_shards(model)
    _check_shape(model, config)
    for name in DECISIVE + SETTINGS:
        if name.endswith(".json") and name not in LARGE and (model / name).is_file():
            read_json(model / name, "copy it again from the original")
    if not any((model / name).is_file() for name in TOKENIZERS):
        raise UserError(f"{model} has no tokenizer", f"one of {', '.join(TOKENIZERS[:3])} must lie beside the weights")
    architectures = config.get("architectures")
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    if architecture.startswith("Gemma") and not (model / "tokenizer.model").is_file():
        raise UserError(
            f"{model} has no tokenizer.model (saved again by transformers, which drops it)",
            "copy all tokenizer files from the original base model; without them control tokens turn into text",
        )


def has_vision(model: Path) -> bool:
    """Whether a checkpoint's configuration names a vision part."""
    return bool(read_json(model / "config.json", "a model directory needs config.json").get("vision_config"))


def weight_files(model: Path) -> list[Path]:
    """The safetensors files of a checkpoint: those its index names, or all there are where it has none."""
    index = model / INDEX
    if index.is_file():
        return [model / name for name in sorted(set(_weight_map(index).values()))]
    return sorted(model.glob("model*.safetensors"))


def check_shards(model: Path) -> None:
    """Refuse a checkpoint whose weights are not all there, each tensor where the index says.

    Raises:
        UserError: no safetensors, a shard that is missing or cut short, or an index of other shards.
    """
    index, files = model / INDEX, weight_files(model)
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise UserError(f"{model} lacks {', '.join(missing)}", f"{AGAIN}; a shard is missing")
    if not files:
        pickled = sorted(model.glob("*.bin"))
        hint = "convert them to safetensors first; pickled weights are never loaded" if pickled else "is it complete?"
        raise UserError(f"{model} has no safetensors weights", hint)
    held = {name: path.name for path in files for name in read_header(path)}
    of = {match[1] for path in files if (match := SHARD.fullmatch(path.name))}
    if not index.is_file():
        if of:
            raise UserError(f"{model} has shards, but no {INDEX} that says what is in them", AGAIN)
        return
    named = _weight_map(index)
    for name in sorted(named.keys() - held.keys()):
        raise UserError(f"{model / named[name]} lacks {name}, which the index says it holds", AGAIN)
    for name in sorted(held.keys() - named.keys()):
        raise UserError(f"{index} does not name {name} of {held[name]}", f"{AGAIN}; index and shards do not match")
    for path in sorted(model.glob("model-*.safetensors")):
        match = SHARD.fullmatch(path.name)
        if match and match[1] in of and path not in files:
            raise UserError(f"{index} does not name {path.name}", f"{AGAIN}; index and shards do not match")


def _check_shape(model: Path, config: dict[str, Any]) -> None:
    """Refuse weights with fewer layers, or another vocabulary or width, than the configuration says."""
    text = config.get("text_config") or config
    layers, rows, width = (
        text.get(key) if isinstance(text, dict) else None for key in ("num_hidden_layers", "vocab_size", "hidden_size")
    )
    tensors = {name: shape for path in weight_files(model) for name, (_, shape) in read_header(path).items()}
    held = {int(match[1]) for name in tensors if (match := LAYER.match(name))}
    hint = "config.json and weights do not belong together; " + AGAIN
    if held and isinstance(layers, int) and (missing := set(range(layers)) - held):
        raise UserError(f"{model} has no weights for layer {min(missing)} of {layers}", hint)
    for name, shape in tensors.items():
        wanted = tuple(known or found for known, found in zip((rows, width), shape, strict=False))
        if EMBEDDING.fullmatch(name) and shape != wanted:
            raise UserError(f"{model}: {name} is {list(shape)} where config.json says {list(wanted)}", hint)


def base_files(model: Path) -> list[Path]:
    """The files of a checkpoint that decide what comes out: weights, configuration and tokenizer."""
    return sorted(
        {*weight_files(model), *(model / name for name in (*DECISIVE, *SETTINGS) if (model / name).is_file())}
    )


@dataclass(frozen=True)
class Extent:
    """How large a checkpoint is.

    Args:
        parameters: weights in all.
        largest: weights of its largest tensor, an embedding as a rule.
        rows: of its tallest matrix: tokens in the vocabulary, as a rule.
        width: bytes of a weight as it is stored, the widest there is.
        mixed: whether weights are of several types.
        experts: weights of experts that are stored one by one.
        layer: weights of one layer's experts, the most there are.
        inner: values that a token becomes inside an MLP, of all experts it goes through.
        heads: of attention.
    """

    parameters: int
    largest: int
    rows: int
    width: int
    mixed: bool = False
    experts: int = 0
    layer: int = 0
    inner: int = 0
    heads: int = 0


def extent(model: Path) -> Extent:
    """Measure a checkpoint by its shards' headers."""
    tensors = {name: tensor for shard in weight_files(model) for name, tensor in read_header(shard).items()}
    sizes = {name: prod(shape) for name, (_, shape) in tensors.items()}
    kinds = {kind for kind, _ in tensors.values()}
    experts = {name: match for name in tensors if (match := EXPERTS.match(name)) is not None}
    config = read_json(model / "config.json", AGAIN)
    text: dict[str, Any] = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    heads, used = (text.get(key) for key in ("num_attention_heads", "num_experts_per_tok"))
    rows = max((shape[0] for _, shape in tensors.values() if len(shape) == 2), default=0)
    widths = [
        max(shape[-2:]) * (used if name in experts and isinstance(used, int) else 1)
        for name, (_, shape) in tensors.items()
        if len(shape) > 1 and shape[0] != rows
    ]
    layers: Counter[str] = Counter()
    for name, match in experts.items():
        layers[match["layer"]] += sizes[name]
    return Extent(
        sum(sizes.values()),
        max(sizes.values(), default=0),
        rows,
        max((WIDTHS.get(kind, 4) for kind in kinds), default=4),
        len(kinds) > 1,
        sum(sizes[name] for name, match in experts.items() if match["number"]),
        max(layers.values(), default=0),
        max(widths, default=0),
        heads if isinstance(heads, int) else 0,
    )


def read_header(path: Path) -> Tensors:
    """A safetensors file's tensors: name -> (dtype, shape), after checking that the file is as long as it says.

    Raises:
        UserError: not safetensors, or cut short.
    """
    hint = "copy, download or train it again"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(LARGEST_HEADER, size - 8):
                raise UserError(f"{path} is not a safetensors file, or is cut short", hint)
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors = {name: (str(entry["dtype"]), tuple(map(int, entry["shape"]))) for name, entry in header.items()}
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", "is the directory complete?") from None
    except ValueError:
        raise UserError(f"{path} is not a safetensors file: its header is not JSON", hint) from None
    except (AttributeError, KeyError, IndexError, TypeError):
        raise UserError(f"{path} is not a safetensors file: its header does not describe tensors", hint) from None
    if size != 8 + length + end:
        raise UserError(f"{path} is cut short: {size} bytes where its header promises {8 + length + end}", hint)
    return tensors


def read_json(path: Path, hint: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: there is none; `hint` says what to do.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing", hint) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", hint) from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not JSON, nor text at all", hint) from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}", hint) from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object", hint)
    return value


def _weight_map(index: Path) -> dict[str, str]:
    """Shards by tensor."""
    found = read_json(index, AGAIN).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise UserError(f"{index} is not an index of weights", AGAIN)
    return found
