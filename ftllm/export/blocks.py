"""ggml's block formats: rows of float32 to quantized bytes and back, chunk by chunk and without Python's lock."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from ftllm.errors import WorkError
from ftllm.llama import native
from ftllm.llama.types import TENSOR_TYPES

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
F32, Q8_0 = 0, 8
EIGHTS = 32  # values in a block of Q8_0
NEARLY_HALF = float(np.nextafter(np.float32(0.5), np.float32(0.0)))
NUMBERS = {kind.name: number for number, kind in TENSOR_TYPES.items()}

_room = threading.local()  # a thread's own place for numbers under way: memory taken anew costs as much as they do
TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class TypeTraits(ctypes.Structure):
    """`struct ggml_type_traits` of ggml.h."""

    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", TO_FLOAT),
        ("from_float_ref", ctypes.c_void_p),
    ]


def row_bytes(kind: int, columns: int) -> int:
    """Bytes of a row of `columns` values."""
    traits = TENSOR_TYPES[kind]
    return columns // traits.block * traits.bytes


def quantize(kind: int, rows: Floats, importance: Floats | None = None) -> Bytes:
    """Quantize `rows` `[n, columns]` to type `kind`; the bytes are those `llama_model_quantize` writes.

    Args:
        importance: of each column, `[columns]` (an importance matrix's mean squared activations); None for alike.

    Raises:
        WorkError: the result holds blocks that ggml itself calls invalid (NaN or infinite scales).
    """
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    if kind == F32:
        return rows.copy().view(np.uint8).reshape(-1)
    out = _eight_bits(rows) if kind == Q8_0 else None
    if out is None:
        out = _quantized(kind, rows, importance)
    validate = native.ggml("ggml_validate_row_data", ctypes.c_bool, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
    if not validate(kind, out.ctypes.data, out.size):
        raise WorkError(f"quantizing to {TENSOR_TYPES[kind].name} gave invalid blocks", "the weights may be damaged")
    return out


def _quantized(kind: int, rows: Floats, importance: Floats | None) -> Bytes:
    """By ggml itself."""
    n, columns = rows.shape
    out = np.empty(n * row_bytes(kind, columns), dtype=np.uint8)
    call = native.ggml(
        "ggml_quantize_chunk", ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
        ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    )  # fmt: skip
    weights = None if importance is None else importance.ctypes.data
    written = call(kind, rows.ctypes.data, out.ctypes.data, 0, n, columns, weights)
    if written != out.size:
        raise WorkError(f"quantizing to {TENSOR_TYPES[kind].name} gave {written} bytes, not {out.size}", "report it")
    return out


def _eight_bits(rows: Floats) -> Bytes | None:
    """Q8_0, byte by byte what ggml makes; None where a block's numbers are too small for their scale's inverse.

    A block is a float16 scale, its largest size over 127, and 32 multiples of that. ggml calls C's `roundf` for one
    number after another; a whole chunk at once takes half of the time. Ties go away from zero in `roundf`: what cutting
    off makes of a number to which just less than a half was added.
    """
    import torch

    values = torch.from_numpy(rows).view(-1, EIGHTS)
    if getattr(_room, "size", 0) < rows.size:
        _room.size, _room.floats = rows.size, torch.empty(2, rows.size)
    scaled, signs = (part[: rows.size].view(values.shape) for part in _room.floats)
    torch.abs(values, out=scaled)
    scales = scaled.amax(1, keepdim=True) / 127
    inverse = torch.where(scales == 0.0, 0.0, 1.0 / scales)
    if inverse.isinf().any():
        return None
    torch.mul(values, inverse, out=scaled)
    scaled.add_(torch.sign(scaled, out=signs), alpha=NEARLY_HALF)
    out = torch.empty((len(values), 2 + EIGHTS), dtype=torch.int8)
    out[:, :2] = scales.half().view(torch.int8)
    out[:, 2:] = scaled
    made: Bytes = out.view(-1).numpy().view(np.uint8)
    return made


def dequantize(kind: int, data: Bytes, columns: int) -> Floats:
    """The float32 rows `[n, columns]` that quantized bytes stand for."""
    if kind == F32:
        return data.view(np.float32).reshape(-1, columns)
    n = data.size // row_bytes(kind, columns)
    out = np.empty((n, columns), dtype=np.float32)
    data = np.ascontiguousarray(data)
    _traits(kind).to_float(data.ctypes.data, out.ctypes.data, out.size)
    return out


def _traits(kind: int) -> Any:
    get = native.ggml("ggml_get_type_traits", ctypes.POINTER(TypeTraits), ctypes.c_int)
    return get(kind).contents
