"""The few tokens that top-k, top-p and min-p leave, found without sorting the vocabulary.

llama.cpp's samplers copy every logit into a struct and sort: about a millisecond a token at a vocabulary of 262k.
Here the vocabulary is read once, into the largest logit of each of a few thousand columns, and after that mostly the
columns that hold what can survive. The survivors are llama.cpp's, in its order, so the same seed draws the same token,
but for top-p's edge: probabilities are summed in float64 here and in float32 there.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

ROWS = 64  # tokens a column: its largest logit stands for all of them until they matter
CROWDED = 8  # where more than one column in so many is asked for, the whole vocabulary is read
STEP = 2.0  # nats below the largest at which the net is cast first; twice as deep while it holds too little
DEPTHS = (8.0, 16.0)  # nats below the largest from which on what tokens weigh is estimated by their columns
COUNTED = (5.0, 7.0)  # nats below the largest at which tokens are counted, for the least that all weigh together
CERTAIN = 1e-5  # more than rounding can move a sum of float32, as a share of it

FEW = 48
"""Columns with what can survive, up to which numbers are handled one by one: right after an evaluation, whose weights
have passed through every cache, each call into numpy takes longer than what it does.
"""

Floats = NDArray[np.float32]
Candidates = tuple[NDArray[np.int64], Floats]
Few = tuple[list[int], list[float]]


class Columns:
    """Logits [n_vocab] in columns of every (n_vocab // 64)th token.

    Attributes:
        largest: of the logits; NaN where one is NaN.
    """

    def __init__(self, logits: Floats) -> None:
        self.logits = logits
        self._width = len(logits) // ROWS
        self._body = logits[: ROWS * self._width].reshape(ROWS, self._width)
        self._rest = logits[ROWS * self._width :]  # fewer than a column each row would take
        self.read()

    def read(self) -> None:
        """Read the logits again, which have changed in their place."""
        self._tops: Floats = np.maximum.reduce(self._body) if self._width else self.logits[:0]
        self.largest = float(np.maximum.reduce(self._tops if self._width else self._rest))
        if self._width and len(self._rest):
            self.largest = float(np.maximum(self.largest, np.maximum.reduce(self._rest)))

    def above(self, floor: float) -> Candidates:
        """Ids, rising, and logits of the tokens that have `floor` or more."""
        least = np.float32(floor)
        columns = np.flatnonzero(self._tops >= least)
        if len(columns) * CROWDED >= self._width:
            ids = np.flatnonzero(self.logits >= least)
            return ids, self.logits[ids]
        block = self._body[:, columns]
        rows, places = np.nonzero(block >= least)
        rest = np.flatnonzero(self._rest >= least)
        ids = np.concatenate((rows * self._width + columns[places], rest + ROWS * self._width))
        return ids, self.logits[ids]

    def few_above(self, floor: float) -> tuple[list[tuple[float, int]], float, float] | None:
        """As `above` and `mass` at once where few columns hold `floor` or more, else None.

        Returns:
            Logits, negative, and ids of the tokens, the likeliest first; the least and the most that all tokens weigh.
        """
        least, largest = np.float32(floor), np.float32(self.largest)
        (columns,) = (self._tops >= least).nonzero()
        if len(columns) > FEW:
            return None
        block = self._body.take(columns, 1)
        (rows, places), ids = (block >= least).nonzero(), columns.tolist()
        tokens = [
            (-value, row * self._width + ids[place])
            for row, place, value in zip(rows.tolist(), places.tolist(), block[rows, places].tolist(), strict=True)
        ]
        rest = self._rest.tolist()
        tokens += [(-value, ROWS * self._width + index) for index, value in enumerate(rest) if value >= least]
        tokens.sort()
        tops = np.exp(self._tops - largest)
        tops[columns] = 0
        beside = float(np.add.reduce(tops))
        known = float(np.add.reduce(np.exp(block - largest), None))
        known += sum(math.exp(value - self.largest) for value in rest)
        return tokens, (known + beside) * (1 - CERTAIN), (known + ROWS * beside) * (1 + CERTAIN)

    def at_least(self, count: int) -> Candidates:
        """`count` tokens or more, and none left out that is larger than one of them."""
        if count > self._width:
            return self.above(-math.inf)
        return self.above(float(np.partition(self._tops, -count)[-count]))  # there is one in each of `count` columns

    def of_mass(self, mass: float) -> Candidates:
        """Tokens above some floor whose exp(logit - largest) sum to `mass` or more."""
        depth = STEP
        while True:
            ids, values = self.above(self.largest - depth)
            if _mass(values, self.largest) >= mass or not math.isfinite(depth):
                return ids, values
            depth = depth * 2 if depth < 1000 else math.inf

    def mass(self, floor: float) -> tuple[float, float]:
        """The least and the most that all tokens' exp(logit - largest) sum to.

        Columns that hold `floor` or more are summed; what is in the others is estimated by their largest.
        """
        low = self._tops < np.float32(floor)
        columns = np.flatnonzero(~low)
        known = _mass(self._body[:, columns].ravel(), self.largest) + _mass(self._rest, self.largest)
        tops = _mass(self._tops[low], self.largest)
        return known + tops, known + ROWS * tops

    def is_crowded(self, floor: float) -> bool:
        """Whether `above(floor)` would read the whole vocabulary."""
        return int(np.count_nonzero(self._tops >= np.float32(floor))) * CROWDED >= self._width

    def count_above(self, floor: float) -> int:
        """How many tokens have more than `floor`."""
        return int(np.count_nonzero(self.logits > np.float32(floor)))


def survivors(columns: Columns, *, top_k: int, top_p: float, min_p: float) -> Candidates | Few:
    """What `llama_sampler_top_k`, `top_p` and `min_p` in this order leave of logits [n_vocab].

    Args:
        columns: the logits, none of them NaN.
        top_k: 0 keeps all.
        top_p: 1 keeps all.
        min_p: 0 keeps all.

    Returns:
        Ids and logits [n], the largest first; in the order of ids where no filter before min-p sorts. Few are lists.
    """
    largest = columns.largest
    floor = largest + math.log(min_p) if min_p > 0 else -math.inf
    if top_k <= 0 and top_p >= 1:
        return columns.above(floor)
    if 0 < top_k < len(columns.logits):
        ids, values = _sorted(*columns.at_least(top_k))
        ids, values = ids[:top_k], values[:top_k]
        kept = _head(values, largest, top_p, _mass(values, largest))
    elif min_p > 0 and (few := _few_survivors(columns, floor, top_p)) is not None:
        return few
    elif min_p > 0:  # both filters keep a head of the sorted tokens, so min-p may go first
        ids, values = _sorted(*columns.above(floor))
        kept = _head_of_all(values, columns, floor, top_p)
    else:
        total = _mass(columns.logits, largest)
        ids, values = _sorted(*columns.of_mass(top_p * total))
        kept = _head(values, largest, top_p, total)
    ids, values = ids[:kept], values[:kept]
    kept = max(1, int(np.count_nonzero(values >= np.float32(floor))))
    return ids[:kept], values[:kept]


def _few_survivors(columns: Columns, floor: float, top_p: float) -> Few | None:
    """What top-p and a min-p that leaves `floor` or more keep, where those are few and top-p's edge is clear."""
    found = columns.few_above(floor)
    if found is None:
        return None
    tokens, least, most = found
    reach, kept = 0.0, len(tokens)
    if top_p >= 1:
        least = most = math.inf
    for count, (value, _) in enumerate(tokens, 1):
        reach += math.exp(-value - columns.largest)
        if reach >= top_p * least:
            if reach < top_p * most and count < len(tokens):
                return None
            kept = count
            break
    del tokens[kept:]
    return [token for _, token in tokens], [-value for value, _ in tokens]


def _mass(logits: Floats, largest: float) -> float:
    """The sum of exp(logit - largest)."""
    return float(np.exp(logits - np.float32(largest)).sum(dtype=np.float64))


def _head(values: Floats, largest: float, top_p: float, total: float) -> int:
    """How many of the sorted `values` top-p keeps, where all tokens' exp(logit - largest) sum to `total`."""
    if top_p >= 1:
        return len(values)
    cumulative = np.cumsum(np.exp(values - np.float32(largest)), dtype=np.float64)
    return int(np.searchsorted(cumulative, top_p * total)) + 1


def _head_of_all(values: Floats, columns: Columns, floor: float, top_p: float) -> int:
    """As `_head`, for the sorted `values` that all logits of `floor` or more are.

    The sum over all of a large vocabulary is most of the work, and seldom matters to the last digit: where so many
    tokens lie close below `values` that top-p reaches beyond them, or where nearly all the others lie so far below
    that the most and the least that they can weigh keep the same head.
    """
    if top_p >= 1:
        return len(values)
    largest = columns.largest
    for least in (floor, *(largest - depth for depth in DEPTHS)):
        if columns.is_crowded(least):
            break
        between = columns.mass(least)
        if (kept := _head(values, largest, top_p, between[0])) == _head(values, largest, top_p, between[1]):
            return kept
    reach = _mass(values, largest)
    enough = reach / (top_p * (1 - CERTAIN))  # where all tokens weigh more, every one of `values` is kept
    for depth in COUNTED:
        below = columns.count_above(largest - depth) - len(values)
        if reach + below * math.exp(-depth) > enough:
            return len(values)
    total = float(np.exp(columns.logits - np.float32(largest)).sum())
    kept = _head(values, largest, top_p, total * (1 - CERTAIN))
    if kept == _head(values, largest, top_p, total * (1 + CERTAIN)):
        return kept
    return _head(values, largest, top_p, _mass(columns.logits, largest))


def _sorted(ids: NDArray[np.int64], values: Floats) -> Candidates:
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
