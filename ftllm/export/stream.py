"""One pass over the tensors, into every requested file at once.

A tensor is cut into chunks of rows. On a pool of threads, each chunk is computed in float32 (read, merged) and
quantized to each file's type, without Python's lock, while the chunks before it are written. The bytes go out in order,
hashed as they go; each chunk is read back and its error against the float32 source bounded.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ftllm.errors import UserError, WorkError
from ftllm.export import blocks
from ftllm.export.blocks import Bytes, Floats
from ftllm.export.limits import ERROR_BOUNDS
from ftllm.export.plan import ALIGNMENT, Plan, Planned
from ftllm.llama.machine import available_cpus
from ftllm.llama.types import TENSOR_TYPES

if TYPE_CHECKING:
    from ftllm.export.rows import Rows

CHUNK = 1 << 18  # values a chunk: 1 MB of float32 stays in a core's cache from reading to quantizing
AHEAD = 16  # chunks in flight a thread


@dataclass
class Part:
    """One file being written: an output's only one, or a shard of it."""

    path: Path
    header: bytes
    tensors: int
    file: IO[bytes]
    digest: Any = field(default_factory=hashlib.sha256)
    size: int = 0
    checksum: Any = None  # another digest, much quicker to compare a file with

    def write(self, data: bytes | memoryview) -> None:
        self.file.write(data)
        self.digest.update(data)
        if self.checksum is not None:
            self.checksum.update(data)
        self.size += len(data)


@dataclass
class Output:
    """What is being written for one type, and what is known about it so far.

    Args:
        parts: its file, or its shards.
        importance: by tensor, the importance of each column (of each expert's, one after the other).
    """

    plan: Plan
    parts: list[Part]
    importance: Mapping[str, Floats] = field(default_factory=dict)
    worst: tuple[float, str] = (0.0, "")  # largest relative error seen, and the tensor it was in
    errors: dict[str, list[float]] = field(default_factory=dict)  # by type: relative error of each tensor
    current: int = 0  # the part being written
    left: int = 0  # tensors it still has to get

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    def begin(self) -> None:
        """Write the headers."""
        for part in self.parts:
            part.write(part.header)
        self.left = self.parts[0].tensors

    def write(self, data: bytes | memoryview) -> None:
        """More bytes of the tensor under way."""
        self.parts[self.current].write(data)

    def end_tensor(self) -> None:
        """Fill up to the alignment; the next tensor may go into the next part."""
        self.write(bytes(-self.parts[self.current].size % ALIGNMENT))
        self.left -= 1
        if self.left == 0 and self.current + 1 < len(self.parts):
            self.current += 1
            self.left = self.parts[self.current].tensors


@dataclass(frozen=True)
class Chunk:
    """A chunk quantized for one file: its bytes, and the sums its error is computed from."""

    data: Bytes
    wrong: float  # sum of squared differences
    whole: float  # sum of squares


@dataclass
class _Tensor:
    """A tensor under way: what each file makes of it, and the sums of its errors so far."""

    name: str
    planned: list[Planned]
    importance: list[Floats | None]
    wrong: list[float]
    whole: list[float]


