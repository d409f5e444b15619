"""What the engine is doing and how fast, read off its events."""

from __future__ import annotations

from dataclasses import replace

from ftllm.chat.events import (
    AnyEvent,
    Done,
    Failed,
    Loaded,
    LoadProgress,
    PromptProgress,
    StateLoaded,
    Stats,
    TextDelta,
    ThinkDelta,
    ThinkEnd,
    ThinkStart,
)
from ftllm.values import dataclass


@dataclass(frozen=True)
class Figures:
    """What the status line tells; None is left out.

    Args:
        model: the model's name, quantization included.
        state: what the engine is doing, in a word or two.
        tokens_per_second: of the reply under way, else of the last one.
        first_token: seconds from sending to the first token of the last reply.
        context_tokens, n_ctx: tokens in the context, and how many it holds.
        think: how thoughts are asked for; empty where that is not known.
    """

    model: str
    state: str
    tokens_per_second: float | None = None
    first_token: float | None = None
    context_tokens: int | None = None
    n_ctx: int | None = None
    think: str = ""


class Meter:
    """Folds events into `Figures`.

    While a reply runs, its figures are counted here; a piece of an answer that does not tell its tokens counts as one.
    The engine's own `Stats` replace the count at the end.
    """

    def __init__(self, model: str) -> None:
        self.figures = Figures(model, "loading")
        self._prompt_tokens = 0
        self._closed_thoughts = 0
        self._open_thought = 0
        self._answer = 0
        self._first_time: float | None = None
        self._running = False

    def name(self, model: str) -> None:
        """Another model is being loaded."""
        self.figures = Figures(model, "loading")
        self._running = False

    def rename(self, model: str) -> None:
        """The model has another name than was known before it was loaded."""
        self._set(model=model)

    def asked(self) -> None:
        """A message was sent: a reply begins."""
        self._prompt_tokens = self._closed_thoughts = self._open_thought = self._answer = 0
        self._first_time = None
        self._running = True
        self._set(state="reading", tokens_per_second=None, first_token=None)

    def take(self, event: AnyEvent) -> None:
        """Fold one event in."""
        match event:
            case LoadProgress():
                self._set(state=f"loading {event.fraction:.0%}")
            case Loaded():
                self._set(state="reading" if self._running else "ready", n_ctx=event.n_ctx)
            case PromptProgress():
                self._prompt_tokens = event.total
                share = f" {event.done / event.total:.0%}" if 0 < event.done < event.total else ""
                self._set(state=f"reading{share}", context_tokens=event.done)
            case ThinkStart():
                self._set(state="thinking")
            case ThinkDelta():
                self._open_thought = event.tokens
                self._count(event.time, "thinking")
            case ThinkEnd():
                self._closed_thoughts += event.tokens
                self._open_thought = 0
            case TextDelta():
                self._answer = event.tokens or self._answer + 1
                self._count(event.time, "answering")
            case Stats():
                self._set(
                    tokens_per_second=event.tokens_per_second,
                    first_token=event.time_to_first_token,
                    context_tokens=event.context_tokens,
                    n_ctx=event.n_ctx,
                )
            case StateLoaded():
                self._set(context_tokens=event.tokens or None)
            case Done() | Failed():
                self._running = False
                self._set(state="ready" if isinstance(event, Done) else "failed")

    def _count(self, time: float, state: str) -> None:
        tokens = self._closed_thoughts + self._open_thought + self._answer
        if self._first_time is None:
            self._first_time = time
        seconds = time - self._first_time
        speed = (tokens - 1) / seconds if tokens > 1 and seconds > 0 else None
        self._set(state=state, tokens_per_second=speed, context_tokens=self._prompt_tokens + tokens)

    def _set(self, **changes: str | float | None) -> None:
        self.figures = replace(self.figures, **changes)  # type: ignore[arg-type]
