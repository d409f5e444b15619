"""Finding a reply that repeats itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_PERIOD = 200
REPEATS = 4
# Shorter repetitions are numbers ("1111"), rules ("----") and refrains, not loops.
MIN_SPAN = 16
LOOK_EVERY = 64  # tokens between two looks while a reply is generated


def repeated_cycle(tokens: Sequence[int]) -> int | None:
    """The shortest period of at most 200 tokens that stands at least 4 times in a row in `tokens`, or None.

    The repetition may be anywhere, and must cover at least 16 tokens.
    """
    ids = np.asarray(tokens, dtype=np.int64)
    for period in range(1, min(MAX_PERIOD, len(ids) // REPEATS) + 1):
        # A stretch of m tokens that each equal the one a period before is (m + period) tokens of one cycle.
        if _longest_run(ids[period:] == ids[:-period]) + period >= max(REPEATS * period, MIN_SPAN):
            return period
    return None


def _longest_run(flags: np.ndarray) -> int:
    """Length of the longest stretch of True in `flags`."""
    breaks = np.flatnonzero(np.concatenate(([True], ~flags, [True])))
    return int(np.diff(breaks).max()) - 1


@dataclass(frozen=True)
class Loop:
    """A stretch of `period` tokens that stands `count` times in a row."""

    period: int
    count: int


def loop_at_end(tokens: Sequence[int]) -> Loop | None:
    """The loop that `tokens` end in: the shortest period of at most 200, at least 4 times, over at least 64 tokens.

    More than `repeated_cycle` asks for, because a reply may be stopped for it: a short rule or a row of zeros that
    just ended is none.
    """
    ids = np.asarray(tokens, dtype=np.int64)[::-1]
    for period in range(1, min(MAX_PERIOD, len(ids) // REPEATS) + 1):
        least = max(REPEATS * period, LOOK_EVERY)
        if len(ids) < least or not np.array_equal(ids[: least - period], ids[period:least]):
            continue
        breaks = np.flatnonzero(ids[period:] != ids[:-period])
        run = int(breaks[0]) if len(breaks) else len(ids) - period
        return Loop(period, (run + period) // period)
    return None


class LoopGuard:
    """Looks at a reply's tokens as they come, about every 64, and tells a loop once."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._told = False

    def look(self, token: int) -> Loop | None:
        """Take one token; the loop it ends in, where that is news."""
        self._tokens.append(token)
        if len(self._tokens) % LOOK_EVERY:
            return None
        found = loop_at_end(self._tokens[-(MAX_PERIOD * REPEATS + LOOK_EVERY) :])
        news, self._told = found is not None and not self._told, found is not None
        return found if news else None

    def forget(self) -> None:
        """Begin anew: the tokens so far were a thought's that has ended."""
        self._tokens.clear()
        self._told = False
