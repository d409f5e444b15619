"""What a converter does to weights besides copying them, looked at tensor by tensor, so that a slip has a name.

The predictions of a low-bit file may hide one wrong norm, and those of a float file say only that something is wrong.
Truth is the reference's own module: a norm is what it makes of +1 and -1, and which halves of a head rotate together
is what its model's `rotate_half` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ftllm.export import blocks
from ftllm.export.blocks import Floats
from ftllm.export.limits import NORM
from ftllm.export.shares import interleaved, read_rows
from ftllm.llama import native
from ftllm.llama.header import Header, TensorInfo
from ftllm.llama.model import Model

MATRICES, ROWS = 16, 64  # at most so many q and k matrices, and rows of each, are looked at
CLEAR = 0.5  # relative error up to which rows are the base's, whatever the type; other rows are at 1.4
NORMAL, NEOX = 0, 2  # enum llama_rope_type in llama.h: neighbouring rows rotate together, or halves of a head


def check_norms(header: Header, reference: Any, names: Mapping[str, str]) -> list[str]:
    """Every norm holds what the model multiplies by: in Gemma 1 more than the checkpoint holds.

    Args:
        reference: an `ftllm.export.reference.Reference`.
        names: the GGUF's names of tensors by the checkpoint's.
    """
    for name, info in _tensors(header, names):
        if len(info.shape) != 1 or not name.endswith(".weight"):
            continue
        wanted = reference.norm(name.removesuffix(".weight"))
        if wanted is None:
            continue
        off = _values(header, info) - wanted
        size = float(np.abs(wanted).max())
        if float(np.abs(off).max()) <= NORM * size:
            continue
        if float(np.abs(off + 1.0).max()) <= NORM * (1.0 + size):
            return [f"{info.name} lacks the 1 that the model adds to it: the converter did not treat it as a norm"]
        return [f"{info.name} is not the model's norm: it differs by up to {float(np.abs(off).max()):.3g}"]
    return []


def check_row_orders(header: Header, model: Model, reference: Any, names: Mapping[str, str]) -> list[str]:
    """The rows of q and k are in the order that llama.cpp's rotary embedding takes for this architecture."""
    halves = reference.rotates_halves
    rope = int(native.api().llama_model_rope_type(model.handle))
    if halves is None or rope not in (NORMAL, NEOX):
        return []
    found = [item for item in _tensors(header, names) if item[1].name.endswith(("attn_q.weight", "attn_k.weight"))]
    for name, info in found[:: max(1, -(-len(found) // MATRICES))]:
        order = interleaved(header, info.name, info.shape[1])
        rows = np.unique(np.linspace(0, info.shape[1] - 1, ROWS).astype(np.int64))
        if order is None or np.array_equal(order[rows], rows):
            continue
        values = read_rows(header, info, rows)
        natural, permuted = (_off(reference.rows(name, picked), values) for picked in (rows, order[rows]))
        should_permute = halves and rope == NORMAL
        right, wrong = (permuted, natural) if should_permute else (natural, permuted)
        if wrong < min(0.5 * right, CLEAR):  # quantization's noise is in both
            how = "are not permuted, as llama.cpp wants them" if should_permute else "are permuted, and must not be"
            return [f"{info.name}: its rows {how} for {header.architecture}; attention would be nonsense"]
    return []


def _tensors(header: Header, names: Mapping[str, str]) -> Iterator[tuple[str, TensorInfo]]:
    infos = {info.name: info for info in header.tensors}
    for name, gguf_name in names.items():
        if gguf_name in infos:
            yield name, infos[gguf_name]


def _values(header: Header, info: TensorInfo) -> Floats:
    data = np.fromfile(header.path, dtype=np.uint8, count=info.nbytes, offset=info.offset)
    values: Floats = blocks.dequantize(blocks.NUMBERS[info.type], data, info.shape[0])[0]
    return values


def _off(truth: Floats, values: Floats) -> float:
    return float(np.linalg.norm(truth - values) / np.linalg.norm(truth))
