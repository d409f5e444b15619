"""A thought: open with a running clock while it lasts, one quiet line afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from ftllm.chat.session import thought_title
from tui.text import counted, harmless, tail
from tui.widgets.prose import Prose

TAIL_LINES = 12
RECENT_CHARACTERS = 8000
"""Enough for `TAIL_LINES` of any terminal, so that a paint costs the same however long the thought has become."""


class ThoughtTitle(Static, can_focus=True):
    """The line that opens and closes the thought, by click, Enter or Space."""

    FOCUS_ON_CLICK = False  # the composer keeps what is typed next
    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter,space", "open_or_close", "Open or close", show=False)]

    @dataclass
    class Toggled(Message):
        """The person wants the thought opened or closed; whoever scrolls it does so, holding its place."""

        pane: ThoughtPane

    def __init__(self, pane: ThoughtPane) -> None:
        super().__init__(pane.title_text, markup=False)
        self._pane = pane

    def action_open_or_close(self) -> None:
        """Ask for it."""
        self.post_message(self.Toggled(self._pane))

    def on_click(self) -> None:
        """A click asks for it too."""
        self.action_open_or_close()


class ThoughtTail(Static):
    """The last lines of a thought that is still growing, as plain text."""

    def __init__(self) -> None:
        super().__init__(markup=False)
        self._text = ""
        self._width = 0

    def show(self, text: str) -> None:
        """Draw the end of `text`; once it is known how wide, when that is not known yet."""
        self._text = text
        if width := self.content_size.width:
            self._width = width
            self.update(Content(tail(harmless(text), width, TAIL_LINES)))

    def on_resize(self) -> None:
        """Fold again for another width."""
        if self._width != self.content_size.width:
            self.show(self._text)


class ThoughtPane(Vertical):
    """One thought of a reply.

    While it lasts it is open on the plain tail of its text, unless `start_open` says otherwise. `finish` closes it,
    unless the person has opened or closed it. Opened afterwards it holds the whole thought as Markdown, which is only
    made then.

    Args:
        clock: seconds, only differences are used.
        start_open: whether the live tail is shown at once.
    """

    def __init__(self, clock: Callable[[], float], *, start_open: bool = True) -> None:
        super().__init__()
        self._clock = clock
        self._began = clock()
        self._text: list[str] = []
        self._ended: str | None = None
        self._open = start_open
        self._touched = False

    def compose(self) -> ComposeResult:
        yield ThoughtTitle(self)
        yield ThoughtTail()

    def on_mount(self) -> None:
        """Show the tail from the beginning where it is wanted."""
        self._arrange()

    @property
    def is_open(self) -> bool:
        """Whether the thought can be read."""
        return self._open

    @property
    def is_live(self) -> bool:
        """Whether the model is still at it."""
        return self._ended is None

    @property
    def text(self) -> str:
        """The thought so far, as the model wrote it."""
        return "".join(self._text)

    @property
    def title_text(self) -> str:
        """`▾ Thinking for 3.1 seconds`, then `▸ Thought for 7.40 seconds - 312 tokens`."""
        mark = "▾" if self._open else "▸"
        if self._ended is not None:
            return f"{mark} {self._ended}"
        return f"{mark} Thinking for {max(self._clock() - self._began, 0.0):.1f} seconds"

    def feed(self, text: str) -> None:
        """Take more of the thought; nothing is drawn yet."""
        self._text.append(text)

    def paint(self) -> None:
        """Draw the clock and, when open, the tail."""
        self._draw_title()
        if self.is_live and self._open:
            self.query_one(ThoughtTail).show("".join(self._recent()))

    async def finish(self, seconds: float, tokens: int | None = None, note: str = "") -> None:
        """The thought has ended.

        Args:
            seconds: how long it took.
            tokens: how long it is, where known.
            note: why it ended, when not by itself.
        """
        facts = [thought_title(seconds)]
        if tokens is not None:
            facts.append(counted(tokens, "token"))
        if note:
            facts.append(note)
        self._ended = " - ".join(facts)
        if not self._touched:
            self._open = False
        await self._arrange_finished()

    async def cut_short(self) -> None:
        """The reply has ended without a word about the thought: the engine is gone."""
        await self.finish(max(self._clock() - self._began, 0.0), note="interrupted")

    async def toggle(self) -> None:
        """Open or close at the person's wish; from now on it stays as they left it."""
        await self.set_open(not self._open)

    async def set_open(self, is_open: bool) -> None:
        """Open or close at the person's wish."""
        self._touched = True
        self._open = is_open
        if self.is_live:
            self._arrange()
            self.paint()
        else:
            await self._arrange_finished()

    def _recent(self) -> list[str]:
        """The last pieces of the thought, more than the tail can show."""
        first, characters = len(self._text), 0
        while first and characters < RECENT_CHARACTERS:
            first -= 1
            characters += len(self._text[first])
        return self._text[first:]

    def _arrange(self) -> None:
        self.query_one(ThoughtTail).display = self.is_live and self._open
        self._draw_title()

    async def _arrange_finished(self) -> None:
        self._arrange()
        whole = self.query(Prose)
        if self._open and not whole:
            await self.mount(Prose(self.text.strip()))
        for prose in whole:
            prose.display = self._open

    def _draw_title(self) -> None:
        self.query_one(ThoughtTitle).update(Content(self.title_text))
