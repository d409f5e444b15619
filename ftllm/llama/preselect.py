"""The few tokens that top-k, top-p and min-p leave, found without sorting the vocabulary.

llama.cpp's samplers copy every logit into a struct and sort: about a millisecond a token at a vocabulary of 262k.
Here numpy scans the logits a few times, and only what can survive is sorted. The survivors are llama.cpp's, in its
order, so the same seed draws the same token, but for top-p's edge: probabilities are summed in float64 here and in
float32 there.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

STEP = 2.0  # nats below the largest at which the net is cast first; twice as deep while it holds too little
DEEP = 16.0  # nats below which a whole vocabulary of 262k together weighs 3 % of the likeliest token
COUNTED = (5.0, 7.0)  # nats below the largest at which tokens are counted, for the least that all weigh together
SPARE, HALVINGS = 16, 6  # a net that holds more than so many times what is wanted is drawn in by halves
CERTAIN = 1 - 1e-5  # more than rounding can move a sum of float32

Candidates = tuple[NDArray[np.int64], NDArray[np.float32]]


def survivors(logits: NDArray[np.float32], largest: float, *, top_k: int, top_p: float, min_p: float) -> Candidates:
    """What `llama_sampler_top_k`, `top_p` and `min_p` in this order leave of logits [n_vocab].

    Args:
        largest: of the logits.
        top_k: 0 keeps all.
        top_p: 1 keeps all.
        min_p: 0 keeps all.

    Returns:
        Ids and logits [n], the largest first; in the order of ids where no filter before min-p sorts.
    """
    floor = largest + math.log(min_p) if min_p > 0 else -math.inf
    if top_k <= 0 and top_p >= 1:
        return _above(logits, floor)
    if 0 < top_k < len(logits):
        ids, values = _sorted(*_at_least(logits, largest, top_k))
        ids, values = ids[:top_k], values[:top_k]
        kept = _head(values, largest, top_p, float(np.exp(values - largest, dtype=np.float32).sum(dtype=np.float64)))
    elif min_p > 0:  # both filters keep a head of the sorted tokens, so min-p may go first
        ids, values = _sorted(*_above(logits, floor))
        kept = _head_of_all(values, logits, largest, top_p)
    else:
        total = _mass(logits, largest)
        ids, values = _sorted(*_of_mass(logits, largest, top_p * total))
        kept = _head(values, largest, top_p, total)
    ids, values = ids[:kept], values[:kept]
    kept = max(1, int(np.count_nonzero(values >= np.float32(floor))))
    return ids[:kept], values[:kept]


def _mass(logits: NDArray[np.float32], largest: float) -> float:
    """The sum of exp(logit - largest)."""
    return float(np.exp(logits - np.float32(largest)).sum(dtype=np.float64))


def _head(values: NDArray[np.float32], largest: float, top_p: float, total: float) -> int:
    """How many of the sorted `values` top-p keeps, where all tokens' exp(logit - largest) sum to `total`."""
    if top_p >= 1:
        return len(values)
    cumulative = np.cumsum(np.exp(values - np.float32(largest)), dtype=np.float64)
    return int(np.searchsorted(cumulative, top_p * total)) + 1


def _head_of_all(values: NDArray[np.float32], logits: NDArray[np.float32], largest: float, top_p: float) -> int:
    """As `_head`, for `values` out of `logits`.

    The sum over all of a large vocabulary is most of the work, and seldom matters to the last digit. Where so many
    tokens lie close below `values` that top-p reaches beyond them, counting tells that; where nearly all the others lie
    far below, the most and the least that they can weigh keep the same head.
    """
    reach = _mass(values, largest)
    for depth in COUNTED:
        below = int(np.count_nonzero(logits > np.float32(largest - depth))) - len(values)
        if reach < CERTAIN * top_p * (reach + below * math.exp(-depth)):
            return len(values)
    if np.count_nonzero(logits > np.float32(largest - DEEP)) < len(logits) // 8:
        near = np.flatnonzero(logits > np.float32(largest - DEEP))
        least = _mass(logits[near], largest)
        most = least + (len(logits) - len(near)) * math.exp(-DEEP)
        kept = _head(values, largest, top_p, least)
        if kept == _head(values, largest, top_p, most):
            return kept
    return _head(values, largest, top_p, _mass(logits, largest))


def _above(logits: NDArray[np.float32], floor: float) -> Candidates:
    ids = np.flatnonzero(logits >= np.float32(floor))
    return ids, logits[ids]


def _sorted(ids: NDArray[np.int64], values: NDArray[np.float32]) -> Candidates:
    """The largest first; equal ones in the order of their ids.

    A float's bits, flipped where it is positive, fall as it rises; with the id below them they are one whole number,
    and numpy sorts those four times as fast as an `argsort` that keeps the order of equals.
    """
    bits = values.view(np.uint32)
    falling = np.where(bits >> 31, bits, bits ^ np.uint32(0x7FFFFFFF))
    keys = falling.astype(np.uint64) << np.uint64(32) | ids.astype(np.uint64)
    keys.sort()
    falling = (keys >> np.uint64(32)).astype(np.uint32)
    bits = np.where(falling >> 31, falling, falling ^ np.uint32(0x7FFFFFFF))
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64), bits.view(np.float32)


def _at_least(logits: NDArray[np.float32], largest: float, count: int) -> Candidates:
    """All tokens above some floor, `count` or more; seldom more than `SPARE` times as many, for those are sorted."""

    def held(depth: float) -> int:
        return int(np.count_nonzero(logits >= np.float32(largest - depth)))

    short, depth = 0.0, STEP
    while (found := held(depth)) < count and math.isfinite(depth):
        short, depth = depth, depth * 2 if depth < 1000 else math.inf
    for _ in range(HALVINGS):
        if found <= SPARE * count or not math.isfinite(depth):
            break
        middle = (short + depth) / 2
        if (inside := held(middle)) < count:
            short = middle
        else:
            depth, found = middle, inside
    return _above(logits, largest - depth)


def _of_mass(logits: NDArray[np.float32], largest: float, mass: float) -> Candidates:
    """All tokens above some floor whose exp(logit - largest) sum to `mass` or more."""
    depth = STEP
    while True:
        ids, values = _above(logits, largest - depth)
        if float(np.exp(values - np.float32(largest)).sum(dtype=np.float64)) >= mass or not math.isfinite(depth):
            return ids, values
        depth = depth * 2 if depth < 1000 else math.inf
