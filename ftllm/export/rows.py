"""A tensor's values by rows, for chunks that are computed, quantized and forgotten one by one.

Upstream's converter describes a tensor as a graph of lazy operations. Where every operation leaves rows alone (a change
of type, rows cut off at the end, the adapter's `W + B @ A`), a few rows can be computed from the same rows of the
checkpoint; so a large embedding is never whole in memory, and every thread computes its own rows. Any other operation
(the permutation of attention heads, experts put together) makes the whole tensor be computed first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import gguf
import numpy as np
import torch
from conversion.base import LazyTorchTensor

from ftllm.errors import UserError
from ftllm.export.blocks import Floats

Read = Callable[[int, int], torch.Tensor]  # rows [start, stop)
Some = Callable[[torch.Tensor, slice], torch.Tensor]  # these rows, and which they are, to the changed rows


@dataclass(frozen=True)
class Rows:
    """Rows of one tensor, its leading dimensions flattened.

    Args:
        count, columns: the shape.
        group: a chunk never crosses a multiple of this many rows: an expert's matrix, or the whole tensor.
        read: float32 rows `[stop - start, columns]`; from any thread, valid until the thread's next call.
    """

    count: int
    columns: int
    group: int
    read: Callable[[int, int], Floats]


class _Buffers(threading.local):
    """A thread's own place for the float32 values of a chunk: memory taken anew for each would cost as much again."""

    floats = torch.empty(0)


_buffers = _Buffers()


def as_float32(part: torch.Tensor) -> torch.Tensor:
    """A copy of `part` in float32 that may be written to, in the calling thread's buffer."""
    if _buffers.floats.numel() < part.numel():
        _buffers.floats = torch.empty(part.numel())
    return _buffers.floats[: part.numel()].view(part.shape).copy_(part)


class Rowwise(LazyTorchTensor):  # type: ignore[misc]
    """A lazy matrix some of whose rows can be had alone: `rows` says how, None when only the whole can be computed."""

    _tensor_type = torch.Tensor
    rows: Read | None = None

    @classmethod
    def of(cls, source: Any, read: Read) -> Rowwise:
        """`source`, a lazy tensor, with `read` as the way to some of its rows."""
        made = cls(meta=source._meta, args=(source,), func=lambda whole: whole)
        made.rows = read
        return made

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Change the type, row by row."""
        made = self._wrap_fn(torch.Tensor.to)(self, *args, **kwargs)
        read = self.rows
        if read is not None:
            convert = as_float32 if args == (torch.float32,) and not kwargs else lambda part: part.to(*args, **kwargs)
            made.rows = lambda start, stop: convert(read(start, stop))
        return made

    def numpy(self) -> Any:
        """The end of the graph: what the writer is given."""
        made = super().numpy()
        made.rows = self.rows
        return made


def _item(self: Rowwise, key: Any) -> Any:
    made = self._wrap_fn(torch.Tensor.__getitem__)(self, key)
    if isinstance(key, slice) and key.start in (None, 0) and key.step in (None, 1):
        made.rows = self.rows
    return made


Rowwise.__getitem__ = _item  # upstream's metaclass overwrites special methods given in the class


def leaf(source: Any) -> Any:
    """A checkpoint's tensor as a `Rowwise`, where it is a matrix; its bytes stay in the file until they are read."""
    if len(source.shape) != 2:
        return source
    opened: list[torch.Tensor] = []

    def read(start: int, stop: int) -> torch.Tensor:
        if not opened:
            opened.append(LazyTorchTensor.to_eager(source))
        return opened[0][start:stop]

    return Rowwise.of(source, read)


def changed(source: Any, whole: Callable[[torch.Tensor], torch.Tensor], some: Some) -> Any:
    """`source` with the adapter's change: `whole` makes all rows, `some` the rows of a slice."""
    meta = LazyTorchTensor.meta_with_dtype_and_shape(torch.float32, source.shape)
    made = Rowwise(meta=meta, args=(source,), func=whole)
    read: Read | None = getattr(source, "rows", None)
    if read is not None:
        made.rows = lambda start, stop: some(read(start, stop), slice(start, stop))
    return made


def rows_of(source: Any, name: str, shape: tuple[int, ...]) -> Rows:
    """How to read a tensor of the writer's by rows: computed whole here, unless rows can be had alone.

    Raises:
        UserError: it is quantized already.
    """
    columns = shape[-1]
    count = prod(shape[:-1])
    group = shape[-2] if len(shape) > 1 else 1
    if by_rows(source, shape):
        return Rows(count, columns, group, lambda start, stop: _array(source.rows(start, stop)))
    if isinstance(source, gguf.LazyChunkedTensor):
        parts = [np.asarray(gguf.LazyNumpyTensor.to_eager(load()), dtype=np.float32) for load in source._chunks]
        values = np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])
    else:
        values = np.asarray(gguf.LazyNumpyTensor.to_eager(source))
    if values.dtype == np.uint8:
        raise UserError(f"{name} is quantized in the checkpoint already", "export from the 16-bit original")
    whole: Floats = np.ascontiguousarray(values.reshape(-1, columns), dtype=np.float32)
    return Rows(count, columns, group, lambda start, stop: whole[start:stop])


def by_rows(source: Any, shape: tuple[int, ...]) -> bool:
    """Whether some rows of a tensor of the writer's can be had alone."""
    return len(shape) == 2 and getattr(source, "rows", None) is not None


def _array(part: torch.Tensor) -> Floats:
    values: Floats = (part if part.dtype == torch.float32 else as_float32(part)).numpy()
    return values
