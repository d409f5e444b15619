"""One pass over the tensors, into every requested file at once.

A tensor is computed in float32, cut into chunks of rows, and each chunk is quantized to each file's type on a pool of
threads (ggml releases Python's lock), while the next tensor is being computed. The bytes go out in order, hashed as
they go; each chunk is read back and its error against the float32 source bounded.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import IO, Any

import numpy as np

from ftllm.errors import WorkError
from ftllm.export import blocks
from ftllm.export.blocks import Bytes, Floats
from ftllm.export.plan import Plan, Planned
from ftllm.llama.machine import available_cpus
from ftllm.llama.types import TENSOR_TYPES

CHUNK = 1 << 19  # values a chunk: 2 MB of float32, small enough to share among threads
AHEAD = 64  # chunks in flight
ALIGNMENT = 32  # GGUF's default, the only one upstream's converter writes

# Largest root-mean-square error of a tensor, relative to its own root mean square. About three times what each
# format does to normally distributed weights; a scrambled or unscaled block is far beyond.
ERROR_BOUNDS = {
    "F32": 0.0, "F16": 0.002, "BF16": 0.005, "Q8_0": 0.02, "Q6_K": 0.06, "Q5_K": 0.12, "Q5_0": 0.15, "Q5_1": 0.12,
    "Q4_K": 0.25, "Q4_0": 0.30, "Q4_1": 0.25, "IQ4_NL": 0.25, "IQ4_XS": 0.25, "Q3_K": 0.45, "IQ3_S": 0.45,
    "IQ3_XXS": 0.60, "Q2_K": 0.75,
}  # fmt: skip


@dataclass
class Output:
    """One file being written, and what is known about it so far."""

    plan: Plan
    path: Path
    header: bytes
    file: IO[bytes]
    digest: Any = field(default_factory=hashlib.sha256)
    size: int = 0
    worst: tuple[float, str] = (0.0, "")  # largest relative error seen, and the tensor it was in
    errors: dict[str, list[float]] = field(default_factory=dict)  # by type: relative error of each tensor

    def write(self, data: bytes | memoryview) -> None:
        self.file.write(data)
        self.digest.update(data)
        self.size += len(data)

    def pad(self) -> None:
        self.write(bytes(-self.size % ALIGNMENT))


@dataclass(frozen=True)
class Chunk:
    """A chunk quantized for one file: its bytes, and the sums its error is computed from."""

    data: Bytes
    wrong: float  # sum of squared differences
    whole: float  # sum of squares


def stream(
    outputs: Sequence[Output],
    floats: Callable[[str], Floats],
    *,
    check: bool,
    progress: Callable[[int, str], None],
) -> None:
    """Write every tensor into every output. All plans must name the same tensors in the same order.

    Args:
        floats: computes a tensor's float32 rows by name; called once for each, from another thread.
        check: read each chunk back and bound its error.
        progress: told the bytes written so far, over all outputs, and the tensor's name.

    Raises:
        WorkError: a weight is not finite, or a tensor's error is beyond its type's bound.
    """
    names = [tensor.name for tensor in outputs[0].plan.tensors]
    for output in outputs:
        output.write(output.header)
    with ThreadPoolExecutor(available_cpus(), "quantize") as pool, ThreadPoolExecutor(1, "compute") as ahead:
        following = ahead.submit(floats, names[0])
        for index, name in enumerate(names):
            rows = following.result()
            if index + 1 < len(names):
                following = ahead.submit(floats, names[index + 1])
            _tensor(outputs, [output.plan.tensors[index] for output in outputs], rows, pool, check)
            del rows
            progress(sum(output.size for output in outputs), name)


def _tensor(
    outputs: Sequence[Output], planned: Sequence[Planned], rows: Floats, pool: ThreadPoolExecutor, check: bool
) -> None:
    wrong, whole = [0.0] * len(outputs), [0.0] * len(outputs)
    for turn, future in _in_order(rows, planned, pool, check):
        chunk = future.result()
        outputs[turn].write(chunk.data.data)
        wrong[turn] += chunk.wrong
        whole[turn] += chunk.whole
    for output, tensor, bad, all_ in zip(outputs, planned, wrong, whole, strict=True):
        output.pad()
        if check:
            _judge(output, tensor, bad, all_)


def _in_order(
    rows: Floats, planned: Sequence[Planned], pool: ThreadPoolExecutor, check: bool
) -> Iterator[tuple[int, Future[Chunk]]]:
    """Chunks of each file in order, at most `AHEAD` of them in flight."""
    step = max(1, CHUNK // rows.shape[1])
    queue: deque[tuple[int, Future[Chunk]]] = deque()
    for start in range(0, rows.shape[0], step):
        part = rows[start : start + step]
        for turn, tensor in enumerate(planned):
            queue.append((turn, pool.submit(_chunk, tensor.kind, part, tensor.name, check)))
        while len(queue) > AHEAD:
            yield queue.popleft()
    yield from queue


def _chunk(kind: int, rows: Floats, name: str, check: bool) -> Chunk:
    whole = float(np.vdot(rows, rows))
    if not np.isfinite(whole) and not np.isfinite(rows).all():
        raise WorkError(f"{name} holds NaN or infinite weights", "training diverged, or the checkpoint is damaged")
    data = blocks.quantize(kind, rows)
    if not check or kind == blocks.F32:
        return Chunk(data, 0.0, whole)
    back = blocks.dequantize(kind, data, rows.shape[1])
    np.subtract(back, rows, out=back)
    return Chunk(data, float(np.vdot(back, back)), whole)


def _judge(output: Output, tensor: Planned, wrong: float, whole: float) -> None:
    kind = TENSOR_TYPES[tensor.kind].name
    error = sqrt(wrong / whole) if whole > 0 else sqrt(wrong)
    output.errors.setdefault(kind, []).append(error)
    if error > output.worst[0]:
        output.worst = (error, tensor.name)
    bound = ERROR_BOUNDS.get(kind)
    if bound is not None and not error <= bound:
        raise WorkError(
            f"{tensor.name} as {kind} is off by {error:.1%} of its size, more than {bound:.1%}",
            "the quantizer or this machine's memory is at fault; please report it",
        )
