"""The loop finder, on sequences a person can check and against a naive search."""

from __future__ import annotations

import random

import pytest

from ftllm.loops import LOOK_EVERY, MAX_PERIOD, MIN_SPAN, REPEATS, Loop, LoopGuard, loop_at_end, repeated_cycle


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


@pytest.mark.parametrize(
    ("tokens", "loop"),
    [
        ([9, *[1, 2, 3, 4] * 16], Loop(4, 16)),
        ([9, *[1, 2, 3, 4] * 16, 1, 2], Loop(4, 16)),
        ([*[1, 2, 3, 4] * 16, 9], None),  # it is over
        ([5] * 63, None),
        ([5] * 70, Loop(1, 70)),
        ([8, *range(200)] + list(range(200)) * 3, Loop(200, 4)),
        (list(range(200)) * 3 + list(range(199)), None),
        (list(range(201)) * 5, None),
        ([], None),
    ],
)
def test_loops_at_the_end(tokens: list[int], loop: Loop | None) -> None:
    assert loop_at_end(tokens) == loop


def test_the_guard_tells_a_loop_once_and_another_again() -> None:
    guard = LoopGuard()
    story = [*range(1000, 1100), *[1, 2, 3] * 100, *range(2000, 2100), *list(range(30)) * 10]
    told = [(place, loop) for place, token in enumerate(story, 1) if (loop := guard.look(token))]
    assert [loop.period for _, loop in told] == [3, 30]
    assert told[0][0] <= 100 + 2 * LOOK_EVERY
    assert told[0][1].count >= LOOK_EVERY // 3
    assert told[1][0] <= 500 + 30 * 4 + LOOK_EVERY


def test_a_loop_of_two_hundred_tokens_is_seen() -> None:
    guard = LoopGuard()
    told = [loop for token in list(range(200)) * 6 if (loop := guard.look(token))]
    assert told == [Loop(200, 4)]
