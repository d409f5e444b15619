"""The base model: where it lies, what is in it, and what of it a run keeps."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftllm.errors import UserError
from ftllm.hashes import known_sha256
from ftllm.hubfiles import is_repository, snapshot
from ftllm.mirrors import is_four_bit, original
from ftllm.vocabulary import TOKENIZER_FILES, TOKENIZER_PATTERNS

# Everything a tokenizer may be made of; copied byte for byte, since transformers 5 re-saves it incompletely.
TOKENIZER_PARTS = (
    *TOKENIZER_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "spiece.model",
    "vocab.txt",
)
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
HUB_PATTERNS = (*TOKENIZER_PATTERNS, "*.safetensors")


@dataclass(frozen=True)
class Base:
    """A base model on this machine.

    Attributes:
        path: its directory, absolute.
        repository: `org/name` where it came from the Hub.
        revision: the commit of that repository.
        config: its config.json.
    """

    path: Path
    repository: str | None
    revision: str | None
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """What to call it: the repository's or the directory's last part."""
        return self.repository.rpartition("/")[2] if self.repository else self.path.name

    @property
    def reference(self) -> str:
        """What an adapter names as its base: the repository, or the absolute path."""
        return self.repository or str(self.path)

    @property
    def weights(self) -> list[Path]:
        """The safetensors files that hold its weights.

        Raises:
            UserError: one that its index names is missing.
        """
        index = self.path / "model.safetensors.index.json"
        if not index.is_file():
            return [self.path / "model.safetensors"]
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError):
            raise UserError(f"{index} is not an index of weights", "download the model again") from None
        for name in names:
            if not (self.path / name).is_file():
                raise UserError(f"{self.path} lacks {name}, which its index names", "download the model again")
        return [self.path / name for name in names]

    @property
    def files(self) -> list[Path]:
        """What decides its behaviour: configuration, tokenizer and weights."""
        others = ("config.json", "generation_config.json", *TOKENIZER_PARTS)
        return [self.path / name for name in others if (self.path / name).is_file()] + self.weights

    def record(self) -> dict[str, Any]:
        """For the manifest: path or repository@revision, and the SHA-256 of every file."""
        place: dict[str, Any] = {"path": str(self.path)}
        if self.repository:
            place |= {"repo": self.repository, "revision": self.revision}
        files = {str(file.relative_to(self.path)): known_sha256(file) for file in sorted(self.files)}
        return {**place, "files": files}

    def parameters(self) -> int:
        """How many weights its files hold, from their headers alone.

        Raises:
            UserError: a file is not safetensors or is cut short.
        """
        return sum(math.prod(entry["shape"]) for path in self.weights for entry in _tensors_of(path))

    @property
    def precision(self) -> str:
        """What most of its weights are stored in, and an adapter is merged into."""
        stored: Counter[str] = Counter()
        for path in self.weights:
            for entry in _tensors_of(path):
                stored[entry["dtype"]] += math.prod(entry["shape"])
        kind = stored.most_common(1)[0][0]
        return DTYPES.get(kind, kind.lower())

    def copy_tokenizer(self, directory: Path) -> None:
        """Copy its tokenizer files, byte for byte, into `directory`."""
        for name in TOKENIZER_PARTS:
            if (self.path / name).is_file():
                shutil.copyfile(self.path / name, directory / name)


def find(model: str, *, offline: bool = False) -> Base:
    """The base that `model` names: a directory, or else a Hub repository, fetched unless `offline`.

    Raises:
        UserError: there is no such model, or it lacks its configuration, weights or tokenizer.
        WorkError: the download failed.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return _checked(path.resolve(), None, None)
    if path.exists():
        hint = "a GGUF cannot be trained; give the directory it was made from"
        raise UserError(f"{model} is not a directory", hint if path.suffix == ".gguf" else "give a model directory")
    if not is_repository(model):
        raise UserError(f"no model directory {model}", "give a directory, or a Hub repository such as org/name")
    repository, _, revision = model.partition("@")
    if is_four_bit(repository):
        raise _four_bit(repository, original(repository))
    directory = snapshot(repository, revision=revision or None, patterns=HUB_PATTERNS, offline=offline)
    return _checked(directory, repository, directory.name)


def _checked(path: Path, repository: str | None, revision: str | None) -> Base:
    place = repository or str(path)
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = "give a directory that holds config.json, *.safetensors and tokenizer files"
        if (path / "adapter_config.json").is_file():
            hint = "this is an adapter; give the base it was trained on"
        raise UserError(f"{place} is not a model: it has no config.json", hint) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path / 'config.json'} cannot be read: {error}", "download the model again") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise UserError(f"{path / 'config.json'} names no model_type", "give a model that transformers knows")
    if "quantization_config" in config:
        raise _four_bit(place, "the model it was made from")
    if not any((path / name).is_file() for name in WEIGHTS):
        other = "; it has pytorch_model.bin, which is not read" if any(path.glob("*.bin")) else ""
        raise UserError(f"{place} has no weights{other}", "a model directory holds model.safetensors or its shards")
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"{place} has no tokenizer", f"a model directory holds one of {', '.join(TOKENIZER_FILES)}")
    return Base(path, repository, revision, config)


def _four_bit(place: str, instead: str) -> UserError:
    """A base is what the adapter is merged into."""
    return UserError(
        f"{place} is already quantized, and a merge needs 16-bit weights",
        f"give {instead}; on a GPU it is loaded in 4-bit by itself",
    )


def _tensors_of(path: Path) -> list[dict[str, Any]]:
    """`dtype` and `shape` of each tensor in a safetensors file.

    Its header is a length (8 bytes, little-endian) and that much JSON.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, 100_000_000):  # the format's own limit on headers
                raise ValueError
            header = json.loads(file.read(length))
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        if 8 + length + max(entry["data_offsets"][1] for entry in tensors) != size:
            raise ValueError
    except FileNotFoundError:
        raise UserError(f"{path} is missing", "download the model again") from None
    except (ValueError, KeyError, TypeError, struct.error, AttributeError):
        raise UserError(
            f"{path} is not a whole safetensors file", "it may be cut short; download the model again"
        ) from None
    return tensors
