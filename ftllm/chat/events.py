"""What the engine tells: frozen values, one JSON line each.

Every time is `time.monotonic()` of the engine's process, in seconds: differences between events mean something,
absolute values do not. `reply` is the number `Engine.generate` returned, or 0 for events about the engine itself.
A reply's events come in this order; a `Failed` may cut it anywhere and is then the last:

    PromptProgress*  ( ThinkStart ThinkDelta* ThinkEnd | TextDelta )*  Stats  Done
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias

DoneReason = Literal["stop", "length", "context", "stopped"]
"""`stop`: by the model; `length`: the token limit; `context`: the context is full; `stopped`: by request."""

ThinkEndReason = Literal["closed", "unclosed", "cut", "stopped", "budget", "answer_now"]
"""`closed`: by the model; `unclosed`: the model ended its turn inside the thought; `cut`: the reply reached a limit
there; `stopped`: by request, with the reply; `budget` and `answer_now`: by the engine, and the answer follows."""


@dataclass(frozen=True)
class Event:
    """Common to all events: when (engine's monotonic seconds) and about which reply (0: the engine itself)."""

    time: float
    reply: int


@dataclass(frozen=True)
class LoadProgress(Event):
    """The model is being read; `fraction` from 0 to 1."""

    fraction: float


@dataclass(frozen=True)
class Loaded(Event):
    """A model is ready to talk."""

    path: str
    description: str  # llama.cpp's words: "gemma3 1B Q4_K - Medium"
    n_ctx: int  # tokens the context holds
    n_ctx_train: int  # tokens the model was trained for
    size_bytes: int
    n_params: int
    seconds: float  # from the command to now


@dataclass(frozen=True)
class PromptProgress(Event):
    """Tokens of the prompt in the context, of `total`; the first event's `done` were there already (KV reuse)."""

    done: int
    total: int


@dataclass(frozen=True)
class ThinkStart(Event):
    """A thought opened: by the model's tag, by the template, or by request."""


@dataclass(frozen=True)
class ThinkDelta(Event):
    """More of the thought; `tokens` of this thought so far."""

    text: str
    tokens: int


@dataclass(frozen=True)
class ThinkEnd(Event):
    """The thought ended after `seconds` of thinking and `tokens` tokens, tags included."""

    why: ThinkEndReason
    seconds: float
    tokens: int


@dataclass(frozen=True)
class TextDelta(Event):
    """More of the answer."""

    text: str


@dataclass(frozen=True)
class Stats(Event):
    """The figures of a reply, just before its end."""

    prompt_tokens: int  # the whole prompt's
    reused_tokens: int  # of these, taken from the KV cache
    thought_tokens: int  # all thoughts', tags included
    answer_tokens: int  # the rest, end-of-turn token not included
    thought_seconds: float  # all thoughts'
    time_to_first_token: float | None  # seconds from taking the message up to the first token; None: there was none
    tokens_per_second: float | None  # while generating; None: fewer than two tokens
    n_ctx: int
    context_tokens: int  # tokens in the context now


@dataclass(frozen=True)
class Done(Event):
    """The reply is complete, or complete so far."""

    reason: DoneReason


@dataclass(frozen=True)
class Failed(Event):
    """The reply, or the load when `reply` is 0, cannot go on. What was told before remains true.

    With `crashed`, the engine's process is gone (`log` holds the last lines of its log); the next message starts
    another. Otherwise it lives, and `exit_code` says whose fault: 2 the input's, 1 the work's.
    """

    message: str
    hint: str
    exit_code: int = 1
    crashed: bool = False
    log: tuple[str, ...] = ()


AnyEvent: TypeAlias = (
    LoadProgress | Loaded | PromptProgress | ThinkStart | ThinkDelta | ThinkEnd | TextDelta | Stats | Done | Failed
)

KINDS: dict[str, type[AnyEvent]] = {
    "load_progress": LoadProgress,
    "loaded": Loaded,
    "prompt_progress": PromptProgress,
    "think_start": ThinkStart,
    "think_delta": ThinkDelta,
    "think_end": ThinkEnd,
    "text_delta": TextDelta,
    "stats": Stats,
    "done": Done,
    "failed": Failed,
}
NAMES: dict[type[AnyEvent], str] = {kind: name for name, kind in KINDS.items()}


def to_json(event: AnyEvent) -> str:
    """One line (no newline inside or at the end), plain ASCII."""
    return json.dumps({"event": NAMES[type(event)], **asdict(event)})


def from_json(line: str) -> AnyEvent:
    """The event of one line.

    Raises:
        ValueError: the line is not an event.
    """
    try:
        values: dict[str, Any] = json.loads(line)
        kind = KINDS[values.pop("event")]
        unknown = values.keys() - {field.name for field in fields(kind)}
        if unknown:
            raise ValueError(f"unknown fields {sorted(unknown)}")
        if "log" in values:
            values["log"] = tuple(values["log"])
        return kind(**values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not an event: {line[:200]!r} ({error})") from error
