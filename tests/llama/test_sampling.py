"""Samplers against numpy's own idea of the distribution."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_gemma as tiny
from numpy.typing import NDArray

from ftllm.errors import WorkError
from ftllm.llama.context import Context
from ftllm.llama.model import Model
from ftllm.llama.sampling import Sampler, Sampling

DRAWS = 4000


@pytest.fixture(scope="module")
def context(gemma: Model) -> Iterator[Context]:
    with Context(gemma, n_ctx=64, n_batch=64) as context:
        context.decode(gemma.encode("<bos>the cat"), start=0)
        yield context


def draws(model: Model, context: Context, sampling: Sampling, count: int = DRAWS) -> list[int]:
    with Sampler(model, sampling) as sampler:
        return [sampler.sample(context) for _ in range(count)]


def distribution(logits: NDArray[np.float32], sampling: Sampling) -> NDArray[np.float64]:
    """Probabilities after top-k, top-p, min-p and temperature, in this order."""
    scores = logits.astype(np.float64)
    order = np.argsort(-scores, kind="stable")
    if sampling.top_k > 0:
        order = order[: sampling.top_k]
    probabilities = np.exp(scores[order] - scores[order[0]])
    cumulative = np.cumsum(probabilities / probabilities.sum())
    order = order[: int(np.searchsorted(cumulative, sampling.top_p)) + 1] if sampling.top_p < 1 else order
    order = order[np.exp(scores[order] - scores[order[0]]) >= sampling.min_p]
    weights = np.exp((scores[order] - scores[order[0]]) / sampling.temperature)
    result = np.zeros(len(logits))
    result[order] = weights / weights.sum()
    return result


def test_temperature_zero_takes_the_largest(gemma: Model, context: Context) -> None:
    assert set(draws(gemma, context, Sampling(temperature=0), 5)) == {int(context.logits().argmax())}


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, top_p=1.0, min_p=0.0, seed=1),
        Sampling(temperature=0.7, seed=2),
        Sampling(temperature=1.5, top_k=5, top_p=1.0, min_p=0.0, seed=3),
        Sampling(temperature=1.0, top_k=40, top_p=0.6, min_p=0.0, seed=4),
        Sampling(temperature=2.0, top_p=1.0, min_p=0.2, seed=5),
    ],
)
def test_draws_follow_the_distribution(gemma: Model, context: Context, sampling: Sampling) -> None:
    expected = distribution(context.logits(), sampling)
    seen = np.bincount(draws(gemma, context, sampling), minlength=gemma.n_vocab) / DRAWS
    assert not seen[expected == 0].any()
    # the total variation of DRAWS draws over m outcomes is about sqrt(m / DRAWS) / 2.5
    assert np.abs(seen - expected).sum() / 2 < 0.6 * np.sqrt(np.count_nonzero(expected) / DRAWS)


def test_a_seed_repeats_and_another_does_not(gemma: Model, context: Context) -> None:
    first = draws(gemma, context, Sampling(temperature=1.5, seed=7), 50)
    assert first == draws(gemma, context, Sampling(temperature=1.5, seed=7), 50)
    assert first != draws(gemma, context, Sampling(temperature=1.5, seed=8), 50)


def test_without_a_seed_one_is_drawn_and_told(gemma: Model, context: Context) -> None:
    with Sampler(gemma, Sampling(temperature=1.5)) as sampler, Sampler(gemma, Sampling()) as other:
        assert sampler.seed != other.seed
        first = [sampler.sample(context) for _ in range(20)]
    assert first == draws(gemma, context, Sampling(temperature=1.5, seed=sampler.seed), 20)


def test_repeated_tokens_are_penalized(gemma: Model, context: Context) -> None:
    logits = context.logits().copy()
    best = int(logits.argmax())
    with Sampler(gemma, Sampling(temperature=0, repeat_penalty=1e6)) as sampler:
        assert sampler.sample(context) == best
        assert sampler.sample(context) == int(np.argsort(-logits)[1])
    with Sampler(gemma, Sampling(temperature=0, repeat_penalty=1e6)) as sampler:
        sampler.accept(best)
        assert sampler.sample(context) == int(np.argsort(-logits)[1])


def test_settings_of_a_gguf(gemma: Model) -> None:
    sampling = Sampling.from_metadata(gemma.metadata)
    assert sampling == Sampling(temperature=0.25, top_k=40, top_p=0.95, min_p=0.05)
    assert Sampling.from_metadata({}) == Sampling(temperature=0.7, top_k=0, top_p=0.95, min_p=0.05)
    assert Sampling.from_metadata({"general.sampling.temp": "warm"}) == Sampling()
    assert Sampling.from_metadata({"general.sampling.top_k": "nan", "general.sampling.min_p": "inf"}) == Sampling()


def test_errors_where_llama_cpp_would_abort(gemma: Model, tmp_path: Path) -> None:
    sampler = Sampler(gemma, Sampling())
    with Context(gemma, n_ctx=64) as fresh, pytest.raises(IndexError):
        sampler.sample(fresh)
    broken = tiny.write_gemma(tmp_path / "broken.gguf", scale=float("nan"))
    with Model.load(broken) as model, Context(model, n_ctx=64) as context:
        context.decode([tiny.BOS], start=0)
        with pytest.raises(WorkError, match="not numbers"):
            sampler.sample(context)
    sampler.close()
    sampler.close()
    with pytest.raises(RuntimeError, match="closed"):
        sampler.sample(context)
