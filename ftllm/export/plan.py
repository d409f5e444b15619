"""Which type each tensor gets: llama.cpp's own answer, from a dry run over a header without data."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from ftllm.errors import WorkError
from ftllm.export.blocks import NUMBERS, row_bytes
from ftllm.llama import native
from ftllm.llama.types import FILE_TYPES, TENSOR_TYPES

# llama-quant.cpp: "[%4d/%4d] %-36s - [%s], type = %6s, size = %8.2f MiB -> %8.2f MiB (%s)"
LINE = re.compile(r"\[\s*\d+/\s*\d+\]\s+(\S+)\s+- \[[^]]*\], type =\s*(\S+), size =[^>]*(?:->.*\((\S+)\))?\s*$")


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
    fallbacks: int  # tensors whose rows do not divide into the type's blocks

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors, without header and padding."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / sum(prod(tensor.shape) for tensor in self.tensors)


def plan_all(quants: Sequence[str], float_file: Sequence[Planned], header: bytes) -> list[Plan]:
    """Plan every requested file over one skeleton: a 16-bit file's `header`, and nothing where its data would be."""
    shapes = {tensor.name: tensor.shape for tensor in float_file}
    with tempfile.TemporaryDirectory(prefix="ftllm-plan-") as directory:
        skeleton = Path(directory) / "skeleton.gguf"
        with skeleton.open("wb") as file:
            start = file.write(header)
            file.truncate(start + sum(tensor.nbytes + 32 for tensor in float_file))
        return [_plan(quant, shapes, skeleton) for quant in quants]


def _plan(quant: str, shapes: dict[str, tuple[int, ...]], skeleton: Path) -> Plan:
    bindings = native.api()
    params = bindings.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[quant]
    params.dry_run = True
    params.nthread = 1
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


def types_of(plan: Plan) -> dict[str, int]:
    """How many tensors have each type: `{"Q4_K": 40, "F32": 21}`."""
    counts: dict[str, int] = {}
    for tensor in plan.tensors:
        name = TENSOR_TYPES[tensor.kind].name
        counts[name] = counts.get(name, 0) + 1
    return counts
