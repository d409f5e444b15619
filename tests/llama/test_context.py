"""Logits do not depend on how tokens were fed: chunks, batches, removed tails, other sequences beside them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tiny_gemma as tiny
from numpy.typing import NDArray

from ftllm.llama.context import AbortedError, Context, ContextFullError
from ftllm.llama.model import Model

TOLERANCE = 0.05  # of logits whose spread is 2: flash attention on a CPU sums in 16 bits


@pytest.fixture
def context(gemma: Model) -> Iterator[Context]:
    with Context(gemma, n_ctx=256, n_batch=64) as context:
        yield context


def tokens_of(length: int, seed: int = 0) -> list[int]:
    generator = np.random.default_rng(seed)
    return [tiny.BOS, *generator.integers(tiny.FIRST_WORD, tiny.N_VOCAB, length - 1).tolist()]


def all_logits(model: Model, tokens: list[int]) -> NDArray[np.float32]:
    """Logits [n, n_vocab] of every position, evaluated at once in a context of their own."""
    with Context(model, n_ctx=256, n_batch=256) as context:
        context.decode(tokens, start=0, logits="all")
        return context.logits_matrix().copy()


def test_the_fixture_is_no_pushover(gemma: Model) -> None:
    """Its logits spread, and depend on what lies beyond the sliding window of 16."""
    tokens = tokens_of(60)
    reference = all_logits(gemma, tokens)
    assert 1.5 < reference.std() < 3
    changed = [tokens[0], (tokens[1] - 200) % 100 + 200, *tokens[2:]]
    assert np.abs(all_logits(gemma, changed)[-1] - reference[-1]).max() > 2 * TOLERANCE


def test_chunks_or_at_once(gemma: Model, context: Context) -> None:
    tokens = tokens_of(150)
    reference = all_logits(gemma, tokens)
    context.decode(tokens, start=0)  # three chunks of n_batch
    assert np.abs(context.logits() - reference[-1]).max() < TOLERANCE
    context.clear()
    for begin, end in ((0, 1), (1, 8), (8, 40), (40, 100)):
        context.decode(tokens[begin:end], start=begin)
        assert np.abs(context.logits() - reference[end - 1]).max() < TOLERANCE


def test_a_removed_tail_is_as_if_never_there(gemma: Model, context: Context) -> None:
    """Rolled back across several windows, which a windowed cache would have forgotten."""
    tokens = tokens_of(120)
    context.decode(tokens, start=0)
    other = tokens[:30] + tokens_of(40, seed=1)[1:]
    assert context.remove(0, 30)
    assert context.length() == 30
    context.decode(other[30:], start=30)
    assert np.abs(context.logits() - all_logits(gemma, other)[-1]).max() < TOLERANCE


def test_sequences_do_not_see_each_other(gemma: Model) -> None:
    prompts = [tokens_of(length, seed=length) for length in (5, 17, 33, 64)]
    with Context(gemma, n_ctx=128, n_batch=64, n_seq_max=4) as context:
        assert context.n_ctx == 128
        for sequence, prompt in enumerate(prompts):
            context.decode(prompt[:-1], start=0, sequence=sequence, logits="none")
        context.decode_many([(prompt[-1], len(prompt) - 1, sequence) for sequence, prompt in enumerate(prompts)])
        together = [context.logits(index).copy() for index in range(4)]
        assert [context.length(sequence) for sequence in range(4)] == [5, 17, 33, 64]
        assert np.array_equal(context.logits_matrix(), np.array(together))
    for prompt, logits in zip(prompts, together, strict=True):
        assert np.abs(logits - all_logits(gemma, prompt)[-1]).max() < TOLERANCE


def test_a_copied_prefix_is_as_good_as_an_evaluated_one(gemma: Model) -> None:
    tokens = tokens_of(50)
    with Context(gemma, n_ctx=128, n_batch=64, n_seq_max=2) as context:
        context.decode(tokens[:40], start=0, logits="none")
        context.copy(0, 1)
        context.decode(tokens[40:], start=40, sequence=1)
        assert np.abs(context.logits() - all_logits(gemma, tokens)[-1]).max() < TOLERANCE


def test_only_asked_logits_are_there(context: Context) -> None:
    with pytest.raises(IndexError):
        context.logits()
    context.decode(tokens_of(5), start=0, logits="none")
    for index in (-1, 0, 4):
        with pytest.raises(IndexError):
            context.logits(index)
    with pytest.raises(IndexError):
        context.logits_matrix()
    context.decode(tokens_of(6)[1:], start=5)
    assert np.array_equal(context.logits(4), context.logits())
    for index in (0, 3, 5, -2):
        with pytest.raises(IndexError):
            context.logits(index)


def test_logits_are_the_models_width(context: Context, gemma: Model) -> None:
    context.decode(tokens_of(7), start=0, logits="all")
    assert context.logits_matrix().shape == (7, gemma.n_vocab)
    assert context.logits(3).dtype == np.float32
    assert np.array_equal(context.logits_matrix()[3], context.logits(3))


def test_limits_are_errors_not_crashes(context: Context, gemma: Model) -> None:
    with pytest.raises(ContextFullError, match="room for 256"):
        context.decode(tokens_of(10), start=250)
    with pytest.raises(ValueError, match="n_batch is 64"):
        context.decode(tokens_of(65), start=0, logits="all")
    context.clear()
    with pytest.raises(Exception, match="could not evaluate"):
        context.decode([tiny.N_VOCAB + 5], start=0)
    with pytest.raises(Exception, match="could not evaluate"):
        context.decode([tiny.BOS], start=0, sequence=7)
    context.decode([tiny.BOS], start=0)
    with pytest.raises(Exception, match="could not evaluate"):  # a hole between positions
        context.decode([tiny.BOS], start=9)
    with Context(gemma, n_ctx=64, n_batch=32, n_outputs=2) as narrow, pytest.raises(ValueError, match="made for 2"):
        narrow.decode(tokens_of(3), start=0, logits="all")
    context.clear()
    context.decode(tokens_of(3), start=0)
    assert context.logits().shape == (gemma.n_vocab,)


def test_the_context_is_the_models_unless_asked(gemma: Model) -> None:
    with Context(gemma) as context:
        assert context.n_ctx == tiny.N_CTX


def test_abort_stops_and_the_context_goes_on(gemma: Model, context: Context) -> None:
    tokens = tokens_of(100)
    calls = 0

    def check() -> bool:
        nonlocal calls
        calls += 1
        return calls > 200

    context.set_abort(check)
    with pytest.raises(AbortedError):
        context.decode(tokens, start=0)
    assert calls == 201
    kept = context.length()
    assert kept in (0, 64)  # whole chunks
    context.set_abort(None)
    context.decode(tokens[kept:], start=kept)
    assert np.abs(context.logits() - all_logits(gemma, tokens)[-1]).max() < TOLERANCE


def test_what_the_check_raises_comes_through(context: Context) -> None:
    def check() -> bool:
        raise KeyboardInterrupt

    context.set_abort(check)
    with pytest.raises(KeyboardInterrupt):
        context.decode(tokens_of(10), start=0)
