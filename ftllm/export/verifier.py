"""The verifying process: `python -m ftllm.export.verifier`.

It starts with the worker and computes the reference (transformers, float32) while that converts. Then, for each file
named on stdin, it loads it in llama.cpp and compares. A crash of either ends this process and no other.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftllm.export.worker import Channel, Progress, serve

if TYPE_CHECKING:
    from ftllm.export.blocks import Floats
    from ftllm.export.full import FullTruth
    from ftllm.llama.model import Model


@dataclass(frozen=True)
class Truth:
    """What a file must predict: the reference, what the tokenizer says, and one sequence of ids with its logits."""

    reference: Any
    tokens: Any
    ids: tuple[int, ...]
    logits: Any  # [len(ids), n_vocab]
    full: FullTruth | None = None

    @classmethod
    def of(cls, base: Path, adapter: Path | None, offload: Path | None = None, *, alone: bool = True) -> Truth:
        """Compute it from a base and an adapter; `offload` and `alone` as in `Reference`."""
        from ftllm.export import lean

        with lean.for_inference():
            from ftllm.export.reference import Reference
            from ftllm.export.tokens import read_tokens, sequence

            reference = Reference(base, adapter, offload=offload, alone=alone)
        tokens = read_tokens(base, reference.n_vocab)
        ids = sequence(tokens, reference.bos)
        (states,) = reference.hidden([ids])
        return cls(reference, tokens, ids, reference.logits(states))


def prepare() -> None:
    """Import what computes the reference."""
    gc.disable()  # what is imported and made until the reference is there stays
    from ftllm.export import lean

    with lean.for_inference():
        import torch

        import ftllm.export.reference
        import ftllm.export.tokens  # noqa: F401

    torch.set_num_threads(1)  # until the reference knows how many it may take: the worker has the other core


def run(job: dict[str, Any], channel: Channel) -> None:
    """Compute the reference, then verify files until told to stop.

    Args:
        job: `base`, `adapter` (or null), `whole` (whether all of the reference's weights may be in memory at once),
            `scratch` (a directory where they may not), and for `--verify full` `text`, see `full.read_texts`.
    """
    started = time.monotonic()
    base = Path(job["base"])
    adapter = Path(job["adapter"]) if job["adapter"] else None
    offload = None if job["whole"] else Path(job["scratch"])
    truth = Truth.of(base, adapter, offload, alone=bool(job["text"]))
    gc.freeze()
    gc.enable()
    progress = Progress(channel)
    if job["text"]:
        from ftllm.export.full import FullTruth, read_texts

        texts = read_texts(job["text"], base, truth.reference.bos if truth.tokens.adds_bos else None)
        channel.send("texts", tokens=texts.tokens)
        truth = replace(truth, full=FullTruth.of(texts, truth.reference, progress))
    channel.send("ready", seconds=time.monotonic() - started)
    while (order := channel.receive()).get("files"):
        started = time.monotonic()
        figures, faults = verify(order, truth, progress)
        channel.send("verified", type=order["type"], figures=figures, faults=faults, seconds=time.monotonic() - started)


def verify(
    order: dict[str, Any], truth: Truth, progress: Callable[[int, int], None] = lambda *_: None
) -> tuple[dict[str, Any], list[str]]:
    """All checks on one type's file, or its shards; its figures, and its faults as sentences."""
    from ftllm.export import checks, structure
    from ftllm.export.full import measure
    from ftllm.export.shares import shares
    from ftllm.llama.header import read_header
    from ftllm.llama.machine import available_memory
    from ftllm.llama.model import Model

    parts = [(part, read_header(Path(part["path"]))) for part in order["files"]]
    size = sum(part["bytes"] for part in order["files"])
    fits = 2 * size <= available_memory()  # else it is read from the disk as it is needed
    wholes = [replace(one, metadata=parts[0][1].metadata) for _, one in parts]  # of several shards, the first has it
    with ThreadPoolExecutor(2, "check") as pool:  # beside the loading, which takes one processor
        intact = [pool.submit(checks.check_bytes, one.path, part) for part, one in parts]
        found = [pool.submit(shares, whole, truth.reference, order["merged"]) for whole in wholes]
        with Model.load(wholes[0].path, gpu_layers=0, repack=truth.full is not None and fits) as model:
            faults = []
            for (part, _), whole in zip(parts, wholes, strict=True):
                faults += checks.check_header(whole, size=part["bytes"], tensors=part["tensors"])
                faults += structure.check_norms(whole, truth.reference, order["names"])
                faults += structure.check_row_orders(whole, model, truth.reference, order["names"])
            faults += checks.check_tokens(model, wholes[0], truth.tokens)
            faults += checks.check_template(model, truth.tokens)
            predicted = predictions(model, truth.ids)
            for same in intact:
                faults += same.result()
            layers = {layer: share for some in found for layer, share in some.result().items()}
            faults += checks.check_changes(layers)
            figures, others = _compare(predicted, order["type"], layers, truth)
            faults += others
            if truth.full is not None and not faults:
                more, faults = measure(model, order["type"], truth.full, progress)
                figures |= more
    return figures, faults


def _compare(
    predicted: Floats, quant: str, layers: dict[str, tuple[float, float]], truth: Truth
) -> tuple[dict[str, Any], list[str]]:
    """The figures of a file's predictions and of its layers' shares, and what is wrong with the predictions."""
    from ftllm.export import checks, limits
    from ftllm.llama.perplexity import Comparison

    broken = sum(not checks.finite(row) for row in predicted)
    if broken:
        return {}, [f"its logits hold NaN or infinite values at {broken} of {len(predicted)} positions"]
    comparison = Comparison()
    comparison.add(truth.logits, predicted, truth.ids[1:])
    distance = comparison.result()
    figures = {
        "kl_divergence": distance.kl_divergence,
        "same_top": distance.same_top,
        "perplexity_ratio": distance.perplexity_ratio,
        "positions": distance.positions,
    }
    known = [share for share, error in layers.values() if error < 0.1]
    if known:
        figures["adapter_share"] = sum(known) / len(known)
        figures["adapter_layers_checked"] = len(known)
    return figures, limits.judge_distance(quant, distance)


def predictions(model: Model, ids: Sequence[int]) -> Any:
    """A GGUF's logits `[len(ids), n_vocab]`."""
    from ftllm.llama.context import Context

    with Context(model, n_ctx=len(ids), n_batch=len(ids), flash_attention=False) as context:
        context.decode(ids, start=0, logits="all")
        return context.logits_matrix().copy()


def main() -> None:
    """Do the job that arrives on stdin."""
    serve(run, prepare)


if __name__ == "__main__":
    main()
