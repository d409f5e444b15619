"""The likelihood through llama.cpp against numpy on whole logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny_gemma as tiny

from ftllm.errors import UserError
from ftllm.llama import likelihood
from ftllm.llama.context import Context
from ftllm.llama.likelihood import llama_likelihood, nats
from ftllm.llama.model import Model
from ftllm.render import Row


def row_of(length: int, labelled: range, seed: int) -> Row:
    generator = np.random.default_rng(seed)
    ids = [tiny.BOS, *generator.integers(tiny.FIRST_WORD, tiny.N_VOCAB, length - 1).tolist()]
    return Row(tuple(ids), tuple(ids[i] if i in labelled else -100 for i in range(length)), f"rows:{seed}")


def reference(model: Model, row: Row) -> tuple[float, int]:
    """Softmax in float64 over the logits of all positions at once."""
    with Context(model, n_ctx=256, n_batch=256, flash_attention=False) as context:
        context.decode(row.input_ids, start=0, logits="all")
        logits = context.logits_matrix().astype(np.float64)
    total, count = 0.0, 0
    for position in range(1, len(row.labels)):
        if row.labels[position] != -100:
            scores = logits[position - 1]
            total -= float(scores[row.labels[position]] - np.log(np.exp(scores).sum()))
            count += 1
    return total, count


ROWS = [row_of(40, range(10, 40), 1), row_of(90, range(50, 60), 2), row_of(20, range(0), 3), row_of(30, range(30), 4)]


@pytest.mark.parametrize("room", [1, 7, 512])
def test_equal_to_the_whole_at_once(gemma: Model, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """However few logits are held at a time."""
    monkeypatch.setattr(likelihood, "LOGITS_BYTES", 4 * gemma.n_vocab * room)
    done: list[int] = []
    found = llama_likelihood(gemma, ROWS, on_row=done.append)
    expected = [reference(gemma, row) for row in ROWS]
    assert [count for _, count in found.per_row] == [30, 10, 0, 29] == [count for _, count in expected]
    for (mine, _), (theirs, _) in zip(found.per_row, expected, strict=True):
        assert mine == pytest.approx(theirs, abs=0.01)
    assert found.tokens == 69
    assert found.total == pytest.approx(sum(mine for mine, _ in found.per_row))
    assert sorted(done) == [0, 1, 2, 3]
    assert llama_likelihood(gemma, ROWS, workers=1) == llama_likelihood(gemma, ROWS, workers=3)


def test_by_hand() -> None:
    """Two equal logits are one bit each; a certain token is free; large logits do not overflow."""
    logits = np.array([[0.0, 0.0], [1000.0, 0.0], [0.0, 1000.0]], dtype=np.float32)
    assert nats(logits, np.array([1, 0, 0])).tolist() == pytest.approx([math.log(2), 0.0, 1000.0])


def test_nothing_labelled(gemma: Model) -> None:
    found = llama_likelihood(gemma, [])
    assert (found.total, found.tokens) == (0, 0)
    assert math.isnan(found.per_token)


def test_a_row_of_another_vocabulary(gemma: Model) -> None:
    row = Row((tiny.BOS, tiny.N_VOCAB), (-100, tiny.N_VOCAB), "data.jsonl:3")
    with pytest.raises(UserError, match=r"data\.jsonl:3: token 320"):
        llama_likelihood(gemma, [row])
