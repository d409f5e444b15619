"""What a session's model has read is there again in the next run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ftllm.chat import store as chats
from ftllm.chat.ask import Asker, Kept
from ftllm.chat.events import AnyEvent, StateLoaded, Stats
from ftllm.chat.options import ChatOptions
from ftllm.chat.states import directory, label_of, prune, state_file


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def ask(database: Path, model: Path, text: str) -> list[AnyEvent]:
    events: list[AnyEvent] = []
    with chats.open_store(database) as store, Asker() as asker:
        reply = asker.ask(model, text, ChatOptions(), events.append, Kept(store, "one"))
        assert reply.answer == "It is 42."
    return events


def stats_of(events: list[AnyEvent]) -> Stats:
    return next(event for event in events if isinstance(event, Stats))


def test_the_second_run_reads_only_what_is_new(scripted: Path, tmp_path: Path) -> None:
    first = stats_of(ask(tmp_path / "chats.db", scripted, "abcT"))
    assert first.reused_tokens == 0
    (state,) = directory().glob("*.kv")
    events = ask(tmp_path / "chats.db", scripted, "defT")
    second = stats_of(events)
    # the end of the turn and the generation prompt are new, and the question
    assert second.prompt_tokens - second.reused_tokens == len("defT") + 1 + 1
    assert next(event for event in events if isinstance(event, StateLoaded)).tokens == second.reused_tokens
    # a damaged state costs time, not the conversation
    state.write_bytes(state.read_bytes()[:500])
    events = ask(tmp_path / "chats.db", scripted, "T")
    assert next(event for event in events if isinstance(event, StateLoaded)).reason == "the file is damaged"
    assert stats_of(events).reused_tokens == 0


def test_the_oldest_states_go_first() -> None:
    directory().mkdir(parents=True)
    files = [state_file(name) for name in "abcd"]
    for age, path in enumerate(files):
        path.write_bytes(bytes(100))
        label_of(path).write_text("{}")
        os.utime(path, (1000 + age, 1000 + age))
    prune(files[0], limit=400)
    assert all(path.exists() for path in files)
    prune(files[0], limit=250)
    assert [path.exists() for path in files] == [True, False, False, True]
    assert [label_of(path).exists() for path in files] == [True, False, False, True]
