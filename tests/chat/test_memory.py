"""Logits after going back in a conversation are those of a fresh evaluation, whatever the model remembers with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ftllm.chat.memory import POINTS, Memory
from ftllm.llama.context import Context
from ftllm.llama.model import Model

sys.path.append(str(Path(__file__).parents[1] / "llama"))

import tiny_gemma
from tiny_recurrent import write_hybrid, write_mamba

TOLERANCE = 0.05  # of logits whose spread is 2: flash attention on a CPU sums in 16 bits
WRITERS: dict[str, Callable[[Path], Path]] = {
    "windows": tiny_gemma.write_gemma,
    "recurrent": write_mamba,
    "hybrid": write_hybrid,
}


@pytest.fixture(scope="module", params=WRITERS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Model.load(WRITERS[request.param](tmp_path_factory.mktemp("gguf") / f"{request.param}.gguf")) as model:
        yield model


@pytest.fixture
def memory(model: Model) -> Iterator[Memory]:
    with small_context(model) as context:
        yield Memory(context)


def small_context(model: Model) -> Context:
    """Made so that windows of 16 tokens are kept in caches of 256, half the context."""
    return Context(model, n_ctx=512, n_batch=64, windowed=True)


def tokens(length: int, seed: int) -> list[int]:
    generator = np.random.default_rng(seed)
    return generator.integers(tiny_gemma.FIRST_WORD, tiny_gemma.N_VOCAB - 10, length).tolist()


def fresh(model: Model, ids: list[int]) -> NDArray[np.float32]:
    with Context(model, n_ctx=512, n_batch=512) as context:
        context.decode(ids, start=0)
        return context.logits().copy()


def never() -> bool:
    return False


def read(memory: Memory, ids: list[int], mark: int = 0) -> int:
    """Go on to `ids`; how many were there already, after a look at the logits."""
    kept = memory.rewind(ids)
    assert memory.tokens == ids[:kept]
    assert memory.evaluate(ids, stop=never, mark=mark)
    assert memory.tokens == ids
    difference = np.abs(memory.context.logits() - fresh(memory.context.model, ids)).max()
    assert difference < TOLERANCE
    return kept


def test_a_conversation_whose_thoughts_are_taken_out(memory: Memory) -> None:
    prompt = [tiny_gemma.BOS, *tokens(199, 1)]
    for turn in range(3):
        kept = len(prompt) - 2  # the generation prompt is not in the next turn's
        evaluated = len(prompt) - read(memory, prompt, mark=kept)
        assert evaluated <= (200 if turn == 0 else 32)
        for token in tokens(90, turn + 10):  # a thought, longer than what the windows' cache has to spare
            memory.append((token,))
        prompt = prompt[:kept] + tokens(20, turn + 20)  # the answer alone
        assert read(memory, prompt) == kept
        memory.mark()
        prompt = prompt + tokens(12, turn + 30)


def test_regenerating_and_editing_go_back_without_reading_all_again(memory: Memory) -> None:
    first = [tiny_gemma.BOS, *tokens(250, 1)]
    read(memory, first, mark=249)
    for token in tokens(60, 2):
        memory.append((token,))
    assert read(memory, first) in (249, 250)  # the same again; windows may have a little to spare
    edited = first[:249] + tokens(30, 3)
    assert read(memory, edited) == 249
    assert read(memory, first[:100] + tokens(30, 4)) in (0, 100)  # never half a state


def test_an_abort_leaves_a_state_to_go_on_from(memory: Memory) -> None:
    ids = [tiny_gemma.BOS, *tokens(300, 5)]
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    assert not memory.evaluate(ids, stop=stop)
    assert memory.tokens == ids[: len(memory)]
    assert read(memory, ids) <= 300


def test_places_to_come_back_to_are_few(memory: Memory) -> None:
    ids = [tiny_gemma.BOS, *tokens(300, 6)]
    for length in range(20, 300, 20):
        memory.evaluate(ids[:length], stop=never)
        memory.mark()
        memory.mark()
    assert len(memory._points) == POINTS
    assert read(memory, ids[:270] + tokens(9, 7)) in (260, 270)


def test_saved_and_loaded(memory: Memory, tmp_path: Path) -> None:
    ids = [tiny_gemma.BOS, *tokens(290, 8)]
    read(memory, ids[:280])
    size = memory.save(tmp_path / "state", "m")
    assert (tmp_path / "state").stat().st_size == size
    with small_context(memory.context.model) as context:
        other = Memory(context)
        assert (
            other.load(tmp_path / "state", "another")
            == "it was saved by another model, or another version of llama.cpp"
        )
        assert other.load(tmp_path / "state", "m") == ""
        assert read(other, ids) == 280
        assert read(other, ids[:280] + tokens(5, 9)) == 280


def test_what_windows_forget_would_be_missed(tmp_path: Path) -> None:
    """The trap itself: cutting without asking gives other logits, with no word from llama.cpp."""
    with Model.load(tiny_gemma.write_gemma(tmp_path / "gemma.gguf")) as model, small_context(model) as context:
        ids = [tiny_gemma.BOS, *tokens(400, 1)]
        context.decode(ids, start=0)
        assert not context.can_remove(0, 100)
        assert context.remove(0, 100)
        context.decode(ids[100:102], start=100)
        assert np.abs(context.logits() - fresh(model, ids[:102])).max() > 10 * TOLERANCE
