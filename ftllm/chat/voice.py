"""Whoever is talked to, a GGUF in the local engine or a model behind an endpoint, behind one set of methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftllm.chat.engine import Engine
from ftllm.chat.events import AnyEvent
from ftllm.chat.options import LoadSettings, ReplyOptions, SamplingOptions
from ftllm.chat.remote import Remote, Target
from ftllm.errors import WorkError

if TYPE_CHECKING:
    from ftllm.chat.endpoint import Endpoint


class Voice:
    """An engine or an endpoint, changed by `load`; its methods return at once and may be called from any thread.

    Args:
        on_event: called with each event, in order, on a thread of the one that talks; must not block for long.
    """

    def __init__(self, on_event: Callable[[AnyEvent], None]) -> None:
        self._on_event = on_event
        self._engine: Engine | None = None
        self._endpoint: Endpoint | None = None
        self._current: Engine | Endpoint | None = None

    def start(self) -> None:
        """Start the local engine's process ahead of `load`."""
        self._local().start()

    def load(self, target: Target, settings: LoadSettings | None = None) -> None:
        """Load a GGUF, or take a model behind an endpoint, in place of what was there; `Loaded` or `Failed` follows."""
        if isinstance(target, Remote):
            self._current = self._remote()
            self._remote().load(target, settings)
            if self._engine is not None:  # gives its memory back
                self._engine.close()
                self._engine = None
        else:
            self._current = self._local()
            self._local().load(target, settings)

    def generate(self, messages: Sequence[Mapping[str, Any]], options: ReplyOptions | None = None) -> int:
        """Ask for the assistant's next turn; the reply's number, which no other reply has."""
        if self._current is None:
            raise WorkError("no model is loaded")
        return self._current.generate(messages, options)

    def stop(self) -> None:
        """End all replies asked for so far; each still gets its `Done`."""
        if self._current is not None:
            self._current.stop()

    @property
    def can_answer_now(self) -> bool:
        """Whether a thought can be ended early: an endpoint offers no way to."""
        return self._current is not None and self._current is self._engine

    def answer_now(self) -> None:
        """Close the thought that is under way and go on to the answer, where that is possible."""
        if self._engine is not None and self.can_answer_now:
            self._engine.answer_now()

    def set_sampling(self, sampling: SamplingOptions) -> None:
        """Sample the rest of the reply in another way, as `Engine.set_sampling`; an endpoint's goes on as it began."""
        if self._engine is not None and self._current is self._engine:
            self._engine.set_sampling(sampling)

    def save_state(self, path: Path) -> None:
        """As `Engine.save_state`; nothing with an endpoint."""
        if self._engine is not None and self._current is self._engine:
            self._engine.save_state(path)

    def load_state(self, path: Path) -> None:
        """As `Engine.load_state`; nothing with an endpoint."""
        if self._engine is not None and self._current is self._engine:
            self._engine.load_state(path)

    def close(self, timeout: float = 2.0) -> None:
        """End the process, hang up. No events after this."""
        for one in (self._engine, self._endpoint):
            if one is not None:
                one.close(timeout)

    def __enter__(self) -> Voice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _local(self) -> Engine:
        if self._engine is None:
            self._engine = Engine(self._on_event)
        return self._engine

    def _remote(self) -> Endpoint:
        if self._endpoint is None:
            from ftllm.chat.endpoint import Endpoint

            self._endpoint = Endpoint(self._on_event)
        return self._endpoint
