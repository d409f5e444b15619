"""Text as it is generated -> events: thoughts told apart and timed, tokens counted, deltas coalesced."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from ftllm.chat.events import AnyEvent, TextDelta, ThinkDelta, ThinkEnd, ThinkEndReason, ThinkStart
from ftllm.chat.options import ReplyOptions
from ftllm.thoughts import Piece, Splitter, ThoughtTags

COALESCE = ReplyOptions.delta_seconds

Emit = Callable[[AnyEvent], None]
Clock = Callable[[], float]


class Writer:
    """Takes one reply's tokens, as text, and emits its thoughts and its answer.

    White space before a thought's or the answer's first word is dropped; the first delta of each goes out at once.

    Attributes:
        held: all deltas after it wait for `tell`.

    Args:
        emit: gets the events.
        number: the reply's.
        tags: the model's thought tags.
        clock: monotonic seconds.
        pause: seconds between two deltas, at least.
    """

    def __init__(
        self,
        emit: Emit,
        number: int,
        tags: ThoughtTags,
        *,
        clock: Clock = time.monotonic,
        pause: float = COALESCE,
    ) -> None:
        self.held = False
        self.thought_tokens = 0
        self.answer_tokens = 0
        self.thought_seconds = 0.0
        self.answered = False  # some of the answer is out
        self.answer = ""  # all of it that is out
        self._emit, self._number, self._clock, self._pause = emit, number, clock, pause
        self._splitter = Splitter(tags)
        self._why: ThinkEndReason = "closed"
        self._kind: Literal["think", "text"] = "text"  # of what was taken last
        self._held_tokens = 0  # tokens whose text the splitter holds back
        self._this_thought = 0
        self._started = 0.0
        self._pending = ""  # text not told yet
        self._begun = False  # something of this thought or answer is told
        self._told = 0.0  # when the last delta went out

    @property
    def thinking(self) -> bool:
        """Whether the reply is inside a thought."""
        return self._splitter.thinking

    def open_thought(self) -> None:
        """Begin inside a thought: the prompt opened it."""
        self._splitter = Splitter(self._splitter.tags, opened=True)
        self._take(self._splitter.feed(""), 0)

    def resume(self) -> None:
        """Go on with a reply, or the thought of one, that has begun: its first white space is a part of it."""
        self._begun, self.answered = True, self._kind == "text"

    def take(self, text: str, tokens: int = 1, *, control: bool = False) -> None:
        """Take the text `tokens` tokens made, perhaps none yet; `control` where it is a control token's."""
        self._take(self._splitter.feed(text, control=control), tokens)

    def tell(self) -> None:
        """Let out the text that waits, where the last delta is long enough ago."""
        if self._pending and self._clock() - self._told >= self._pause:
            self._flush()

    def close_thought(self, message: str, tokens: int, why: ThinkEndReason) -> None:
        """End the thought that is under way: `message` and the closing tag were fed to the model as `tokens` tokens."""
        self._why = why
        self._take([*self._splitter.feed(message), *self._splitter.close()], tokens)
        self._why = "closed"

    def finish(self, text: str, *, why: ThinkEndReason) -> None:
        """Take the last text and tell the rest; a thought that is still open ends because of `why`."""
        pieces = self._splitter.feed(text) + self._splitter.finish(complete=why == "unclosed")
        self._take(pieces, 0)
        if self._splitter.thinking:
            self._end_thought(why)
        self._flush()

    def _take(self, pieces: list[Piece], tokens: int) -> None:
        self._held_tokens += tokens
        if pieces:
            # A token that is part of a tag belongs to the thought.
            thought = self._kind == "think" or any(kind != "text" for kind, _ in pieces)
            self._count(self._held_tokens, thought=thought)
            self._held_tokens = 0
        for kind, text in pieces:
            if kind == "think_start":
                self._flush()
                self._kind, self._begun, self._started = "think", False, self._clock()
                self._emit(ThinkStart(self._started, self._number))
            elif kind == "think_end":
                self._end_thought(self._why)
            else:
                self._add(text)

    def _count(self, tokens: int, *, thought: bool) -> None:
        if thought:
            self.thought_tokens += tokens
            self._this_thought += tokens
        else:
            self.answer_tokens += tokens

    def _add(self, text: str) -> None:
        self._pending += text if self._begun or self._pending else text.lstrip()
        if self._pending and not self._begun:
            self._flush()
        elif not self.held:
            self.tell()

    def _flush(self) -> None:
        if not self._pending:
            return
        text, self._pending = self._pending, ""
        self._begun, self._told = True, self._clock()
        if self._kind == "think":
            self._emit(ThinkDelta(self._told, self._number, text, self._this_thought))
        else:
            self.answered = True
            self.answer += text
            self._emit(TextDelta(self._told, self._number, text, self.answer_tokens))

    def _end_thought(self, why: ThinkEndReason) -> None:
        self._flush()
        now = self._clock()
        seconds = now - self._started
        self.thought_seconds += seconds
        self._emit(ThinkEnd(now, self._number, why, seconds, self._this_thought))
        self._kind, self._this_thought = "text", 0
        self._begun = self.answered
