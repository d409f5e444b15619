"""The turns of a conversation as the transcript draws them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from ftllm.chat.events import (
    AnyEvent,
    Done,
    Failed,
    LoopSuspected,
    TextDelta,
    ThinkDelta,
    ThinkEnd,
    ThinkStart,
    TurnsDropped,
)
from ftllm.chat.options import ThoughtMode
from ftllm.chat.session import thought_title, thoughts_of
from ftllm.chat.store import Node
from ftllm.values import dataclass
from tui.growing import GrowingProse
from tui.look import Page
from tui.markdown import CodeBlock, code_blocks, parse, render
from tui.text import counted, harmless
from tui.thought import Thought, estimate
from tui.tools import AGAIN, COPY, DELETE, EDIT, MORE, SAVE, Tool

LOG_LINES = 5

THOUGHT_NOTES = {
    "closed": "",
    "unclosed": "never closed",
    "cut": "cut off",
    "stopped": "stopped",
    "budget": "budget used up",
    "answer_now": "asked to answer",
    "loop": "went in circles",
    "interrupted": "interrupted",
}

REPLY_NOTES = {
    "stop": "",
    "length": "Cut off: the reply has reached its token limit.",
    "context": "Cut off: the context is full.",
    "stopped": "Stopped.",
    "loop": "Stopped: the answer went in circles.",
    "interrupted": "Interrupted: the program ended before the reply did.",
    "failed": "The engine failed.",
}

NO_ANSWER = "The model ended its turn without an answer."


class Turn(ABC):
    """Something in the transcript. What it draws may change only when it is told to the transcript.

    Attributes:
        node: the message's number in the store; None for a remark of the program.
        branch: its place among those beside it, from 1, and their number.
        key: what to press for an answer now; empty where no key does that.
        running: more of it is to come.
    """

    node: int | None = None
    branch: tuple[int, int] = (1, 1)
    running = False
    key = "Ctrl+N"

    @abstractmethod
    def draw(self, page: Page) -> list[Strip]:
        """Framed lines, the blank one after it included."""

    @abstractmethod
    def estimate(self, page: Page) -> int:
        """About how many lines `draw` gives, without the cost of it."""

    @property
    def thoughts(self) -> list[Thought]:
        """The thoughts in it."""
        return []

    @property
    def code(self) -> list[CodeBlock]:
        """Its blocks of code, as they are numbered on the screen."""
        return []

    def tools(self, *, last: bool) -> list[Tool]:
        """What can be done with it.

        Args:
            last: whether no message follows it.
        """
        del last
        return []


class Remark(Turn):
    """Something the program says: what happened, or a failure with what to do about it."""

    def __init__(self, text: str, *, failure: bool = False) -> None:
        self.text = text
        self._failure = failure

    def draw(self, page: Page) -> list[Strip]:
        return [*note_lines(self.text, page, failure=self._failure), page.blank]

    def estimate(self, page: Page) -> int:
        return 1 + estimate(self.text, page)


class UserTurn(Turn):
    """What the person said, as typed, below the names of the images they showed."""

    def __init__(
        self, text: str, node: int | None = None, branch: tuple[int, int] = (1, 1), images: Sequence[str] = ()
    ) -> None:
        self.text = text
        self.node = node
        self.branch = branch
        self.shown = ", ".join(Path(image).name for image in images)

    def draw(self, page: Page) -> list[Strip]:
        look = page.look
        bar = ("▌", look["user-bar"])
        images = page.plain(f"image: {harmless(self.shown)}", look["muted"], bar) if self.shown else []
        text = page.plain(harmless(self.text), look["user"], bar)
        return [*images, *text, *branch_line(self.branch, page), page.blank]

    def estimate(self, page: Page) -> int:
        return 1 + estimate(self.text, page) + (self.branch[1] > 1) + bool(self.shown)

    def tools(self, *, last: bool) -> list[Tool]:
        del last
        return [COPY, EDIT, AGAIN, DELETE]


@dataclass
class Note:
    """A line under a reply that says why it ended."""

    text: str
    failure: bool = False


class ReplyTurn(Turn):
    """The model's turn: thoughts and text in the order they came.

    `take` folds an event in; each is seen once, in order.

    Args:
        clock: seconds, for the running clock of a thought.
        mode: whether thoughts are open.
        budget: tokens of thought allowed.
        byline: the model's name, where it is another one than before.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        node: int | None = None,
        branch: tuple[int, int] = (1, 1),
        mode: ThoughtMode = "auto",
        budget: int | None = None,
        byline: str = "",
    ) -> None:
        self.node = node
        self.running = True
        self._clock, self._mode, self._budget = clock, mode, budget
        self.branch, self._byline = branch, byline
        self._repeats = 0  # how often the answer has said the same, where the engine suspects a loop
        self._dropped = 0  # messages that the model no longer saw
        self._parts: list[Thought | GrowingProse | str | Note] = []
        self._memo: dict[str, tuple[Page, list[Strip]]] = {}

    @classmethod
    def of(cls, node: Node, clock: Callable[[], float], mode: ThoughtMode, byline: str = "") -> ReplyTurn:
        """A reply from the store."""
        turn = cls(clock, node=node.id, branch=(node.branch, node.branches), mode=mode, byline=byline)
        turn.running = False
        message, said = node.message, 0
        for thought in thoughts_of(message):
            turn._say(message.content[said : thought.at])
            said = max(said, thought.at)
            facts = [
                thought_title(thought.seconds) if thought.seconds else "Thought",
                counted(thought.tokens, "token") if thought.tokens else "",
                THOUGHT_NOTES[thought.end],
            ]
            turn._parts.append(Thought.finished(thought.text, " - ".join(filter(None, facts)), mode))
        turn._say(message.content[said:])
        if node.error:
            turn._parts.append(Note(node.error, failure=True))
        elif note := REPLY_NOTES[message.stop_reason or "stop"]:
            turn._parts.append(Note(note))
        elif not message.content:
            turn._parts.append(Note(NO_ANSWER))
        return turn

    def _say(self, text: str) -> None:
        """A complete part of the answer."""
        if text.strip():
            self._parts.append(harmless(text.rstrip().lstrip("\n")))

    def resume(self) -> None:
        """The reply goes on where it ended."""
        self.running = True
        self._parts = [part for part in self._parts if not isinstance(part, Note)]
        if self._parts and isinstance(text := self._parts[-1], str):
            self._parts.pop()
            prose = GrowingProse(self._codes())
            prose.feed(text)
            self._parts.append(prose)

    @property
    def thoughts(self) -> list[Thought]:
        return [part for part in self._parts if isinstance(part, Thought)]

    @property
    def live_thought(self) -> Thought | None:
        """The thought under way."""
        last = self._parts[-1] if self._parts else None
        return last if self.running and isinstance(last, Thought) and last.live else None

    @property
    def answer(self) -> list[str]:
        """The parts of the answer so far, made harmless."""
        texts = (part.text if isinstance(part, GrowingProse) else part for part in self._parts)
        return [text for text in texts if isinstance(text, str)]

    @property
    def notes(self) -> list[str]:
        """What is said about its end."""
        return [part.text for part in self._parts if isinstance(part, Note)]

    @property
    def code(self) -> list[CodeBlock]:
        """Its blocks of code, as they are numbered on the screen."""
        return [block for text in self.answer for block in code_blocks(text)]

    def tools(self, *, last: bool) -> list[Tool]:
        fenced = any("```" in text or "~~~" in text for text in self.answer)  # cheaper than parsing it
        done = [AGAIN, *([MORE] if last else []), EDIT, DELETE] if not self.running else []
        return [COPY, *([SAVE] if fenced else []), *done]

    def take(self, event: AnyEvent) -> None:
        """Fold an event in."""
        last = self._parts[-1] if self._parts else None
        match event:
            case ThinkStart():
                self._settle()
                self._parts.append(Thought(self._clock, self._mode, self._budget))
            case ThinkDelta() if isinstance(last, Thought):
                last.feed(event.text, event.tokens)
            case ThinkEnd() if isinstance(last, Thought):
                if last.text.strip():
                    last.finish(event.seconds, event.tokens, THOUGHT_NOTES[event.why])
                else:  # `--think off` may open the reply with an empty one
                    self._parts.pop()
            case LoopSuspected() if isinstance(last, Thought):
                last.repeats = event.count
            case LoopSuspected():
                self._repeats = event.count
            case TurnsDropped():
                self._dropped = event.turns
            case TextDelta() if isinstance(last, GrowingProse):
                last.feed(event.text)
            case TextDelta() if event.text.strip():
                prose = GrowingProse(self._codes())
                prose.feed(event.text.lstrip("\n"))
                self._parts.append(prose)
            case Done():
                nothing = event.reason == "stop" and not any(text.strip() for text in self.answer)
                self._end(Note(NO_ANSWER if nothing else REPLY_NOTES[event.reason]))
            case Failed():
                self._end(Note(failure_text(event), failure=True))
            case _:
                pass

    def draw(self, page: Page) -> list[Strip]:
        lines: list[Strip] = []
        codes = 1
        for part in self._parts:
            match part:
                case Thought():
                    drawn = part.draw(page, self.key)
                case GrowingProse():
                    drawn = part.draw(page)
                case str():
                    drawn = self._whole(part, codes, page)
                    codes += len(code_blocks(part))
                case Note():
                    drawn = note_lines(part.text, page, failure=part.failure)
            lines += [page.blank, *drawn] if lines and drawn else drawn
        if self.running and not lines:
            lines = page.plain("…", page.look["muted"])
        if self._repeats and self.running:
            lines += page.plain(f"repeating itself (x{self._repeats}), Esc stops it", page.look["warning"])
        if self._dropped:
            text = f"The context is full: the model no longer sees the first {counted(self._dropped, 'message')}."
            lines += page.plain(text, page.look["warning"])
        if self._byline:
            lines = [*page.plain(self._byline, page.look["muted"]), *lines]
        return [*lines, *branch_line(self.branch, page), page.blank]

    def estimate(self, page: Page) -> int:
        thoughts = sum(1 + thought.estimate(page) for thought in self.thoughts)
        texts = sum(1 + estimate(text, page) for text in [*self.answer, *self.notes])
        return thoughts + texts + bool(self._byline) + (self.branch[1] > 1)

    def _whole(self, text: str, codes: int, page: Page) -> list[Strip]:
        """A complete part of the answer; drawn once while the reply goes on."""
        if (memo := self._memo.get(text)) is not None and memo[0] == page:
            return memo[1]
        drawn = [page.frame(line) for line in render(parse(text), page.width, page.look, first_code=codes)]
        if self.running:
            self._memo[text] = page, drawn
        return drawn

    def _codes(self) -> int:
        """The number of the next block of code."""
        return 1 + sum(len(code_blocks(text)) for text in self.answer)

    def _settle(self) -> None:
        """What has been growing is complete: from now on it is drawn as a whole."""
        if self._parts and isinstance(last := self._parts[-1], GrowingProse):
            self._parts[-1] = last.text.rstrip()

    def _end(self, note: Note) -> None:
        self._settle()
        if (thought := self.live_thought) is not None:
            thought.finish(note=THOUGHT_NOTES["interrupted"])
        self.running = False
        self._memo.clear()
        if note.text:
            self._parts.append(note)


def note_lines(text: str, page: Page, *, failure: bool) -> list[Strip]:
    """A remark, or a failure behind a bar."""
    look = page.look
    if failure:
        return page.plain(harmless(text), look["failure"], ("▌", look["failure-bar"]))
    return page.plain(harmless(text), look["muted"])


def branch_line(branch: tuple[int, int], page: Page) -> list[Strip]:
    """`< 2/3 >` where a message has others beside it; a click on its ends goes there."""
    place, count = branch
    if count < 2:
        return []
    muted = page.look["muted"]
    ends = [Segment(text, muted + Style.from_meta({"branch": step})) for text, step in ((" < ", -1), (" > ", 1))]
    return [page.frame(Strip([ends[0], Segment(f"{place}/{count}", muted), ends[1]]))]


def failure_text(event: Failed) -> str:
    """A failure as a person reads it: what happened, the last of the engine's log, what to do."""
    lines = [event.message]
    if event.crashed:
        lines += [f"  {line}" for line in event.log[-LOG_LINES:]]
    if event.hint:
        lines.append(event.hint)
    return "\n".join(lines)
