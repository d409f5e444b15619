"""Answers to many prompts at once: sequences share each batch, and a finished one makes room for the next."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Literal

import numpy as np

from ftllm.errors import UserError, WorkError
from ftllm.llama.context import Context, check_fits
from ftllm.llama.machine import available_memory, default_threads, run_side_by_side, side_by_side
from ftllm.llama.model import Model
from ftllm.llama.sampling import Sampler, Sampling

BATCH = 512
SHARED_LEAST = 32  # tokens that all prompts begin with, from which on they are evaluated once and copied
_EYES = Lock()  # a projector sees one image at a time
CACHE_SHARE = 0.25  # of the memory that is free, for the KV caches of all sequences


StopReason = Literal["stop", "length", "steered"]
Steer = Callable[[int, int], Sequence[int] | None]


@dataclass(frozen=True)
class Generation:
    """What a model answered.

    Attributes:
        tokens: the tokens generated, without the one that ended it.
        text: their text; bytes that are no UTF-8 are U+FFFD, control tokens nothing.
        stop_reason: `stop` at an end-of-generation token, `length` at the limit or the context's end, `steered` where
            `steer` ended it.
    """

    tokens: tuple[int, ...]
    text: str
    stop_reason: StopReason


@dataclass
class _Slot:
    """One sequence at work: `pending` tokens are not evaluated yet, `position` is where they begin."""

    index: int
    sampler: Sampler | None
    pending: list[int]
    position: int = 0
    tokens: list[int] = field(default_factory=list)


def generate_batch(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    max_tokens: int,
    parallel: int = 8,
    on_done: Callable[[int, Generation], None] | None = None,
    workers: int | None = None,
    n_ctx: int = 0,
    seeds: Sequence[int] | None = None,
    steer: Steer | None = None,
) -> list[Generation]:
    """Answer every prompt; the same greedy answers as one by one, but for ties that rounding decides.

    Each prompt has a sampler of its own, seeded by `sampling.seed` and its index, so an answer does not depend on
    which others shared its batch. What all prompts begin with is evaluated once.

    Args:
        prompts: token ids of each, BOS included; images among them as the model's projector encoded them.
        max_tokens: of each answer; an answer also ends where the model's context does.
        parallel: sequences that share a batch; fewer where their caches would not fit in memory.
        on_done: called with a prompt's index and its answer as soon as it is finished, one call at a time.
        workers: contexts side by side, each with its share of the prompts and of the CPU threads. None chooses: one,
            but one a core for models so small that threads would wait for each other longer than they work.
        n_ctx: positions an answer and its prompt may have together; 0 for as many as the model was trained for.
        seeds: each prompt's own seed, in place of those.
        steer: called with a prompt's index and each token of its answer, on the workers' threads; returns tokens to
            put after it, or None to end the answer there.

    Raises:
        UserError: a prompt is empty or longer than the model's context.
        WorkError: the model computes logits that are not numbers, or memory ran out.
    """
    if not prompts:
        return []
    limit = n_ctx or model.n_ctx_train or max(map(len, prompts)) + max_tokens
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"prompt {index} is empty", "give it some text")
        check_fits(model, prompt, limit)
    n_ctx = min(max(map(len, prompts)) + max_tokens, limit)
    affordable = _affordable(model, n_ctx)
    n_workers = max(1, min(workers or side_by_side(model.n_params), affordable, -(-len(prompts) // 2)))
    n_sequences = max(1, min(parallel, affordable // n_workers, -(-len(prompts) // n_workers)))
    seed = random.SystemRandom().getrandbits(32) if sampling.seed is None else sampling.seed
    own_seeds = seeds or [seed + index for index in range(len(prompts))]
    shared = _shared(prompts) if len(prompts) > n_workers else 0
    if shared and n_sequences > 1:
        n_sequences = max(1, min(n_sequences, affordable // n_workers - 1))  # one more cache holds what is shared
    job = _Job(model, prompts, sampling, own_seeds, max_tokens, n_ctx, n_sequences, shared, on_done, steer)
    # every worker has prompts of its own, so that what shares a batch, and hence rounding, does not depend on timing
    run_side_by_side(n_workers, lambda worker: _answer(job, range(worker, len(prompts), n_workers), n_workers))
    return [job.results[index] for index in range(len(prompts))]


@dataclass(frozen=True)
class _Job:
    """What all workers share."""

    model: Model
    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    seeds: Sequence[int]
    max_tokens: int
    n_ctx: int
    n_sequences: int
    shared: int  # tokens that all prompts begin with, 0 where that is not worth a cache of its own
    on_done: Callable[[int, Generation], None] | None
    steer: Steer | None
    results: dict[int, Generation] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def finish(self, slot: _Slot, reason: StopReason) -> None:
        if slot.sampler is not None:
            slot.sampler.close()
        result = Generation(tuple(slot.tokens), self.model.decode_text(slot.tokens), reason)
        with self.lock:
            self.results[slot.index] = result
            if self.on_done is not None:
                self.on_done(slot.index, result)


def _answer(job: _Job, indices: range, n_workers: int) -> Generator[None, None, None]:
    """Answer the prompts of one worker, pausing after every batch."""
    model, queue = job.model, deque(indices)
    slots: dict[int, _Slot] = {}
    n_threads = max(1, default_threads(model.n_params) // n_workers)
    n_caches = job.n_sequences + bool(job.shared)
    with Context(
        model,
        n_ctx=job.n_ctx,
        n_batch=BATCH,
        n_threads=n_threads,
        n_seq_max=n_caches,
        n_outputs=n_caches,
    ) as context:
        if job.shared:
            context.decode(job.prompts[0][: job.shared], start=0, sequence=job.n_sequences, logits="none")
        while queue or slots:
            for sequence in range(job.n_sequences):
                if sequence not in slots and queue:
                    index = queue.popleft()
                    slots[sequence] = _Slot(
                        index, _sampler(job, index), list(job.prompts[index][job.shared :]), job.shared
                    )
                    if job.shared:
                        context.copy(job.n_sequences, sequence)
            for sequence, token in _step(context, slots).items():
                reason = _advance(job, slots[sequence], token)
                if reason is not None:
                    job.finish(slots.pop(sequence), reason)
                    context.remove(sequence, 0)
            yield


def _advance(job: _Job, slot: _Slot, token: int) -> StopReason | None:
    """Add a token to an answer, and what it is steered to; why the answer ends here, if it does."""
    if job.model.is_eog(token):
        return "stop"
    slot.tokens.append(token)
    forced = job.steer(slot.index, token) if job.steer is not None else ()
    if forced is None:
        return "steered"
    slot.tokens.extend(forced)
    slot.pending = [token, *forced]
    if slot.sampler is not None:
        for item in forced:
            slot.sampler.accept(item)
    full = len(slot.tokens) >= job.max_tokens or slot.position + len(slot.pending) > job.n_ctx
    return "length" if full else None


def _shared(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, never all of one; 0 where they are few."""
    least, most = min(map(tuple, prompts)), max(map(tuple, prompts))  # what these two share, all between them do too
    longest = min(map(len, prompts)) - 1
    count = next((place for place in range(longest) if least[place] != most[place] or least[place] < 0), longest)
    return count if count >= SHARED_LEAST else 0


