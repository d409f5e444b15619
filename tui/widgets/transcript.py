"""The conversation, scrolled by the person or following its end."""

from __future__ import annotations

from textual import events, on
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Static

from tui.widgets.thought import ThoughtTitle
from tui.widgets.turns import Welcome


class Moved(Message):
    """The view or what it shows has moved: the end may have come into view or left it."""


class Turns(Vertical):
    """The turns, at least as high as the view: a scroll anchored to the end of less would go above the first line."""

    def on_resize(self) -> None:
        """The conversation has become longer or shorter."""
        self.post_message(Moved())


class Transcript(VerticalScroll, can_focus=False):
    """Follows the end until the person scrolls away, and again once they have come back.

    Args:
        model: the model's name, shown while nothing has been said.
    """

    def __init__(self, model: str) -> None:
        super().__init__()
        self._model = model

    def compose(self) -> ComposeResult:
        with Turns():
            yield Welcome(self._model)

    def on_mount(self) -> None:
        """Follow the end from the start."""
        self.anchor()
        self.watch(self, "scroll_y", self._scrolled, init=False)

    def on_resize(self) -> None:
        """The view has another size."""
        self.post_message(Moved())

    @property
    def at_end(self) -> bool:
        """Whether the last line of text can be seen; the line under it is blank."""
        return self.scroll_y >= self.max_scroll_y - 1

    async def add(self, *turns: Widget) -> None:
        """Put turns at the end."""
        inner = self.query_one(Turns)
        await inner.query(Welcome).remove()
        await inner.mount(*turns)

    def stay(self) -> None:
        """Hold the present place although the content is about to grow or shrink; follow on where it is the end."""
        self.release_anchor()
        self.call_after_refresh(self._follow_on)

    def _follow_on(self) -> None:
        if self.is_vertical_scroll_end:
            self.to_end()

    def to_end(self) -> None:
        """Show the end and follow it."""
        self.anchor()

    @on(ThoughtTitle.Toggled)
    async def _toggle_thought(self, event: ThoughtTitle.Toggled) -> None:
        event.stop()
        self.stay()
        await event.pane.toggle()

    def _scrolled(self) -> None:
        self.post_message(Moved())


class EndMarker(Static):
    """Leads back to the end of the transcript."""

    class Pressed(Message):
        """The person wants to go to the end."""

    def __init__(self) -> None:
        super().__init__("↓ more below (Ctrl+End)", markup=False)

    def on_click(self, event: events.Click) -> None:
        """Go there."""
        event.stop()
        self.post_message(self.Pressed())
