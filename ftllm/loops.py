"""Finding a reply that repeats itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MAX_PERIOD = 200
REPEATS = 4
# Shorter repetitions are numbers ("1111"), rules ("----") and refrains, not loops.
MIN_SPAN = 16


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
