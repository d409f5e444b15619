"""Which type each tensor gets: llama.cpp's own answer, from a dry run over a header without data."""

from __future__ import annotations

import ctypes
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ftllm.errors import UserError, WorkError
from ftllm.export.blocks import NUMBERS, row_bytes
from ftllm.llama import native
from ftllm.llama.types import FILE_TYPES, TENSOR_TYPES

# llama-quant.cpp: "[%4d/%4d] %-36s - [%s], type = %6s, size = %8.2f MiB -> %8.2f MiB (%s)"
LINE = re.compile(r"\[\s*\d+/\s*\d+\]\s+(\S+)\s+- \[[^]]*\], type =\s*(\S+), size =[^>]*(?:->.*\((\S+)\))?\s*$")
# Types that are garbage without an importance matrix, by `tensor_requires_imatrix` in llama-quant.cpp.
GARBAGE_WITHOUT = {NUMBERS[name] for name in ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")}
EXEMPT = {"token_embd.weight", "per_layer_token_embd.weight", "output.weight"}
ALIGNMENT = 32  # GGUF's default, the only one upstream's converter writes


@dataclass(frozen=True)
class Planned:
    """One tensor of one output file; `shape` is in numpy's order, the row length last."""

    name: str
    shape: tuple[int, ...]
    kind: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape[:-1]) * row_bytes(self.kind, self.shape[-1])


@dataclass(frozen=True)
class Plan:
    """One output file: its tensors in the order llama.cpp writes them."""

    quant: str
    tensors: tuple[Planned, ...]
    fallbacks: int = 0  # tensors whose rows do not divide into the type's blocks

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors, without header and padding."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / sum(prod(tensor.shape) for tensor in self.tensors)

    def shards(self, largest: int | None) -> list[tuple[Planned, ...]]:
        """The tensors by shard, by llama-gguf-split's rule: as many as fit in `largest` bytes; None for one file."""
        shards: list[list[Planned]] = [[]]
        held = 0
        for tensor in self.tensors:
            size = padded(tensor.nbytes)
            if largest is not None and held and held + size > largest:
                shards.append([])
                held = 0
            shards[-1].append(tensor)
            held += size
        return [tuple(shard) for shard in shards]

    def requiring(self) -> list[str]:
        """Tensors that must have an importance matrix."""
        two_bit = {NUMBERS["Q2_K"]} if self.quant == "Q2_K_S" else set()
        return [
            tensor.name
            for tensor in self.tensors
            if tensor.kind in GARBAGE_WITHOUT | two_bit and tensor.name not in EXEMPT
        ]


def plan_all(
    wanted: Sequence[tuple[str, bool]],
    float_file: Sequence[Planned],
    header: bytes,
    overrides: Sequence[tuple[str, int]] = (),
) -> list[Plan]:
    """Plan every requested file over one skeleton: a 16-bit file's `header`, and nothing where its data would be.

    Args:
        wanted: file types, and whether there will be an importance matrix (mixtures depend on it).
        overrides: expressions on tensors' names, and the types such tensors get.

    Raises:
        UserError: an override that matches no tensor.
    """
    shapes = {tensor.name: tensor.shape for tensor in float_file}
    for expression, _ in overrides:
        if not any(re.search(expression, name) for name in shapes):
            raise UserError(f"no tensor's name matches {expression!r}", "names are such as blk.0.ffn_down.weight")
    with tempfile.TemporaryDirectory(prefix="ftllm-plan-") as directory:
        skeleton = Path(directory) / "skeleton.gguf"
        with skeleton.open("wb") as file:
            start = file.write(header)
            file.truncate(start + sum(padded(tensor.nbytes) for tensor in float_file))
        return [_plan(quant, shapes, skeleton, importance, overrides) for quant, importance in wanted]


def _plan(
    quant: str,
    shapes: dict[str, tuple[int, ...]],
    skeleton: Path,
    importance: bool,
    overrides: Sequence[tuple[str, int]],
) -> Plan:
    bindings = native.api()
    params = bindings.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[quant]
    params.dry_run = True
    params.nthread = 1
    if importance:
        params.imatrix = _some_importance(bindings)
    if overrides:
        patterns = [(expression.encode(), kind) for expression, kind in overrides]
        params.tt_overrides = (bindings.llama_model_tensor_override * (len(patterns) + 1))(*patterns)
    with native.captured() as lines:
        code = bindings.llama_model_quantize(bytes(skeleton), bytes(skeleton.with_suffix(".none")), params)
    if code != 0:
        reason = next(
            (line for line in reversed(lines) if "fail" in line.lower()), lines[-1] if lines else "no reason given"
        )
        raise WorkError(f"llama.cpp cannot plan {quant}: {reason.strip()}", "try another type")
    tensors = []
    for line in lines:
        match = LINE.search(line)
        if match:
            kind = NUMBERS["F32"] if quant == "F32" else NUMBERS[(match[3] or match[2]).upper()]
            tensors.append(Planned(match[1], shapes[match[1]], kind))
    if {tensor.name for tensor in tensors} != set(shapes) or len(tensors) != len(shapes):
        raise WorkError(f"llama.cpp's plan for {quant} does not name every tensor", "please report this as a bug")
    fallbacks = sum("falling back" in line for line in lines)
    return Plan(quant, tuple(tensors), fallbacks)


def _some_importance(bindings: Any) -> Any:
    """An importance matrix of one value: a plan asks only whether there is one."""
    values = (ctypes.c_float * 1)(1.0)
    entry = bindings.llama_model_imatrix_data
    return (entry * 2)(entry(b"none", values, 1), entry(None, None, 0))


def padded(size: int) -> int:
    """`size` bytes and what fills them up to the alignment."""
    return size + -size % ALIGNMENT


def types_of(plan: Plan) -> dict[str, int]:
    """How many tensors have each type: `{"Q4_K": 40, "F32": 21}`."""
    counts: dict[str, int] = {}
    for tensor in plan.tensors:
        name = TENSOR_TYPES[tensor.kind].name
        counts[name] = counts.get(name, 0) + 1
    return counts