def _sampler(job: _Job, index: int) -> Sampler | None:
    """A prompt's own sampler; None where the largest of the bare logits is all that is wanted."""
    if job.sampling.greedy and not job.sampling.penalizes:
        return None
    return Sampler(job.model, replace(job.sampling, seed=job.seeds[index]))


def _step(context: Context, slots: dict[int, _Slot]) -> dict[int, int]:
    """Evaluate one batch: a token of each answering sequence, and as much of new prompts as fits beside them.

    Returns the next token of each sequence that has nothing left to evaluate.
    """
    tokens: list[int] = []
    positions: list[int] = []
    sequences: list[int] = []
    ready: dict[int, int] = {}  # sequence -> entry of the batch with its logits
    for sequence, slot in sorted(slots.items(), key=lambda item: len(item[1].pending)):
        _see(context, sequence, slot)
        room = context.n_batch - len(tokens)
        image = next((place for place, token in enumerate(slot.pending[:room]) if token < 0), room)
        taken = slot.pending[:image]
        tokens += taken
        positions += range(slot.position, slot.position + len(taken))
        sequences += [sequence] * len(taken)
        slot.position += len(taken)
        slot.pending = slot.pending[len(taken) :]
        if taken and not slot.pending:
            ready[sequence] = len(tokens) - 1
    outputs = np.zeros(len(tokens), dtype=bool)
    outputs[list(ready.values())] = True
    context.decode_batch(
        np.array(tokens, dtype=np.int32),
        np.array(positions, dtype=np.int32),
        np.array(sequences, dtype=np.int32),
        outputs,
    )
    if not ready:
        return {}
    return _choose(context, slots, ready)


def _see(context: Context, sequence: int, slot: _Slot) -> None:
    """Evaluate the images that a sequence goes on with; what follows them is text."""
    while slot.pending and slot.pending[0] < 0:
        projector = context.model.see()
        image = projector.image(slot.pending[0])
        with _EYES:
            projector.decode(context, image, slot.position, sequence)
        slot.position += len(image.ids)
        slot.pending = slot.pending[len(image.ids) :]


def _choose(context: Context, slots: dict[int, _Slot], ready: dict[int, int]) -> dict[int, int]:
    """The next token of each ready sequence."""
    if any(slots[sequence].sampler is not None for sequence in ready):
        chosen = {}
        for sequence, entry in ready.items():
            sampler = slots[sequence].sampler
            assert sampler is not None  # all prompts are sampled alike
            chosen[sequence] = sampler.sample(context, entry)
        return chosen
    logits = context.logits_matrix()
    best = logits.argmax(axis=1)  # the first of equals, as llama.cpp's greedy sampler; NaN counts as largest
    if np.isnan(logits[np.arange(len(best)), best]).any():
        raise WorkError(f"{context.model.path.name} computed logits that are not numbers", "the file is damaged")
    return dict(zip(ready, best.tolist(), strict=True))


def _affordable(model: Model, n_ctx: int) -> int:
    """How many sequences' caches fit in a share of the free memory."""
    each = model.header.kv_bytes_per_token() * n_ctx
    free = available_memory()
    return int(CACHE_SHARE * free / each) if each and free else 1_000_000
