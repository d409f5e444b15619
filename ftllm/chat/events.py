"""What the engine tells, and what it is told: frozen values, one JSON line each.

Every time is `time.monotonic()` of the engine's process, in seconds: differences between events mean something,
absolute values do not. `reply` is the number `Engine.generate` returned, or 0 for events about the engine itself.
A reply's events come in this order; a `Failed` may cut it anywhere and is then the last:

    TurnsDropped?  PromptProgress*  ( ThinkStart ThinkDelta* ThinkEnd | TextDelta )*  Stats  Done

`LoopSuspected` and another `TurnsDropped` may come anywhere in between.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any, Literal, TypeAlias

from ftllm.chat.options import LoadSettings, ReplyOptions, SamplingOptions
from ftllm.values import dataclass

DoneReason = Literal["stop", "length", "context", "stopped", "loop"]
"""`stop`: by the model; `length`: the token limit; `context`: the context is full; `stopped`: by request;
`loop`: the answer repeated itself, and `ReplyOptions.loops` asked to stop that."""

ThinkEndReason = Literal["closed", "unclosed", "cut", "stopped", "budget", "answer_now", "loop"]
"""`closed`: by the model; `unclosed`: the model ended its turn inside the thought; `cut`: the reply reached a limit
there; `stopped`: by request, with the reply; `budget`, `answer_now` and `loop`: by the engine, and the answer
follows."""


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
    fingerprint: str = ""  # the same for the same weights, wherever the file is; see `ftllm.llama.identity`
    gpu_layers: int = 0  # layers on a GPU, the output counted as one
    placement: str = ""  # in words: "all 19 layers on the GPU", "on the CPU, 4 threads"
    shares_cores: bool = False  # it computes on every processor there is: other work slows it down


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
    """More of the answer; `tokens` of the whole answer so far, 0 where they are not counted."""

    text: str
    tokens: int = 0


@dataclass(frozen=True)
class LoopSuspected(Event):
    """The last `period` * `count` tokens are one stretch of `period` tokens, `count` times; told once a loop."""

    period: int
    count: int
    thought: bool  # inside a thought


@dataclass(frozen=True)
class TurnsDropped(Event):
    """The context is full: the model no longer sees the oldest `turns` messages after the system prompt."""

    turns: int


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


@dataclass(frozen=True)
class Prepared(Event):
    """While nobody asked for anything, the context was brought to where the next message will go on."""

    context_tokens: int
    evaluated: int  # tokens that took


@dataclass(frozen=True)
class StateSaved(Event):
    """The KV cache is in a file; or, with an `error`, it is not."""

    path: str
    tokens: int
    size_bytes: int
    error: str = ""


@dataclass(frozen=True)
class StateLoaded(Event):
    """The KV cache is what a file held: `tokens` of it; or, with a `reason`, as it was before."""

    path: str
    tokens: int
    reason: str = ""


AnyEvent: TypeAlias = (
    LoadProgress
    | Loaded
    | PromptProgress
    | ThinkStart
    | ThinkDelta
    | ThinkEnd
    | TextDelta
    | LoopSuspected
    | TurnsDropped
    | Stats
    | Done
    | Failed
    | Prepared
    | StateSaved
    | StateLoaded
)

KINDS: dict[str, type[AnyEvent]] = {
    "load_progress": LoadProgress,
    "loaded": Loaded,
    "prompt_progress": PromptProgress,
    "think_start": ThinkStart,
    "think_delta": ThinkDelta,
    "think_end": ThinkEnd,
    "text_delta": TextDelta,
    "loop_suspected": LoopSuspected,
    "turns_dropped": TurnsDropped,
    "stats": Stats,
    "done": Done,
    "failed": Failed,
    "prepared": Prepared,
    "state_saved": StateSaved,
    "state_loaded": StateLoaded,
}
NAMES: dict[type[AnyEvent], str] = {kind: name for name, kind in KINDS.items()}
FIELDS = {kind: {field.name for field in fields(kind)} for kind in NAMES}


@dataclass(frozen=True)
class Load:
    """Load a GGUF in place of the one that is loaded: `LoadProgress`*, then `Loaded` or `Failed`."""

    path: str
    settings: LoadSettings


@dataclass(frozen=True)
class Generate:
    """Make the assistant's next turn; the events of `reply` follow."""

    reply: int
    messages: tuple[dict[str, Any], ...]  # `{"role": ..., "content": ...}`, oldest first
    options: ReplyOptions


@dataclass(frozen=True)
class Stop:
    """End the replies numbered up to `reply`."""

    reply: int


@dataclass(frozen=True)
class AnswerNow:
    """Close the thought of `reply` and go on to its answer."""

    reply: int


@dataclass(frozen=True)
class SetSampling:
    """Go on sampling `reply` in another way."""

    reply: int
    sampling: SamplingOptions


@dataclass(frozen=True)
class SaveState:
    """Write the KV cache to a file: `StateSaved` follows."""

    path: str


@dataclass(frozen=True)
class LoadState:
    """Take the KV cache from a file that the same model wrote: `StateLoaded` follows."""

    path: str


AnyCommand: TypeAlias = Load | Generate | Stop | AnswerNow | SetSampling | SaveState | LoadState

COMMANDS: dict[str, type[AnyCommand]] = {
    "load": Load,
    "generate": Generate,
    "stop": Stop,
    "answer_now": AnswerNow,
    "set_sampling": SetSampling,
    "save_state": SaveState,
    "load_state": LoadState,
}
COMMAND_NAMES: dict[type[AnyCommand], str] = {kind: name for name, kind in COMMANDS.items()}


def command_to_json(command: AnyCommand) -> str:
    """One line (no newline inside or at the end), plain ASCII."""
    return json.dumps({"command": COMMAND_NAMES[type(command)], **asdict(command)})


def command_from_json(line: str) -> AnyCommand:
    """The command of one line.

    Raises:
        ValueError: the line is not a command.
    """
    try:
        values: dict[str, Any] = json.loads(line)
        kind = COMMANDS[values.pop("command")]
        if "settings" in values:
            values["settings"] = LoadSettings(**values["settings"])
        if "options" in values:
            values["options"] = ReplyOptions(**values["options"])
        if "sampling" in values:
            values["sampling"] = SamplingOptions(**values["sampling"])
        if "messages" in values:
            values["messages"] = tuple(values["messages"])
        return kind(**values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a command: {line[:200]!r} ({error})") from error


def to_json(event: AnyEvent) -> str:
    """One line (no newline inside or at the end), plain ASCII."""
    return json.dumps({"event": NAMES[type(event)], **vars(event)})  # no field of an event holds another dataclass


def from_json(line: str) -> AnyEvent:
    """The event of one line.

    Raises:
        ValueError: the line is not an event.
    """
    try:
        values: dict[str, Any] = json.loads(line)
        kind = KINDS[values.pop("event")]
        unknown = values.keys() - FIELDS[kind]
        if unknown:
            raise ValueError(f"unknown fields {sorted(unknown)}")
        if "log" in values:
            values["log"] = tuple(values["log"])
        return kind(**values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not an event: {line[:200]!r} ({error})") from error