def stream(
    outputs: Sequence[Output],
    rows: Callable[[str], Rows],
    *,
    check: bool,
    progress: Callable[[int, str], None],
) -> None:
    """Write every tensor into every output. All plans must name the same tensors in the same order.

    Args:
        rows: how to read a tensor by name; called once for each, from another thread.
        check: read each chunk back and bound its error.
        progress: told the bytes written so far, over all outputs, and the tensor's name.

    Raises:
        UserError: a weight is not finite.
        WorkError: a tensor's error is beyond its type's bound.
    """
    for output in outputs:
        output.begin()
    threads = available_cpus()
    under_way: deque[tuple[_Tensor, Future[list[Chunk]], bool]] = deque()
    with ThreadPoolExecutor(threads, "quantize") as pool, ThreadPoolExecutor(1, "compute") as computing:
        try:
            for task in _submitted(outputs, rows, check, pool, computing):
                under_way.append(task)
                while len(under_way) > AHEAD * threads:
                    _settle(outputs, under_way.popleft(), check, progress)
            while under_way:
                _settle(outputs, under_way.popleft(), check, progress)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _submitted(
    outputs: Sequence[Output],
    rows: Callable[[str], Rows],
    check: bool,
    pool: ThreadPoolExecutor,
    computing: ThreadPoolExecutor,
) -> Iterator[tuple[_Tensor, Future[list[Chunk]], bool]]:
    """Every chunk of every tensor, being computed; True with a tensor's last one."""
    names = [tensor.name for tensor in outputs[0].plan.tensors]
    following = computing.submit(rows, names[0])
    for index, name in enumerate(names):
        source = following.result()
        if index + 1 < len(names):
            following = computing.submit(rows, names[index + 1])
        nothing = [0.0] * len(outputs)
        importance = [output.importance.get(name) for output in outputs]
        tensor = _Tensor(name, [output.plan.tensors[index] for output in outputs], importance, [*nothing], [*nothing])
        several = any(matrix is not None and matrix.size > source.columns for matrix in importance)
        for start, stop in _ranges(source.count, source.group if several else source.count, source.columns):
            yield tensor, pool.submit(_chunk, source, start, stop, tensor, check), stop == source.count
        del source


def _ranges(count: int, group: int, columns: int) -> Iterator[tuple[int, int]]:
    """Chunks of rows, none across a multiple of `group`."""
    step = max(1, CHUNK // columns)
    for first in range(0, count, group):
        for start in range(first, first + group, step):
            yield start, min(start + step, first + group)


def _settle(
    outputs: Sequence[Output],
    task: tuple[_Tensor, Future[list[Chunk]], bool],
    check: bool,
    progress: Callable[[int, str], None],
) -> None:
    """Write a chunk; with a tensor's last, judge its errors."""
    tensor, future, last = task
    for turn, (output, chunk) in enumerate(zip(outputs, future.result(), strict=True)):
        output.write(chunk.data.data)
        tensor.wrong[turn] += chunk.wrong
        tensor.whole[turn] += chunk.whole
    if last:
        for output, planned, wrong, whole in zip(outputs, tensor.planned, tensor.wrong, tensor.whole, strict=True):
            output.end_tensor()
            if check:
                _judge(output, planned, wrong, whole)
    progress(sum(output.size for output in outputs), tensor.name)


def _chunk(source: Rows, start: int, stop: int, tensor: _Tensor, check: bool) -> list[Chunk]:
    """Rows `[start, stop)` quantized for every file; files that want the same share it."""
    rows = source.read(start, stop)
    whole = float(np.vdot(rows, rows))
    if not np.isfinite(whole) and not np.isfinite(rows).all():
        raise UserError(
            f"{tensor.name} holds NaN or infinite weights", "its training diverged, or the checkpoint is damaged"
        )
    made: dict[tuple[int, int], Chunk] = {}
    for planned, importance in zip(tensor.planned, tensor.importance, strict=True):
        key = (planned.kind, id(importance))
        if key not in made:
            made[key] = _quantized(planned.kind, rows, _slice(importance, source, start), whole, check)
    return [
        made[planned.kind, id(importance)]
        for planned, importance in zip(tensor.planned, tensor.importance, strict=True)
    ]


def _slice(importance: Floats | None, source: Rows, start: int) -> Floats | None:
    """The part for the expert whose rows begin at or before `start`."""
    if importance is None or importance.size == source.columns:
        return importance
    expert = start // source.group
    return importance[expert * source.columns : (expert + 1) * source.columns]


def _quantized(kind: int, rows: Floats, importance: Floats | None, whole: float, check: bool) -> Chunk:
    data = blocks.quantize(kind, rows, importance)
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
