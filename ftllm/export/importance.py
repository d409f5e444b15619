"""Importance matrices on disk: llama.cpp's GGUF format (`tools/imatrix/imatrix.cpp`), read as llama-quantize does."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ftllm.errors import UserError
from ftllm.export.blocks import Floats
from ftllm.export.plan import Plan, padded
from ftllm.files import sha256_file, whole_file
from ftllm.llama.header import Header, LongArray, read_header

SUMS, COUNTS = ".in_sum2", ".counts"
LONGEST_NAME = 127  # bytes of a string that llama-quantize keeps


@dataclass(frozen=True)
class Importance:
    """Mean squared activations of each weight's input columns, expert after expert, by tensor."""

    path: Path
    values: Mapping[str, Floats]
    dataset: str
    chunks: int

    def metadata(self) -> dict[str, str | int]:
        """The keys llama-quantize writes about it."""
        keys: dict[str, str | int] = {"quantize.imatrix.file": _cut(self.path.name)}
        if self.dataset:
            keys["quantize.imatrix.dataset"] = _cut(self.dataset)
        keys["quantize.imatrix.entries_count"] = len(self.values)
        if self.chunks > 0:
            keys["quantize.imatrix.chunks_count"] = self.chunks
        return keys

    def record(self) -> dict[str, Any]:
        """What `export.json` says about it."""
        return {
            "file": self.path.name,
            "sha256": sha256_file(self.path),
            "dataset": self.dataset,
            "chunks": self.chunks,
            "entries": len(self.values),
        }

    def check(self, plan: Plan) -> None:
        """Refuse it where llama.cpp would stop half-way.

        Raises:
            UserError: it is of another model, or lacks a tensor that cannot do without.
        """
        for tensor in plan.tensors:
            found = self.values.get(tensor.name)
            wanted = tensor.shape[-1] * (tensor.shape[-3] if len(tensor.shape) > 2 else 1)
            if found is not None and found.size != wanted and tensor.name != "token_embd.weight":
                raise UserError(
                    f"{self.path} is of another model: it has {found.size} values for {tensor.name}, not {wanted}",
                    "measure one on this model: --imatrix auto",
                )
        missing = [name for name in plan.requiring() if name not in self.values]
        if missing:
            raise UserError(
                f"{self.path} has nothing for {missing[0]}, which as {plan.quant} needs it",
                "measure one on this model: --imatrix auto",
            )


def load(path: Path) -> Importance:
    """Read an importance matrix.

    Raises:
        UserError: it is none, damaged, or in llama-imatrix's old format.
    """
    try:
        header = read_header(path)
    except UserError as error:
        hint = "give one in GGUF format, as llama-imatrix writes by default"
        raise UserError(f"{path} is not an importance matrix: {error.message}", hint) from None
    if header.kind != "imatrix":
        raise UserError(
            f"{path} is a GGUF of kind {header.kind!r}, not an importance matrix",
            "give one that llama-imatrix or `ftllm export --imatrix auto` wrote",
        )
    tensors = {tensor.name: tensor for tensor in header.tensors}
    values = {}
    for name in tensors:
        if name.endswith(SUMS):
            weight = name.removesuffix(SUMS)
            if weight + COUNTS not in tensors:
                raise UserError(f"{path} is damaged: it has no counts for {weight}", "measure it again")
            values[weight] = _means(_values(header, tensors[name]), _values(header, tensors[weight + COUNTS]))
    if not values:
        raise UserError(f"{path} holds no importance of any tensor", "measure it again")
    broken = next((name for name, means in values.items() if not np.isfinite(means).all()), None)
    if broken is not None:
        raise UserError(f"{path} holds NaN or infinite values for {broken}", "measure it again")
    datasets = header.metadata.get("imatrix.datasets")
    dataset = "" if datasets is None or isinstance(datasets, LongArray) or not datasets else str(datasets[0])
    return Importance(path, values, dataset, int(header.metadata.get("imatrix.chunk_count", 0)))


def save(
    path: Path, sums: Mapping[str, Floats], counts: Mapping[str, Floats], *, dataset: str, chunks: int, chunk_size: int
) -> None:
    """Write an importance matrix, whole or not at all.

    Args:
        sums: by tensor, sums of squared activations, `[experts, columns]`.
        counts: by tensor, how many activations were summed, `[experts]`.
        dataset: what it was measured on, in words.
    """
    text = _string(dataset)
    metadata = [
        _string("general.type") + struct.pack("<I", 8) + _string("imatrix"),
        _string("imatrix.datasets") + struct.pack("<IIQ", 9, 8, 1) + text,
        _string("imatrix.chunk_count") + struct.pack("<II", 4, chunks),
        _string("imatrix.chunk_size") + struct.pack("<II", 4, chunk_size),
    ]
    infos, data = b"", []
    offset = 0
    for name in sorted(sums):
        for suffix, values, columns in ((SUMS, sums[name], sums[name].shape[-1]), (COUNTS, counts[name], 1)):
            dense = np.ascontiguousarray(values, dtype="<f4")
            infos += _string(name + suffix) + struct.pack("<IQQIQ", 2, columns, dense.size // columns, 0, offset)
            data.append(dense.tobytes() + bytes(-dense.nbytes % 32))
            offset += padded(dense.nbytes)
    start = struct.pack("<4sIQQ", b"GGUF", 3, len(data), len(metadata)) + b"".join(metadata) + infos
    with whole_file(path) as partial, partial.open("wb") as file:
        file.write(start + bytes(-len(start) % 32))
        file.writelines(data)


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _cut(text: str) -> str:
    return text.encode("utf-8")[:LONGEST_NAME].decode("utf-8", "ignore")


def _values(header: Header, tensor: Any) -> Floats:
    if tensor.type != "F32":
        raise UserError(f"{header.path} is damaged: {tensor.name} is {tensor.type}", "measure it again")
    shape = tensor.shape[::-1]
    return np.fromfile(header.path, dtype="<f4", count=tensor.elements, offset=tensor.offset).reshape(shape)


def _means(sums: Floats, counts: Floats) -> Floats:
    """Sums over counts; an expert that no token reached counts as ones, as in llama-quantize."""
    columns = sums.size // counts.size
    per = counts.reshape(-1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.where(per > 0, sums.reshape(-1, columns) / per, np.float32(1.0))
    return np.ascontiguousarray(means, dtype=np.float32).reshape(-1)
