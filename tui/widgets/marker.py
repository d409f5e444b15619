"""The way back to the end of the transcript."""

from __future__ import annotations

from textual import events
from textual.containers import Container
from textual.message import Message
from textual.widgets import Static


class View(Container):
    """Where the transcript is, with the marker above it. Nothing of its own is seen."""

    BLANK = True


class EndMarker(Static):
    """Leads back to the end of the transcript."""

    ALLOW_SELECT = False

    class Pressed(Message):
        """The person wants to go to the end."""

    def __init__(self) -> None:
        super().__init__("↓ more below (Ctrl+End)", markup=False)

    def on_click(self, event: events.Click) -> None:
        """Go there."""
        event.stop()
        self.post_message(self.Pressed())
