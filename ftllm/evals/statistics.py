"""Estimates with 95 % intervals: Wilson for shares; percentile bootstrap for means, ratios and paired differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

Z95 = 1.959963984540054  # the normal distribution's 97.5 % quantile
RESAMPLES = 4000
SEED = 3407
# Resamples drawn at once, so that ten thousand prompts still take little memory.
CHUNK = 200


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval; `low` and `high` are None where one observation allows none."""

    value: float
    low: float | None
    high: float | None


def wilson(successes: int, n: int) -> Estimate:
    """A share with Wilson's score interval (E. B. Wilson, J. Am. Stat. Assoc. 22, 1927).

    Unlike the textbook interval it stays within 0..1 and does not vanish at 0 of n or n of n.
    """
    if n <= 0:
        raise ValueError("a share needs at least one observation")
    share = successes / n
    scale = 1 + Z95**2 / n
    centre = (share + Z95**2 / (2 * n)) / scale
    half = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2)) / scale
    # At the ends the formula gives exactly 0 or 1; rounding may miss them by an ulp.
    return Estimate(
        share, max(0.0, centre - half) if successes else 0.0, min(1.0, centre + half) if successes < n else 1.0
    )


def mean(values: Sequence[float]) -> Estimate:
    """The mean of `values` with a bootstrap interval."""
    return ratio(values, [1.0] * len(values))


def ratio(totals: Sequence[float], weights: Sequence[float]) -> Estimate:
    """Sum of `totals` over sum of `weights`, resampling the pairs: nats per token, by whole conversations."""
    top, bottom = _array(totals), _array(weights)
    return _bootstrap(len(top), lambda rows: top[rows].sum(-1) / bottom[rows].sum(-1))


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Mean of `ours` less mean of `theirs`, resampling the prompts both answered."""
    return mean([a - b for a, b in zip(ours, theirs, strict=True)])


def paired_ratio_difference(
    ours: tuple[Sequence[float], Sequence[float]], theirs: tuple[Sequence[float], Sequence[float]]
) -> Estimate:
    """Ratio of `ours` (totals, weights) less that of `theirs`, resampling the conversations both scored."""
    a, b, c, d = (_array(part) for part in (*ours, *theirs))
    if not len(a) == len(b) == len(c) == len(d):
        raise ValueError("paired samples have one length")
    return _bootstrap(len(a), lambda rows: a[rows].sum(-1) / b[rows].sum(-1) - c[rows].sum(-1) / d[rows].sum(-1))


def _array(values: Sequence[float]) -> Floats:
    return np.asarray(values, dtype=np.float64)


def _bootstrap(n: int, statistic: Callable[[npt.NDArray[np.int64]], Floats]) -> Estimate:
    """`statistic` of all rows, with the 2.5 % and 97.5 % quantiles over resampled rows [k, n] -> [k]."""
    if n <= 0:
        raise ValueError("an estimate needs at least one observation")
    value = float(statistic(np.arange(n)[None, :])[0])
    if n == 1:
        return Estimate(value, None, None)
    generator = np.random.default_rng(SEED)
    drawn = np.concatenate(
        [statistic(generator.integers(0, n, size=(min(CHUNK, RESAMPLES - i), n))) for i in range(0, RESAMPLES, CHUNK)]
    )
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value, float(low), float(high))
