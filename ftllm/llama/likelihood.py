"""Negative log-likelihood per assistant token through llama.cpp: the same number as `ftllm.likelihood`'s."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from ftllm.errors import UserError, WorkError
from ftllm.likelihood import Likelihood, targets
from ftllm.llama.context import Context
from ftllm.llama.machine import default_threads, run_side_by_side, side_by_side
from ftllm.llama.model import Model
from ftllm.render import Row

BATCH = 512
LOGITS_BYTES = 64 * 2**20  # logits held at once; 64 positions of a 262k vocabulary


def llama_likelihood(
    model: Model,
    rows: Sequence[Row],
    *,
    on_row: Callable[[int], None] | None = None,
    workers: int | None = None,
) -> Likelihood:
    """Likelihood of rows' labelled tokens under a GGUF, with the ids and the mask of `ftllm.render`.

    Args:
        rows: from `ftllm.render`.
        on_row: called with each row's index when it is done, one call at a time.
        workers: contexts side by side; None chooses as `generate_batch` does. The result does not depend on it.

    Raises:
        UserError: a row has a token the model does not have.
        WorkError: the model computes logits that are not numbers, or memory ran out.
    """
    for row in rows:
        if row.input_ids and max(row.input_ids) >= model.n_vocab:
            raise UserError(
                f"{row.source}: token {max(row.input_ids)} is beyond {model.path.name}'s {model.n_vocab}",
                "the rows were rendered with another tokenizer",
            )
    n_ctx = max((len(row.input_ids) for row in rows), default=1) or 1
    n_workers = max(1, min(workers or side_by_side(model.n_params), len(rows)))
    n_threads = max(1, default_threads(model.n_params) // n_workers)
    n_outputs = min(BATCH, max(1, LOGITS_BYTES // (4 * model.n_vocab)))
    found: dict[int, tuple[float, int]] = {}
    lock = Lock()

    def work(worker: int) -> Generator[None, None, None]:
        with Context(
            model, n_ctx=n_ctx, n_batch=BATCH, n_threads=n_threads, n_outputs=n_outputs, flash_attention=False
        ) as context:
            for index in range(worker, len(rows), n_workers):
                row = rows[index]
                wanted = targets(row)
                context.clear()
                nats_of_row = _row_nats(context, row.input_ids, wanted, n_outputs, row.source)
                with lock:
                    found[index] = nats_of_row, len(wanted)
                    if on_row is not None:
                        on_row(index)
                yield

    run_side_by_side(n_workers, work)
    return Likelihood.of_rows([found[index] for index in range(len(rows))])


def _row_nats(
    context: Context, ids: Sequence[int], wanted: list[tuple[int, int]], n_outputs: int, source: str
) -> float:
    """Nats of one row's `(position, token)` targets, evaluated up to the last of them."""
    total = 0.0
    begin = 0
    while wanted:
        # a chunk ends where the batch, or the room for logits, does
        last = wanted[:n_outputs][-1][0]
        end = min(begin + context.n_batch, last + 1)
        here = [(position, token) for position, token in wanted[:n_outputs] if position < end]
        wanted = wanted[len(here) :]
        positions = np.arange(begin, end, dtype=np.int32)
        outputs = np.isin(positions, [position for position, _ in here])
        context.decode_batch(
            np.asarray(ids[begin:end], dtype=np.int32), positions, np.zeros(end - begin, np.int32), outputs
        )
        if here:
            total += float(nats(context.logits_matrix(), np.array([token for _, token in here])).sum())
        begin = end
    if not np.isfinite(total):
        raise WorkError(f"{context.model.path.name} computed logits that are not numbers ({source})")
    return total


def nats(logits: NDArray[np.float32], tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """-log softmax(logits)[token] of each row, [n], summed in float64; `logits` are float32 [n, n_vocab]."""
    largest = logits.max(axis=1)
    normalizer = np.log(np.exp(logits - largest[:, None]).sum(axis=1, dtype=np.float64))
    chosen = logits[np.arange(len(tokens)), tokens].astype(np.float64)
    result: NDArray[np.float64] = normalizer - (chosen - largest)
    return result
