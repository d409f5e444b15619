"""Preselection against llama.cpp's own chain: the same seed must draw the same token."""

from __future__ import annotations

import ctypes
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from ftllm.llama import native
from ftllm.llama.model import Model
from ftllm.llama.preselect import Columns, survivors
from ftllm.llama.sampling import TOKEN_DATA, Sampler, Sampling


class Chain:
    """llama.cpp's samplers over the whole vocabulary."""

    def __init__(self, sampling: Sampling, n_vocab: int, *, draw: bool = True) -> None:
        self.api = api = native.api()
        self.chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        stages = [
            api.llama_sampler_init_penalties(
                n_vocab, 64, sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty
            )
        ]
        if sampling.top_k > 0:
            stages.append(api.llama_sampler_init_top_k(sampling.top_k))
        stages.append(api.llama_sampler_init_top_p(sampling.top_p, 1))
        stages.append(api.llama_sampler_init_min_p(sampling.min_p, 1))
        if draw:
            stages.append(api.llama_sampler_init_temp(sampling.temperature))
            stages.append(api.llama_sampler_init_dist(sampling.seed))
        for stage in stages:
            api.llama_sampler_chain_add(self.chain, stage)

    def __call__(self, logits: NDArray[np.float32]) -> tuple[int, list[int]]:
        """The token drawn (0 without a draw), and the ids that were left."""
        table = np.zeros(len(logits), dtype=TOKEN_DATA)
        table["id"], table["logit"] = np.arange(len(logits)), logits
        array = self.api.llama_token_data_array()
        array.data, array.size, array.selected = table.ctypes.data_as(self.api.llama_token_data_p), len(table), -1
        self.api.llama_sampler_apply(self.chain, ctypes.byref(array))
        token = int(table["id"][max(array.selected, 0)])
        self.api.llama_sampler_accept(self.chain, token)
        return token, table["id"][: array.size].tolist()

    def close(self) -> None:
        self.api.llama_sampler_free(self.chain)


def logits_of(n_vocab: int, seed: int) -> NDArray[np.float32]:
    """Distinct logits, flat for one seed and sharp for another, with a few far ahead."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, [0.5, 3, 10][seed % 3], 2 * n_vocab).astype(np.float32)
    logits[:5] += 4
    distinct = np.unique(logits)  # sorted
    return generator.permutation(np.concatenate([distinct[-5:], generator.permutation(distinct[:-5])[: n_vocab - 5]]))


FILTERS = list(product((0, 1, 5, 40, 100_000), (1.0, 0.95, 0.5, 0.01), (0.0, 0.05, 0.5)))


@pytest.mark.parametrize("n_vocab", [300, 5000])
def test_the_same_tokens_survive_in_the_same_order(n_vocab: int) -> None:
    for seed, (top_k, top_p, min_p) in product(range(3), FILTERS):
        logits = logits_of(n_vocab, seed)
        chain = Chain(Sampling(top_k=top_k, top_p=top_p, min_p=min_p, seed=0), n_vocab, draw=False)
        expected = chain(logits)[1]
        chain.close()
        ids, values = map(list, survivors(Columns(logits), top_k=top_k, top_p=top_p, min_p=min_p))
        assert values == logits[ids].tolist()
        # llama.cpp adds top-p's probabilities up in float32: where its sum meets top-p may be a hair's breadth off
        common = min(len(ids), len(expected))
        assert ids[:common] == expected[:common], (seed, top_k, top_p, min_p)
        between = [*ids[common:], *expected[common:]]
        probabilities = np.exp(logits.astype(np.float64) - logits.max())
        assert probabilities[between].sum() < 1e-4 * probabilities.sum()


@pytest.mark.parametrize("penalties", [(1.0, 0.0, 0.0), (1.3, 0.0, 0.0), (1.1, 0.4, -1.5)])
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"), [(0, 0.95, 0.05), (40, 0.95, 0.05), (0, 1.0, 0.1), (0, 0.9, 0.0), (0, 1.0, 0.0)]
)
def test_the_same_seed_draws_the_same_tokens(
    gemma: Model, top_k: int, top_p: float, min_p: float, penalties: tuple[float, float, float]
) -> None:
    sampling = Sampling(0.9, top_k, top_p, min_p, *penalties, seed=42)
    chain = Chain(sampling, 2000)
    mine, theirs = [], []
    with Sampler(gemma, sampling) as sampler:
        for seed in range(300):
            logits = logits_of(2000, seed)
            mine.append(sampler.choose(logits))
            theirs.append(chain(logits)[0])
            sampler.accept(theirs[-1])
    chain.close()
    if top_p < 1:  # one draw in hundreds may fall where rounding moved the edge of top-p
        assert sum(a != b for a, b in zip(mine, theirs, strict=True)) <= 3
    else:
        assert mine == theirs
    assert len(set(mine)) > 30


def test_equal_logits() -> None:
    """Any k of equals will do."""
    ids, values = survivors(Columns(np.zeros(50, dtype=np.float32)), top_k=7, top_p=1.0, min_p=0.05)
    assert len(set(ids)) == 7
    assert list(values) == [0.0] * 7


def test_impossible_tokens_are_not_needed() -> None:
    """Logits of minus infinity (suppressed tokens) never survive while others do."""
    logits = np.full(100, -np.inf, dtype=np.float32)
    logits[[3, 60]] = [1.0, 2.0]
    assert list(survivors(Columns(logits), top_k=10, top_p=0.95, min_p=0.05)[0]) == [60, 3]
    assert list(survivors(Columns(logits), top_k=0, top_p=0.99, min_p=0.0)[0]) == [60, 3]
