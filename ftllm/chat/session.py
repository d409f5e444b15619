"""A conversation: what was said, what was thought, and what of it the model sees again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from typing import Any, Literal

from ftllm.chat.events import (
    AnyEvent,
    Done,
    DoneReason,
    Failed,
    LoopSuspected,
    Stats,
    TextDelta,
    ThinkDelta,
    ThinkEnd,
    ThinkEndReason,
    ThinkStart,
    TurnsDropped,
)
from ftllm.values import dataclass

StopReason = DoneReason | Literal["failed", "interrupted"]
"""`failed`: the engine did; `interrupted`: this program ended first."""

ThoughtEnd = ThinkEndReason | Literal["interrupted"]
"""`interrupted`: the engine or this program ended in the middle of the thought."""


@dataclass(frozen=True)
class OneThought:
    """One of several thoughts of a reply; `at` is how much of the answer, in characters, was said before it."""

    text: str
    seconds: float
    tokens: int
    end: ThoughtEnd
    at: int


@dataclass(frozen=True)
class ChatMessage:
    """One turn. `images` are files that the person shows; the fields between are the assistant's only.

    `thought_end` says why its last thought ended; None where there was none, or nobody knows any more. `thoughts` has
    them one by one where there are several, whose sums the other fields hold.
    """

    role: Literal["system", "user", "assistant"]
    content: str
    thought: str = ""
    thought_seconds: float = 0.0
    thought_tokens: int = 0
    answer_tokens: int = 0
    stop_reason: StopReason | None = None
    stats: Stats | None = None
    thought_end: ThoughtEnd | None = None
    thoughts: tuple[OneThought, ...] = ()
    images: tuple[str, ...] = ()


@dataclass
class Reply:
    """The assistant's turn while it arrives: fold the engine's events in with `feed`, look at `message` any time."""

    thoughts: list[str] = field(default_factory=list)
    answer: str = ""
    thinking: bool = False
    thinking_since: float | None = None  # engine's monotonic seconds, while `thinking`
    thought_seconds: float = 0.0
    thought_tokens: int = 0
    thought_end: ThoughtEnd | None = None  # of the last thought with anything in it
    ended: list[OneThought] = field(
        default_factory=list
    )  # thoughts with anything in them; `at` of the answer unstripped
    stats: Stats | None = None
    loop: LoopSuspected | None = None  # the last one
    dropped: int = 0  # the oldest turns, which the model no longer saw
    end: Done | Failed | None = None
    last_time: float = 0.0

    def feed(self, event: AnyEvent) -> None:
        """Take one event of this reply in."""
        match event:
            case ThinkStart():
                self.thoughts.append("")
                self.thinking, self.thinking_since = True, event.time
            case ThinkDelta():
                self.thoughts[-1] += event.text
            case ThinkEnd():
                self.thinking, self.thinking_since = False, None
                self.thought_seconds += event.seconds
                self.thought_tokens += event.tokens
                self._end_thought(event.seconds, event.tokens, event.why)
            case TextDelta():
                self.answer += event.text
            case LoopSuspected():
                self.loop = event
            case TurnsDropped():
                self.dropped = event.turns
            case Stats():
                self.stats = event
            case Done() | Failed():
                self.end = event
                if self.thinking_since is not None:  # the engine died in the middle of a thought
                    seconds = max(0.0, self.last_time - self.thinking_since)
                    self.thought_seconds += seconds
                    self._end_thought(seconds, 0, "interrupted")
                self.thinking, self.thinking_since = False, None
            case _:
                pass
        self.last_time = event.time

    def _end_thought(self, seconds: float, tokens: int, why: ThoughtEnd) -> None:
        if text := self.thoughts[-1].strip():
            self.thought_end = why
            self.ended.append(OneThought(text, seconds, tokens, why, len(self.answer)))

    @property
    def thought(self) -> str:
        """All thoughts, stripped, a blank line between them."""
        return "\n\n".join(text for text in map(str.strip, self.thoughts) if text)

    @property
    def message(self) -> ChatMessage:
        """The turn as it stands."""
        reason: StopReason | None = None
        if self.end is not None:
            reason = self.end.reason if isinstance(self.end, Done) else "failed"
        return ChatMessage(
            role="assistant",
            content=self.answer.strip(),
            thought=self.thought,
            thought_seconds=self.thought_seconds,
            thought_tokens=self.thought_tokens,
            answer_tokens=self.stats.answer_tokens if self.stats else 0,
            stop_reason=reason,
            stats=self.stats,
            thought_end=self.thought_end,
            thoughts=self._one_by_one(),
        )

    def _one_by_one(self) -> tuple[OneThought, ...]:
        """The thoughts where there are several, at their places in the answer as `message` has it."""
        ended = list(self.ended)
        if self.thinking_since is not None and (text := self.thoughts[-1].strip()):
            ended.append(OneThought(text, self.last_time - self.thinking_since, 0, "interrupted", len(self.answer)))
        if len(ended) < 2:
            return ()
        blank = len(self.answer) - len(self.answer.lstrip())
        return tuple(replace(one, at=max(one.at - blank, 0)) for one in ended)


@dataclass
class Session:
    """The turns of one conversation, oldest first."""

    system: str | None = None
    messages: list[ChatMessage] = field(default_factory=list)

    def ask(self, text: str, images: Sequence[str] = ()) -> None:
        """Add the person's turn, with the image files it shows."""
        self.messages.append(ChatMessage("user", text, images=tuple(images)))

    def answered(self, reply: Reply) -> ChatMessage:
        """Add the assistant's turn, complete or not, and return it."""
        message = reply.message
        self.messages.append(message)
        return message

    def context(self) -> list[Mapping[str, Any]]:
        """What the model sees."""
        return context_of(self.system, self.messages)


def context_of(system: str | None, messages: Iterable[ChatMessage]) -> list[Mapping[str, Any]]:
    """What the model sees: no thoughts, no empty replies, and no two turns of one role in a row.

    A reply stopped before its answer began leaves two user turns in a row, which many templates refuse; they
    become one, a blank line between them.
    """
    seen: list[ChatMessage] = [ChatMessage("system", system)] if system else []
    for message in messages:
        if message.role == "assistant" and not message.content:
            continue
        if seen and seen[-1].role == message.role:
            both = f"{seen[-1].content}\n\n{message.content}"
            seen[-1] = replace(seen[-1], content=both, images=seen[-1].images + message.images)
        else:
            seen.append(message)
    return [
        {"role": message.role, "content": message.content} | ({"images": message.images} if message.images else {})
        for message in seen
    ]


def continuation_of(system: str | None, messages: Sequence[ChatMessage]) -> list[Mapping[str, Any]]:
    """What the model sees to go on with the last message, which is its own: that one has its thought with it."""
    last = messages[-1]
    begun = {"role": "assistant", "content": last.content, "reasoning_content": last.thought}
    return [*context_of(system, messages[:-1]), begun]


def thoughts_of(reply: ChatMessage) -> list[OneThought]:
    """The thoughts of a reply, one by one."""
    if reply.thoughts or not reply.thought:
        return list(reply.thoughts)
    end = reply.thought_end or "closed"
    return [OneThought(reply.thought, reply.thought_seconds, reply.thought_tokens, end, 0)]


def thought_title(seconds: float) -> str:
    """The title of a finished thought: `Thought for 7.40 seconds`; past a minute `Thought for 1 min 7.40 s`."""
    minutes, rest = divmod(round(seconds, 2), 60)
    if minutes:
        return f"Thought for {int(minutes)} min {rest:.2f} s"
    return f"Thought for {rest:.2f} seconds"
