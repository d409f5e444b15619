"""Where the person writes."""

from __future__ import annotations

from dataclasses import dataclass

from textual import events
from textual.message import Message
from textual.widgets import TextArea


class Composer(TextArea):
    """Enter sends; Ctrl+J (or Shift+Enter, Alt+Enter where the terminal tells them apart) starts a new line."""

    NEW_LINE_KEYS = ("ctrl+j", "shift+enter", "alt+enter")

    @dataclass
    class Sent(Message):
        """The person has finished a message."""

        text: str

    def __init__(self) -> None:
        super().__init__(
            placeholder="Write a message: Enter sends, Ctrl+J starts a new line",
            highlight_cursor_line=False,
            show_line_numbers=False,
        )

    async def _on_key(self, event: events.Key) -> None:
        if event.key == "enter":
            event.stop()
            event.prevent_default()
            if text := self.text.strip():
                self.clear()
                self.post_message(self.Sent(text))
        elif event.key in self.NEW_LINE_KEYS:
            event.stop()
            event.prevent_default()
            self.insert("\n")

    def give_back(self, text: str) -> None:
        """Put a message that was not sent in front of what has been written since."""
        written = self.text
        self.load_text(f"{text}\n\n{written}" if written.strip() else text)
        self.move_cursor(self.document.end)
