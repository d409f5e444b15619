"""What the engine is told to load, when many things are asked for at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from tui_stage import Clock, Replay

from ftllm.chat.events import AnyEvent, Failed, Loaded, LoadProgress, StateSaved
from ftllm.chat.options import LoadSettings
from ftllm.errors import WorkError
from tui.inbox import Inbox
from tui.loader import Loader

A, B, C = Path("a.gguf"), Path("b.gguf"), Path("c.gguf")
LOADED = Loaded(0.0, 0, "", "", 512, 512, 0, 0, 0.0)
FAILED = Failed(0.0, 0, "cut short", "", 2)


class Engine(Replay):
    """Notes loads and states in the order they are asked for."""

    def __init__(self, inbox: Inbox) -> None:
        super().__init__(inbox, Clock())
        self.told: list[str] = []

    def load(self, path: Path, settings: LoadSettings | None = None) -> None:
        del settings
        if self.refuse:
            raise WorkError("no process can be started")
        self.told.append(path.stem)

    def save_state(self, path: Path) -> None:
        self.told.append(f"save {path}")

    def load_state(self, path: Path) -> None:
        self.told.append(f"take {path}")


@pytest.fixture
def engine() -> Engine:
    return Engine(Inbox())


def loader_after(engine: Engine, *events: AnyEvent) -> Loader:
    loader = Loader(engine, engine.inbox)
    for event in events:
        loader.take(event)
    return loader


def test_only_the_last_of_many_is_loaded(engine: Engine) -> None:
    loader = loader_after(engine, LOADED)
    assert loader.ready
    for path in (A, B, C):
        loader.load(path, LoadSettings(), Path(path.stem))
    assert (engine.told, loader.ready) == (["a", "take a"], False)
    assert not loader.take(LoadProgress(0.0, 0, 0.5))  # of a model that nobody wants any more
    assert not loader.take(FAILED)  # of the same
    assert engine.told == ["a", "take a", "c", "take c"]
    assert loader.take(LoadProgress(0.0, 0, 0.5))
    assert loader.take(LOADED)
    assert loader.ready


def test_a_state_belongs_to_the_model_asked_for_last(engine: Engine) -> None:
    loader = loader_after(engine, LOADED)
    loader.load(A, LoadSettings())
    loader.load(B, LoadSettings())
    loader.load_state(Path("s"))
    loader.take(LOADED)
    loader.load_state(Path("t"))
    assert engine.told == ["a", "b", "take s", "take t"]


@pytest.mark.parametrize("event", [StateSaved(0.0, 0, "s", 1, 1, "no space"), FAILED], ids=["saved", "gone"])
def test_what_was_read_is_written_before_another_model_comes(engine: Engine, event: AnyEvent) -> None:
    loader = loader_after(engine, LOADED)
    loader.save_state(Path("s"))
    loader.load(A, LoadSettings())
    assert engine.told == ["save s"]
    loader.take(event)
    assert engine.told == ["save s", "a"]
    assert loader.saving is None


def test_a_failure_is_of_the_load_only_while_there_is_one(engine: Engine) -> None:
    loader = loader_after(engine, LOADED, FAILED)  # the process has died, and will be started again
    assert (loader.ready, loader.failed) == (True, False)
    loader.load(A, LoadSettings())
    assert loader.take(FAILED)
    assert (loader.ready, loader.failed) == (False, True)


def test_an_engine_that_cannot_be_started(engine: Engine) -> None:
    loader = loader_after(engine, LOADED)
    engine.refuse = True
    loader.load(A, LoadSettings())
    (event,) = engine.inbox.drain()
    assert loader.take(event)
    assert loader.failed
