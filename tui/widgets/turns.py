"""The turns of a conversation as they stand in the transcript."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from ftllm.chat.events import AnyEvent, Done, Failed, TextDelta, ThinkDelta, ThinkEnd, ThinkStart
from tui.text import harmless
from tui.widgets.prose import Prose
from tui.widgets.thought import ThoughtPane

LOG_LINES = 5

THOUGHT_NOTES = {
    "closed": "",
    "unclosed": "never closed",
    "cut": "cut off",
    "stopped": "stopped",
    "budget": "budget used up",
    "answer_now": "asked to answer",
    "loop": "went in circles",
}

REPLY_NOTES = {
    "stop": "",
    "length": "Cut off: the reply has reached its token limit.",
    "context": "Cut off: the context is full.",
    "stopped": "Stopped.",
    "loop": "Stopped: the answer went in circles.",
}


class UserTurn(Static):
    """What the person said, as typed."""

    def __init__(self, text: str) -> None:
        super().__init__(Content(harmless(text)), markup=False)


class Notice(Static):
    """Something the program says: a remark, or a failure with what to do about it."""

    def __init__(self, text: str, kind: Literal["remark", "failure"] = "remark") -> None:
        super().__init__(Content(harmless(text)), markup=False, classes=kind)


class Welcome(Static):
    """What an empty transcript shows."""

    def __init__(self, model: str) -> None:
        name = Content(harmless(model))
        lines = Content.assemble(("ftllm", "bold"), "\n", name, "\n\nAsk it something.")
        super().__init__(lines, markup=False)


class ReplyTurn(Vertical):
    """The model's turn: thoughts and text in the order they came.

    `take` folds an event in, `paint` draws what came since. Each event is seen once, in order.

    Args:
        clock: seconds, for the running clock of a thought.
        show_thoughts: whether a thought is open while it lasts.
    """

    def __init__(self, clock: Callable[[], float], *, show_thoughts: bool = True) -> None:
        super().__init__()
        self._clock = clock
        self._show_thoughts = show_thoughts
        self._current: ThoughtPane | Prose | None = None

    def compose(self) -> ComposeResult:
        yield Static("…", classes="waiting", markup=False)

    @property
    def live_thought(self) -> ThoughtPane | None:
        """The thought under way."""
        return self._current if isinstance(self._current, ThoughtPane) else None

    async def take(self, event: AnyEvent) -> None:
        """Fold an event in; text is only collected."""
        match event:
            case ThinkStart():
                await self._begin(ThoughtPane(self._clock, start_open=self._show_thoughts))
            case ThinkDelta() if self.live_thought is not None:
                self.live_thought.feed(event.text)
            case ThinkEnd() if self.live_thought is not None:
                thought, self._current = self.live_thought, None
                if thought.text.strip():
                    await thought.finish(event.seconds, event.tokens, THOUGHT_NOTES[event.why])
                else:  # `--think off` may open the reply with an empty one
                    await thought.remove()
            case TextDelta() if isinstance(self._current, Prose):
                self._current.feed(event.text)
            case TextDelta() if event.text.strip():
                prose = Prose()
                await self._begin(prose)
                prose.feed(event.text.lstrip("\n"))
            case Done():
                await self._finish()
                if note := REPLY_NOTES[event.reason]:
                    await self.mount(Notice(note))
            case Failed():
                await self._finish()
                await self.mount(Notice(failure_text(event), "failure"))
            case _:
                pass

    async def paint(self) -> None:
        """Draw what came since the last time."""
        if isinstance(self._current, ThoughtPane):
            self._current.paint()
        elif self._current is not None:
            await self._current.paint()

    async def _begin(self, part: ThoughtPane | Prose) -> None:
        if isinstance(self._current, Prose):
            await self._current.finish()
        self._current = part
        await self.query(".waiting").remove()
        await self.mount(part)

    async def _finish(self) -> None:
        await self.query(".waiting").remove()
        part, self._current = self._current, None
        if isinstance(part, Prose):
            await part.finish()
        elif part is not None:
            await part.cut_short()


def failure_text(event: Failed) -> str:
    """A failure as a person reads it: what happened, the last of the engine's log, what to do."""
    lines = [event.message]
    if event.crashed:
        lines += [f"  {line}" for line in event.log[-LOG_LINES:]]
    if event.hint:
        lines.append(event.hint)
    return "\n".join(lines)
