"""A conversation with models that cannot simply go back: what is read again after a reply is the reply."""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ftllm.chat.events import AnyEvent, Done, Prepared, PromptProgress, Stats, TurnsDropped
from ftllm.chat.options import LoadSettings, ReplyOptions, SamplingOptions
from ftllm.chat.session import Reply
from ftllm.chat.speaker import Control, Speaker
from ftllm.llama.company import Company
from ftllm.llama.model import Model

sys.path.append(str(Path(__file__).parents[1] / "llama"))

import tiny_gemma
from tiny_recurrent import write_hybrid, write_mamba

WRITERS: dict[str, Callable[[Path], Path]] = {
    "windows": tiny_gemma.write_gemma,
    "recurrent": write_mamba,
    "hybrid": write_hybrid,
}
OPTIONS = ReplyOptions(max_tokens=24, ignore_end=True, loops="off", temperature=1.0, seed=5)


@pytest.fixture(params=WRITERS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Model]:
    with Model.load(WRITERS[request.param](tmp_path / "model.gguf")) as model:
        yield model


def test_turn_after_turn(model: Model) -> None:
    events: list[AnyEvent] = []
    speaker = Speaker(model, LoadSettings(n_ctx=512), events.append)
    messages = [{"role": "user", "content": "one" * 30}]
    ready = 0
    for turn in range(3):
        events.clear()
        speaker.reply(turn, messages, OPTIONS, Control())
        speaker.prepare(Control())
        stats = next(event for event in events if isinstance(event, Stats))
        prepared = next(event for event in events if isinstance(event, Prepared))
        reply = Reply()
        for event in events:
            reply.feed(event)
        assert stats.reused_tokens == ready
        if turn:
            # the question, the end of its turn, the generation prompt
            assert stats.prompt_tokens - stats.reused_tokens <= len("go on") + 12
        # not the prompt again: the answer, retokenized, and what surrounds it
        assert prepared.evaluated <= len(reply.message.content.encode()) + 20
        ready = prepared.context_tokens
        messages += [{"role": "assistant", "content": reply.message.content}, {"role": "user", "content": "go on"}]
    first = next(event for event in events if isinstance(event, PromptProgress))
    assert first.done == stats.reused_tokens


def test_preparation_gives_way(model: Model) -> None:
    events: list[AnyEvent] = []
    speaker = Speaker(model, LoadSettings(n_ctx=512), events.append)
    speaker.reply(1, [{"role": "user", "content": "one"}], OPTIONS, Control())
    speaker.prepare(Control(stop=True))
    assert not [event for event in events if isinstance(event, Prepared)]
    speaker.prepare(Control())
    assert [event for event in events if isinstance(event, Prepared)]


def test_changes_of_sampling_between_two_tokens_add_up(model: Model) -> None:
    changes = deque([SamplingOptions(temperature=0.0), SamplingOptions(repeat_penalty=1.5)])
    texts = []
    for options, control in (
        (OPTIONS, Control(sampling=changes)),
        (replace(OPTIONS, temperature=0.0, repeat_penalty=1.5), Control()),
    ):
        reply = Reply()
        Speaker(model, LoadSettings(n_ctx=256), reply.feed).reply(
            1, [{"role": "user", "content": "one"}], options, control
        )
        texts.append(reply.answer)
    assert texts[0] == texts[1]


def test_a_full_context(model: Model) -> None:
    events: list[AnyEvent] = []
    speaker = Speaker(model, LoadSettings(n_ctx=256), events.append)
    messages = []
    for turn in range(6):
        messages.append({"role": "user", "content": f"{turn} " + "abc " * 10})
        speaker.reply(turn, messages, OPTIONS, Control())
        messages.append({"role": "assistant", "content": "yes " * 5})
    reasons = [event.reason for event in events if isinstance(event, Done)]
    assert reasons == ["length"] * 6
    dropped = [event.turns for event in events if isinstance(event, TurnsDropped)]
    assert dropped == sorted(dropped)
    assert dropped


def test_a_thread_gives_way_to_a_busy_program_in_the_middle_of_a_reply(tmp_path: Path) -> None:
    with Model.load(tiny_gemma.write_gemma(tmp_path / "model.gguf")) as model:
        threads: list[int] = []
        used = 0.0

        def emit(_event: AnyEvent) -> None:
            nonlocal used
            threads.append(speaker.context.n_threads)
            used += 1.0 if 5 < len(threads) < 15 else 0.0  # somebody else's core

        speaker = Speaker(model, LoadSettings(n_ctx=512, n_threads=2), emit)
        speaker._company = Company(2, lambda: used, lambda: float(len(threads)), cpus=2)
        options = replace(OPTIONS, max_tokens=60, delta_seconds=0.0)
        speaker.reply(1, [{"role": "user", "content": "one" * 30}], options, Control())
        assert (threads[0], threads[10], threads[-1]) == (2, 1, 2)
        assert sum(one != other for one, other in itertools.pairwise(threads)) == 2
