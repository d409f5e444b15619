"""Drafts: what is looked up, and that a reply is the same with them, whatever becomes of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "llama"))

import tiny_gemma as tiny

from ftllm.chat.lookup import LEAST, MOST, REST, Lookup
from ftllm.chat.memory import Memory
from ftllm.llama.context import Context
from ftllm.llama.model import Model


def test_what_followed_before_is_drafted() -> None:
    lookup = Lookup([1, 2, 3, 4, 5, 6, 1, 2])
    assert lookup.draft() == []
    lookup.add(3)
    assert lookup.draft() == [4, 5]
    lookup.told(LEAST, LEAST)
    assert lookup.draft() == [4, 5, 6, 1]
    assert Lookup([7, 7, 7, 7]).draft() == [7]


def test_a_wrong_draft_is_followed_by_a_rest_that_grows() -> None:
    lookup = Lookup([1, 2, 3, 4] * 3)
    for rest in (REST, 2 * REST):
        lookup.told(0, LEAST)
        for _ in range(rest):
            assert lookup.draft() == []
            lookup.add(5)
        assert lookup.draft() == [5]
    lookup.told(1, LEAST)
    assert lookup.draft()


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Model.load(tiny.write_gemma(tmp_path_factory.mktemp("gguf") / "tiny-F32.gguf")) as model:
        yield model


class Foretold(Lookup):
    """Drafts what the test says, after any token."""

    def __init__(self, drafts: Sequence[Sequence[int]]) -> None:
        super().__init__([])
        self.drafts = list(drafts)

    def draft(self) -> list[int]:
        return list(self.drafts.pop(0)) if self.drafts else []


@pytest.mark.parametrize("windowed", [True, False])
def test_rejected_drafts_leave_no_trace(gemma: Model, windowed: bool) -> None:
    """The greedy text of a model with windows of 16, several of them crossed, drafts right, half right and wrong."""
    prompt = [tiny.BOS, *range(tiny.FIRST_WORD, tiny.FIRST_WORD + 40)]

    def write(lookup: Lookup | None) -> tuple[list[int], int]:
        with Context(gemma, n_ctx=256, n_batch=64, n_outputs=1 + MOST, windowed=windowed) as context:
            memory = Memory(context)
            memory.evaluate(prompt, stop=lambda: False)
            decoded, run = 0, context._run

            def counted(count: int, n_outputs: int) -> None:
                nonlocal decoded
                decoded += 1
                run(count, n_outputs)

            context._run = counted  # type: ignore[method-assign]
            tokens: list[int] = []
            while len(tokens) < 100:
                tokens.append(int(context.logits(memory.output).argmax()))
                if lookup is None:
                    memory.append(tokens[-1:])
                else:
                    memory.advance(tokens[-1], lookup)
            memory.append([tiny.FIRST_WORD])  # a draft under way is dropped
            assert memory.tokens == [*prompt, *tokens, tiny.FIRST_WORD]
            assert context.length() == len(memory.tokens)
            return tokens, decoded

    plain, one_by_one = write(None)
    wrong = (plain[0] + 1) % tiny.N_VOCAB
    drafts, place = [], 0
    for right, guessed in [(8, 8), (0, 8), (3, 8), (1, 2), (0, 1), (8, 8), (5, 6), (0, 8)] * 2:
        place += 1  # of the token that the draft is evaluated with
        drafts.append([*plain[place : place + right], *[wrong] * (guessed - right)])
        place += right
    text, batches = write(Foretold(drafts))
    assert text == plain
    assert one_by_one == 101
    assert batches == 101 - sum(len([t for t in draft if t != wrong]) for draft in drafts)
