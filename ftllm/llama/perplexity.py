"""Perplexity and KL divergence by llama.cpp's definitions (tools/perplexity/perplexity.cpp).

A text is one stream of ids, cut into chunks of `n_ctx` that do not overlap; where a model adds a BOS, it stands in
place of each chunk's first id. The second half of each chunk is scored, so that every prediction has something before
it. Perplexity is exp(mean negative log-likelihood); the KL divergence of a position is sum(p * (log p - log q)), `p`
the reference's probabilities and `q` the model's. Standard errors are those of a mean of independent positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ftllm.llama.context import Context
from ftllm.llama.model import Model

N_CTX = 512  # llama-perplexity's default
SHORTEST = 32  # tokens of a chunk; below, what precedes a prediction says little
LOGITS_BYTES = 64 * 2**20  # logits held at once; 64 positions of a 262k vocabulary
DECIDED = 2.0  # a reference is decided where its likeliest token is so many times as likely as any other

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Chunk:
    """The ids of one chunk, the BOS in its place."""

    ids: tuple[int, ...]

    @property
    def scored(self) -> slice:
        """The positions whose predictions count: the second half, but for the last, which nothing follows."""
        return slice(len(self.ids) // 2, len(self.ids) - 1)

    @property
    def following(self) -> tuple[int, ...]:
        """What really follows each scored position."""
        return self.ids[len(self.ids) // 2 + 1 :]


def chunk_length(tokens: int) -> int | None:
    """Tokens a chunk: `N_CTX`, halved until a stream of `tokens` holds two; None where it is too short for any."""
    length = N_CTX
    while length > SHORTEST and 2 * length > tokens:
        length //= 2
    return length if 2 * length <= tokens else None


def cut(ids: Sequence[int], length: int, *, bos: int | None, most: int | None = None) -> list[Chunk]:
    """A stream as chunks of `length`, at most `most`; the rest at its end is left out.

    Args:
        bos: what stands in place of each chunk's first id; None where the model adds none.
    """
    starts = range(0, len(ids) - length + 1, length)[:most]
    head = () if bos is None else (bos,)
    return [Chunk((*head, *ids[start + len(head) : start + length])) for start in starts]


def predictions(model: Model, chunks: Sequence[Chunk], *, n_threads: int | None = None) -> Iterator[tuple[int, Floats]]:
    """A GGUF's logits at every scored position: the chunk's number, and some rows `[n, n_vocab]`, in order.

    A view that is valid until the next is asked for. Close the iterator to free the context early.
    """
    longest = max(len(chunk.ids) for chunk in chunks)
    n_outputs = min(longest, max(1, LOGITS_BYTES // (4 * model.n_vocab)))
    with Context(
        model, n_ctx=longest, n_batch=longest, n_outputs=n_outputs, n_threads=n_threads, flash_attention=False
    ) as context:
        for number, chunk in enumerate(chunks):
            context.clear()
            first, last = chunk.scored.start, chunk.scored.stop
            context.decode(chunk.ids[:first], start=0, logits="none")
            for begin in range(first, last, n_outputs):
                end = min(begin + n_outputs, last)
                context.decode(chunk.ids[begin:end], start=begin, logits="all")
                yield number, context.logits_matrix()


@dataclass(frozen=True)
class Distance:
    """How far a model's predictions are from a reference's, over all positions compared.

    Attributes:
        kl_divergence: mean, in nats; `kl_error` is its standard error, `kl_quantiles` the divergence that so many
            percent of the positions stay below.
        same_top: share of positions with the same likeliest token; `same_top_error` its standard error.
        perplexity: the model's, of what follows; `reference_perplexity` the reference's.
        decided: positions at which the reference is decided (`DECIDED`); `same_top_decided` their share.
    """

    positions: int
    kl_divergence: float
    kl_error: float
    kl_quantiles: dict[str, float]
    same_top: float
    same_top_error: float
    perplexity: float
    perplexity_error: float
    reference_perplexity: float
    same_top_decided: float
    decided: int

    @property
    def perplexity_ratio(self) -> float:
        return self.perplexity / self.reference_perplexity


QUANTILES = {"median": 0.5, "90": 0.9, "99": 0.99, "99.9": 0.999, "max": 1.0}


class Comparison:
    """Gathers, position by position, how far a model is from a reference; a vocabulary's padding is left out."""

    def __init__(self) -> None:
        self._positions: list[tuple[float, bool, bool]] = []  # divergence, same top, decided
        self._nats: list[tuple[float, float]] = []  # of what follows: the reference's, the model's

    def add(self, truth: Floats, guess: Floats, following: Sequence[int]) -> None:
        """Compare logits `[n, n_vocab]`; `following` are the tokens that came after the first of these positions."""
        width = min(truth.shape[1], guess.shape[1])
        for index in range(len(truth)):
            x, y = truth[index, :width], guess[index, :width]
            (p, total, x_log), (_, _, y_log) = _exp(x), _exp(y)
            if index < len(following):
                self._nats.append((x_log - float(x[following[index]]), y_log - float(y[following[index]])))
            top = int(x.argmax())
            # log p - log q is x - y, exact where they are near each other, less the difference of the sums' logs
            divergence, best = float(p @ (x - y)) / total - (x_log - y_log), float(p[top])
            p[top] = 0.0
            self._positions.append((divergence, top == int(y.argmax()), best >= DECIDED * float(p.max())))

    def result(self) -> Distance:
        """What all positions say together."""
        divergences, same, decided = (np.array(values) for values in zip(*self._positions, strict=True))
        nats = np.array(self._nats or [(0.0, 0.0)])
        reference, ours = (float(np.exp(mean)) for mean in nats.mean(axis=0))
        share = float(same.mean())
        return Distance(
            positions=len(divergences),
            kl_divergence=float(divergences.mean()),
            kl_error=_standard_error(divergences),
            kl_quantiles={name: float(np.quantile(divergences, place)) for name, place in QUANTILES.items()},
            same_top=share,
            same_top_error=float(np.sqrt(share * (1 - share) / max(1, len(same) - 1))),
            perplexity=ours,
            perplexity_error=ours * _standard_error(nats[:, 1]),
            reference_perplexity=reference,
            same_top_decided=float(same[decided].mean()) if decided.any() else 1.0,
            decided=int(decided.sum()),
        )


def compare(
    model: Model,
    chunks: Sequence[Chunk],
    truth: Callable[[int], Floats],
    *,
    on_chunk: Callable[[int], None] | None = None,
) -> Distance:
    """How far a GGUF is from a reference over chunks.

    Args:
        truth: the reference's logits `[n, n_vocab]` at the scored positions of a chunk, by its number.
        on_chunk: called with the number of chunks done.
    """
    comparison = Comparison()
    current, done = -1, 0
    reference: Floats = np.empty((0, 0), np.float32)
    for number, guess in predictions(model, chunks):
        if number != current:
            current, done, reference = number, 0, truth(number)
            if number and on_chunk is not None:
                on_chunk(number)
        comparison.add(reference[done : done + len(guess)], guess, chunks[number].following[done : done + len(guess)])
        done += len(guess)
    if on_chunk is not None:
        on_chunk(len(chunks))
    return comparison.result()


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(values.var() / max(1, len(values) - 1)))


def _exp(logits: Floats) -> tuple[Floats, float, float]:
    """Probabilities but for a factor, the largest being 1, in float32; their sum; the log of sum(exp(logits)).

    Only sums need more digits than float32 has.
    """
    largest = logits.max()
    values: Floats = np.exp(logits - largest)
    total = float(values.sum(dtype=np.float64))
    return values, total, float(largest) + float(np.log(total))
