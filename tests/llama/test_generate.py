"""Batches of answers against one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import tiny_gemma as tiny

from ftllm.errors import UserError
from ftllm.llama.context import Context
from ftllm.llama.generate import Generation, generate_batch
from ftllm.llama.model import Model
from ftllm.llama.sampling import Sampling

GREEDY = Sampling(temperature=0)
TIE = 0.05  # logits this close may be told apart by rounding alone; their spread is 2


def prompts_of(count: int) -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [
        [tiny.BOS, *generator.integers(tiny.FIRST_WORD, tiny.N_VOCAB, generator.integers(1, 40)).tolist()]
        for _ in range(count)
    ]


def one_by_one(model: Model, prompt: Sequence[int], max_tokens: int) -> tuple[list[int], list[float]]:
    """A greedy answer by a plain loop, and by how much each token won."""
    tokens: list[int] = []
    margins: list[float] = []
    with Context(model, n_ctx=128) as context:
        context.decode(prompt, start=0)
        for _ in range(max_tokens):
            second, best = np.argsort(context.logits())[-2:]
            margins.append(float(context.logits()[best] - context.logits()[second]))
            if model.is_eog(int(best)):
                break
            tokens.append(int(best))
            context.decode([int(best)], start=len(prompt) + len(tokens) - 1)
    return tokens, margins


@pytest.fixture(scope="module")
def singles(gemma: Model) -> list[tuple[list[int], list[float]]]:
    return [one_by_one(gemma, prompt, 24) for prompt in prompts_of(7)]


@pytest.mark.parametrize(("parallel", "workers"), [(1, 1), (3, 1), (8, 1), (2, 3)])
def test_greedy_answers_are_those_of_one_by_one(
    gemma: Model, singles: list[tuple[list[int], list[float]]], parallel: int, workers: int
) -> None:
    prompts = prompts_of(7)
    answers = generate_batch(gemma, prompts, sampling=GREEDY, max_tokens=24, parallel=parallel, workers=workers)
    compared = 0
    for (tokens, margins), answer in zip(singles, answers, strict=True):
        sure = next((index for index, margin in enumerate(margins) if margin < TIE), len(tokens))
        assert list(answer.tokens[:sure]) == tokens[:sure]
        if sure == len(tokens):
            assert list(answer.tokens) == tokens
        compared += sure
    assert compared > 60  # of 168: ties may not explain everything away


@pytest.mark.parametrize(("parallel", "workers"), [(1, 1), (3, 1), (2, 2)])
def test_what_all_prompts_begin_with_is_shared_without_a_difference(gemma: Model, parallel: int, workers: int) -> None:
    head = [tiny.BOS, *np.random.default_rng(1).integers(tiny.FIRST_WORD, tiny.N_VOCAB, 70).tolist()]
    prompts = [[*head, *prompt[1:]] for prompt in prompts_of(7)] + [head]  # one has nothing of its own
    answers = generate_batch(gemma, prompts, sampling=GREEDY, max_tokens=16, parallel=parallel, workers=workers)
    compared = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens, margins = one_by_one(gemma, prompt, 16)
        sure = next((index for index, margin in enumerate(margins) if margin < TIE), len(tokens))
        assert list(answer.tokens[:sure]) == tokens[:sure]
        compared += sure
    assert compared > 40


def test_answers_are_steered_seeded_and_held_to_the_context(gemma: Model) -> None:
    prompts = prompts_of(3)
    seen: dict[int, int] = {}

    def steer(index: int, token: int) -> list[int] | None:
        del token
        seen[index] = seen.get(index, 0) + 1
        if index == 0 and seen[0] == 2:
            return [tiny.FIRST_WORD, tiny.FIRST_WORD + 1]
        return None if index == 1 and seen[1] == 3 else []

    plain = generate_batch(gemma, prompts, sampling=GREEDY, max_tokens=12, parallel=3)
    steered = generate_batch(gemma, prompts, sampling=GREEDY, max_tokens=12, parallel=3, steer=steer)
    assert steered[0].tokens[:2] == plain[0].tokens[:2]
    assert steered[0].tokens[2:4] == (tiny.FIRST_WORD, tiny.FIRST_WORD + 1)
    after = one_by_one(gemma, [*prompts[0], *steered[0].tokens[:4]], 3)[0]
    assert list(steered[0].tokens[4:7]) == after
    assert (steered[1].tokens, steered[1].stop_reason) == (plain[1].tokens[:3], "steered")
    assert steered[2] == plain[2]
    hot = Sampling(temperature=2.5, min_p=0, seed=5)
    one, own, other = (
        generate_batch(gemma, prompts[:1], sampling=replace(hot, seed=seed), max_tokens=8, seeds=seeds)[0].tokens
        for seed, seeds in ((7, None), (5, [7]), (5, None))
    )
    assert one == own != other
    short = generate_batch(gemma, prompts, sampling=GREEDY, max_tokens=100, n_ctx=45)
    assert [len(prompt) + len(answer.tokens) for prompt, answer in zip(prompts, short, strict=True)] == [46] * 3


def test_one_failure_stops_all_workers(gemma: Model) -> None:
    told: list[int] = []

    def on_done(index: int, _answer: Generation) -> None:
        told.append(index)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_batch(gemma, prompts_of(20), sampling=GREEDY, max_tokens=20, parallel=2, workers=2, on_done=on_done)
    assert len(told) <= 2


def test_answers_say_why_they_ended(gemma: Model) -> None:
    prompts = prompts_of(12)
    answers = generate_batch(gemma, prompts, sampling=Sampling(temperature=2.5, min_p=0, seed=5), max_tokens=60)
    assert {answer.stop_reason for answer in answers} == {"stop", "length"}
    for answer in answers:
        assert (len(answer.tokens) == 60) == (answer.stop_reason == "length")
        assert not any(gemma.is_eog(token) for token in answer.tokens)
        assert answer.text == gemma.decode_text(answer.tokens)


def test_sampled_answers_do_not_depend_on_their_neighbours(gemma: Model) -> None:
    prompts = prompts_of(6)
    sampling = Sampling(temperature=1.0, seed=11)
    alone = generate_batch(gemma, prompts, sampling=sampling, max_tokens=6, parallel=1)
    together = generate_batch(gemma, prompts, sampling=sampling, max_tokens=6, parallel=4)
    assert sum(a.tokens == b.tokens for a, b in zip(alone, together, strict=True)) >= 5  # but for ties
    assert together == generate_batch(gemma, prompts, sampling=sampling, max_tokens=6, parallel=4)
    others = generate_batch(gemma, prompts, sampling=Sampling(temperature=1.0, seed=12), max_tokens=6)
    assert [answer.tokens for answer in others] != [answer.tokens for answer in alone]


def test_the_same_prompt_gets_different_samples(gemma: Model) -> None:
    answers = generate_batch(gemma, [prompts_of(1)[0]] * 4, sampling=Sampling(temperature=2.0, seed=0), max_tokens=8)
    assert len({answer.tokens for answer in answers}) == 4


def test_each_answer_is_told_once_and_the_order_kept(gemma: Model) -> None:
    told: dict[int, Generation] = {}
    answers = generate_batch(
        gemma, prompts_of(5), sampling=GREEDY, max_tokens=5, parallel=2, on_done=lambda i, a: told.setdefault(i, a)
    )
    assert [told[index] for index in range(5)] == answers
    assert len(told) == 5


def test_a_long_prompt_is_taken_in_parts_beside_others(gemma: Model) -> None:
    long = [tiny.BOS, *([tiny.FIRST_WORD + 3, tiny.FIRST_WORD + 5] * 240)]
    prompts = [*prompts_of(3), long]
    together = generate_batch(gemma, prompts, sampling=GREEDY, max_tokens=3, parallel=4)
    alone = [generate_batch(gemma, [prompt], sampling=GREEDY, max_tokens=3)[0] for prompt in prompts]
    assert together == alone


def test_an_answer_ends_with_the_models_context(gemma: Model) -> None:
    prompt = [tiny.BOS, *([tiny.FIRST_WORD + 3] * (tiny.N_CTX - 6))]
    suppressed = Sampling(temperature=5.0, min_p=0.0, top_p=1.0, seed=3)
    (answer,) = generate_batch(gemma, [prompt], sampling=suppressed, max_tokens=50)
    assert answer.stop_reason == "length"
    assert len(prompt) + len(answer.tokens) == tiny.N_CTX + 1  # the last token needs no place of its own


def test_bad_prompts(gemma: Model) -> None:
    assert generate_batch(gemma, [], sampling=GREEDY, max_tokens=5) == []
    with pytest.raises(UserError, match="prompt 1 is empty"):
        generate_batch(gemma, [[tiny.BOS], []], sampling=GREEDY, max_tokens=5)
    with pytest.raises(UserError, match="does not fit"):
        generate_batch(gemma, [[tiny.BOS] * 600], sampling=GREEDY, max_tokens=5)
