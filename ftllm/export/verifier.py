"""The verifying process: `python -m ftllm.export.verifier`.

It starts with the worker and computes the reference (transformers, float32) while that converts. Then, for each file
named on stdin, it loads it in llama.cpp and compares. A crash of either ends this process and no other.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ftllm.export.worker import Channel, serve


def run(job: dict[str, Any], channel: Channel) -> None:
    """Compute the reference, then verify files until told to stop.

    Args:
        job: `base`, `adapter` (or null).
    """
    started = time.monotonic()
    from ftllm.export import reference

    base, adapter = Path(job["base"]), Path(job["adapter"]) if job["adapter"] else None
    truth = reference.Reference(base, adapter)
    tokens = reference.read_tokens(base, truth.n_vocab)
    sequences = reference.sequences(tokens, truth.bos)
    logits = [truth.logits(ids) for ids in sequences]
    channel.send("ready", seconds=time.monotonic() - started)
    while (order := channel.receive()).get("file"):
        started = time.monotonic()
        figures, faults = verify(order, tokens, truth, sequences, logits)
        channel.send("verified", type=order["type"], figures=figures, faults=faults, seconds=time.monotonic() - started)


def verify(
    order: dict[str, Any], tokens: Any, truth: Any, sequences: list[tuple[int, ...]], logits: list[Any]
) -> tuple[dict[str, Any], list[str]]:
    """All checks on one file; its figures, and its faults as sentences."""
    from ftllm.export import checks
    from ftllm.llama.context import Context
    from ftllm.llama.header import read_header
    from ftllm.llama.model import Model

    path = Path(order["file"])
    header = read_header(path)
    faults = checks.check_file(path, header, size=order["bytes"], sha256=order["sha256"], tensors=order["tensors"])
    if faults:
        return {}, faults
    shares = changes(header, truth, order["merged"])
    faults += checks.check_changes(shares)
    with Model.load(path, gpu_layers=0) as model:
        faults += checks.check_tokens(model, header, tokens)
        faults += checks.check_template(model, tokens)
        found = []
        longest = max(len(ids) for ids in sequences)
        with Context(model, n_ctx=longest + 8, n_batch=longest + 8) as context:
            for ids in sequences:
                context.clear()
                context.decode(ids, start=0, logits="all")
                found.append(context.logits_matrix().copy())
    if not all(bool((values == values).all()) and abs(values).max() < float("inf") for values in found):
        return {}, [*faults, "its logits hold NaN or infinite values"]
    distance = checks.distance(logits, found, sequences)
    faults += checks.check_distance(order["type"], distance)
    figures = {
        "kl_divergence": distance.kl_divergence,
        "same_top": distance.same_top,
        "perplexity_ratio": distance.perplexity_ratio,
        "positions": distance.positions,
        "samples": len(sequences),
    }
    known = [share for share, error in shares.values() if error < 0.1]
    if known:
        figures["adapter_share"] = sum(known) / len(known)
        figures["adapter_layers_checked"] = len(known)
    return figures, faults


def changes(header: Any, truth: Any, merged: dict[str, str], most: int = 64) -> dict[str, tuple[float, float]]:
    """For up to `most` changed layers: how much of the adapter is in the file, and the figure's standard error."""
    import numpy as np

    from ftllm.export import blocks
    from ftllm.export.reference import relative_change

    infos = {tensor.name: tensor for tensor in header.tensors}
    names = [name for name in merged if name in infos]
    step = max(1, -(-len(names) // most))
    shares = {}
    for name in names[::step]:
        info = infos[name]
        change = truth.change(merged[name])
        data = np.fromfile(header.path, dtype=np.uint8, count=info.nbytes, offset=info.offset)
        values = blocks.dequantize(blocks.NUMBERS[info.type], data, info.shape[0])
        if values.shape == change.weight.shape:
            shares[merged[name]] = relative_change(change, values)
    return shares


if __name__ == "__main__":
    serve(run)
