"""Intervals against published values, closed forms and an exact enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from ftllm.evals.statistics import mean, paired_difference, paired_ratio_difference, ratio, wilson


def test_wilson_against_published_values() -> None:
    """R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    for successes, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        estimate = wilson(successes, n)
        assert estimate.value == successes / n
        assert estimate.low == pytest.approx(low, abs=5e-5)
        assert estimate.high == pytest.approx(high, abs=5e-5)


def test_wilson_is_symmetric_and_stays_in_range() -> None:
    for successes in range(11):
        ours, mirrored = wilson(successes, 10), wilson(10 - successes, 10)
        assert 0 <= ours.low <= ours.value <= ours.high <= 1
        assert ours.low == pytest.approx(1 - mirrored.high)
    assert wilson(0, 10).low == 0
    assert wilson(10, 10).high == 1


def test_no_observation_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        wilson(0, 0)
    with pytest.raises(ValueError, match="at least one"):
        mean([])


def test_mean_agrees_with_all_resamples_of_a_small_sample() -> None:
    values = [1.0, 2.0, 3.0, 10.0, 4.0]
    every = sorted(sum(drawn) / 5 for drawn in itertools.product(values, repeat=5))
    estimate = mean(values)
    assert estimate.value == 4.0
    assert estimate.low == pytest.approx(np.quantile(every, 0.025), abs=0.21)
    assert estimate.high == pytest.approx(np.quantile(every, 0.975), abs=0.41)


def test_mean_agrees_with_the_normal_interval_on_a_large_sample() -> None:
    values = np.random.default_rng(0).exponential(2.0, size=2000)
    half = 1.96 * values.std() / math.sqrt(2000)
    estimate = mean(list(values))
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_one_observation_has_no_interval() -> None:
    estimate = mean([3.0])
    assert (estimate.value, estimate.low, estimate.high) == (3.0, None, None)


def test_ratio_weighs_by_tokens() -> None:
    estimate = ratio([2.0, 30.0], [2.0, 10.0])
    assert estimate.value == pytest.approx(32 / 12)
    assert estimate.low == 1.0
    assert estimate.high == 3.0


def test_pairing_removes_what_both_share() -> None:
    """Two models that differ by one half on every prompt differ by exactly that, however hard the prompts vary."""
    theirs = [float(i) for i in range(50)]
    ours = [value + 0.5 for value in theirs]
    estimate = paired_difference(ours, theirs)
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.5, 0.5)


def test_paired_ratio_difference() -> None:
    tokens = [10.0, 20.0, 5.0]
    theirs = [12.0, 18.0, 9.0]
    ours = [total - 0.25 * count for total, count in zip(theirs, tokens, strict=True)]
    estimate = paired_ratio_difference((ours, tokens), (theirs, tokens))
    assert estimate.value == pytest.approx(-0.25)
    assert estimate.low == pytest.approx(-0.25)
    assert estimate.high == pytest.approx(-0.25)
    with pytest.raises(ValueError, match="one length"):
        paired_ratio_difference((ours, tokens), (theirs[:2], tokens[:2]))


def test_same_numbers_every_time() -> None:
    values = [0.1 * i for i in range(30)]
    assert mean(values) == mean(values)
