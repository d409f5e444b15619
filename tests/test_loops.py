"""The loop finder, on sequences a person can check and against a naive search."""

from __future__ import annotations

import random

import pytest

from ftllm.evals.loops import MAX_PERIOD, MIN_SPAN, REPEATS, repeated_cycle


@pytest.mark.parametrize(
    ("tokens", "period"),
    [
        ([1, 2, 3, 4] * 4, 4),
        ([9, 9] + [1, 2, 3, 4] * 4 + [7, 8], 4),
        ([1, 2, 3, 4] * 3, None),
        ([5] * 15, None),
        ([5] * 16, 1),
        (list(range(200)) * 4, 200),
        (list(range(201)) * 4, None),
        ([1, 2, 3, 4] * 3 + [1, 2, 3], None),
        (list(range(1000)), None),
        ([], None),
        ([1], None),
    ],
)
def test_cases(tokens: list[int], period: int | None) -> None:
    assert repeated_cycle(tokens) == period


def naive(tokens: list[int]) -> int | None:
    for period in range(1, MAX_PERIOD + 1):
        span = max(REPEATS * period, MIN_SPAN)
        for start in range(len(tokens) - span + 1):
            if all(tokens[i] == tokens[i - period] for i in range(start + period, start + span)):
                return period
    return None


def test_against_a_naive_search() -> None:
    rng = random.Random(0)
    for _ in range(300):
        cycle = [rng.randrange(3) for _ in range(rng.randrange(1, 9))]
        tokens = (
            [rng.randrange(3) for _ in range(rng.randrange(20))]
            + cycle * rng.randrange(1, 6)
            + [rng.randrange(3) for _ in range(5)]
        )
        assert repeated_cycle(tokens) == naive(tokens)
