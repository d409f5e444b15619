"""How much of the adapter is really in a file, layer by layer: what low-bit noise would hide in the predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ftllm.export import blocks
from ftllm.export.blocks import Floats
from ftllm.llama.header import Header, TensorInfo

LAYERS, ROWS = 48, 128  # at most so many layers, and rows of each, are looked at
KINDS = ("gate", "up", "down")  # of an expert's matrices


def shares(header: Header, reference: Any, merged: dict[str, str]) -> dict[str, tuple[float, float]]:
    """By adapter module: how much of its change its tensor holds, and that figure's standard error.

    Args:
        reference: an `ftllm.export.reference.Reference`.
        merged: adapter modules by the name of the GGUF tensor that holds them.
    """
    infos = {tensor.name: tensor for tensor in header.tensors}
    names = sorted(name for name in merged if name in infos)
    if len(names) > LAYERS:  # a fixed draw: even steps could miss every layer of one kind
        names = sorted(np.random.default_rng(0).choice(names, LAYERS, replace=False).tolist())
    found = {}
    for name in names:
        info = infos[name]
        rows = np.unique(np.linspace(0, info.shape[1] - 1, ROWS).astype(np.int64))
        values = read_rows(header, info, rows)
        candidates = []
        for order in row_orders(header, info.name, info.shape[1]):
            base, delta = reference.change(merged[name], order[rows])
            candidates.append(relative_change(base, delta, values))
        found[merged[name]] = min(candidates, key=lambda candidate: candidate[1])
    return found | _shares_of_experts(infos, header, reference)


def _shares_of_experts(
    infos: Mapping[str, TensorInfo], header: Header, reference: Any
) -> dict[str, tuple[float, float]]:
    """The same of single experts, which a GGUF holds together by kind; which kind one is, its numbers tell."""
    whole = len(KINDS)  # of a layer that no shard's end cuts
    names = [name for name in reference.single_experts if len(_kinds(infos, name)) == whole]
    if len(names) > LAYERS:
        names = sorted(np.random.default_rng(0).choice(names, LAYERS, replace=False).tolist())
    found = {}
    for name in names:
        out, into = reference.shape(name)
        rows = np.unique(np.linspace(0, out - 1, ROWS).astype(np.int64))
        base, delta = reference.change(name, rows)
        first = int(name.split(".experts.")[1].split(".")[0]) * out
        candidates = [
            relative_change(base, delta, read_rows(header, info, first + rows))
            for info in _kinds(infos, name)
            if tuple(info.shape[:2]) == (into, out)
        ]
        if candidates:
            found[name] = min(candidates, key=lambda candidate: candidate[1])
    return found


def _kinds(infos: Mapping[str, TensorInfo], name: str) -> list[TensorInfo]:
    """The GGUF's tensors of the experts in one's layer."""
    layer = name.split(".layers.")[1].split(".")[0]
    return [infos[full] for kind in KINDS if (full := f"blk.{layer}.ffn_{kind}_exps.weight") in infos]


def read_rows(header: Header, info: TensorInfo, rows: npt.NDArray[np.int64]) -> Floats:
    """Some rows of a tensor in float32, `[len(rows), columns]`; of several matrices, as if they were one."""
    data = np.memmap(header.path, dtype=np.uint8, mode="r", offset=info.offset, shape=(info.nbytes,))
    chosen = data.reshape(prod(info.shape[1:]), -1)[rows]
    return blocks.dequantize(blocks.NUMBERS[info.type], chosen.reshape(-1), info.shape[0])


def row_orders(header: Header, name: str, rows: int) -> Iterator[npt.NDArray[np.int64]]:
    """Orders the base's rows may have in the file: their own, and for q and k the interleaved one.

    Which of the two is right is `ftllm.export.structure`'s to say.
    """
    yield np.arange(rows)
    if (order := interleaved(header, name, rows)) is not None:
        yield order


def interleaved(header: Header, name: str, rows: int) -> npt.NDArray[np.int64] | None:
    """For q and k, the base's row behind each row in llama.cpp's interleaved RoPE; None for other tensors.

    There the two halves of each head alternate (`LlamaModel.permute` in llama.cpp's conversion/llama.py).
    """
    if not name.endswith(("attn_q.weight", "attn_k.weight")):
        return None
    heads = header.integer("attention.head_count" + ("_kv" if name.endswith("attn_k.weight") else ""))
    if not heads or rows % (2 * heads):
        return None
    return halves_alternating(heads, rows)


def halves_alternating(heads: int, rows: int) -> npt.NDArray[np.int64]:
    """The row behind each of `rows`, the two halves of each head by turns."""
    return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def relative_change(base: Floats, delta: Floats, merged: Floats) -> tuple[float, float]:
    """How much of `delta` is in `merged - base`, by least squares, and that figure's standard error.

    A right merge gives 1; quantization adds noise but no bias. A weight whose rows have another order has an error
    too large to mean anything.
    """
    change, rest = delta.ravel(), np.subtract(merged, base).ravel()
    power = float(change @ change)
    if power == 0.0:
        return 1.0, float("inf")
    share = float(rest @ change) / power
    rest -= np.float32(share) * change
    return share, float(np.sqrt(float(rest @ rest) / rest.size / power))
