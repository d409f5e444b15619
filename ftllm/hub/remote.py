"""The models in a repository: which files make one, and which one fits this machine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ftllm.catalogue import PREFERRED, UNQUANTIZED, fits
from ftllm.errors import UserError
from ftllm.hub.names import SHARD, Reference, quantization

NOT_MODELS = re.compile(r"mmproj|imatrix|(^|[-._/])(lora|adapter)", re.IGNORECASE)
PROJECTORS = ("F16", "BF16", "Q8_0", "F32")  # the first that is there is taken


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository; `sha256` is None where git holds it instead of LFS."""

    path: str
    size: int
    sha256: str | None


@dataclass(frozen=True)
class RemoteModel:
    """A GGUF with all its shards, as a repository's listing tells."""

    type: str
    files: tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def name(self) -> str:
        return self.files[0].path


def models(files: Iterable[RemoteFile], repo: str) -> list[RemoteModel]:
    """The models among a repository's files, smallest first; those with a shard missing are left out."""
    groups: dict[str, list[RemoteFile]] = {}
    for file in sorted(files, key=lambda file: file.path):
        if file.path.endswith(".gguf") and not NOT_MODELS.search(file.path.removeprefix(repo)):
            stem = file.path.removesuffix(".gguf")
            groups.setdefault(SHARD.sub("", stem), []).append(file)
    found = []
    for group in groups.values():
        shard = SHARD.search(group[0].path.removesuffix(".gguf"))
        if shard is None or len(group) == int(shard[2]):
            found.append(RemoteModel(quantization(group[0].path), tuple(group)))
    return sorted(found, key=lambda model: (model.size, model.name))


def projector(files: Iterable[RemoteFile]) -> RemoteFile | None:
    """The vision projector to bring along; None where there is none."""
    found = [file for file in files if file.path.endswith(".gguf") and "mmproj" in file.path.lower()]
    known = {kind: file for file in found for kind in PROJECTORS if quantization(file.path) == kind}
    return next((known[kind] for kind in PROJECTORS if kind in known), found[0] if found else None)


def of_type(types: Sequence[str], wanted: str) -> list[int]:
    """Which of `types` is meant: a publisher's own prefix (`i1-`, `UD-`) may be left out, but an exact match wins."""
    exact = [index for index, kind in enumerate(types) if kind == wanted]
    return exact or [index for index, kind in enumerate(types) if kind.rpartition("-")[2] == wanted]


def choose(found: Sequence[RemoteModel], reference: Reference, memory: int) -> tuple[RemoteModel, str]:
    """The model that is meant, and why that one where nobody said (else empty).

    Without a type it is Q4_K_M where that fits, else the largest quantized one that fits, else the smallest.

    Args:
        memory: bytes to be had; 0 where unknown.

    Raises:
        UserError: there is no GGUF, or none of the type that was named.
    """
    if not found:
        raise UserError(f"{reference.repo} has no GGUF", "look for a repository of that model that ends in -GGUF")
    if reference.quant:
        meant = of_type([model.type for model in found], reference.quant)
        if meant:
            return found[meant[0]], ""
        types = ", ".join(dict.fromkeys(model.type or model.name for model in found))
        raise UserError(f"{reference.repo} has no {reference.quant}", f"it has {types}")
    if len(found) == 1:
        return found[0], "the only one"
    quantized = [model for model in found if model.type not in UNQUANTIZED] or list(found)
    fitting = [model for model in quantized if fits(model.size, memory)]
    preferred = [model for model in fitting if model.type == PREFERRED]
    if preferred:
        return preferred[0], "the usual choice, and it fits"
    if fitting:
        return fitting[-1], "the largest that fits this machine's memory"
    return quantized[0], "the smallest; it may not fit this machine's memory"
