"""Where the person writes."""

from __future__ import annotations

import unicodedata

from textual import events
from textual.message import Message
from textual.widgets import TextArea

from ftllm.values import dataclass
from tui.commands import MESSAGE_PREFIX, is_command
from tui.steady import Steadily
from tui.widgets.completions import Completion, Completions
from tui.widgets.typed import edited


class Composer(Steadily, TextArea):
    """Enter sends; Ctrl+J (or Shift+Enter, Alt+Enter where the terminal tells them apart) starts a new line."""

    NEW_LINE_KEYS = ("ctrl+j", "shift+enter", "alt+enter")

    @dataclass
    class Sent(Message):
        """The person has finished a message."""

        text: str

    @dataclass
    class Commanded(Message):
        """The person has finished a line that is a command."""

        text: str

    menu: Completions | None = None  # what the line may become, while it is a command

    def __init__(self) -> None:
        super().__init__(
            placeholder="Write a message: Enter sends, Ctrl+J starts a new line",
            highlight_cursor_line=False,
            show_line_numbers=False,
        )
        self._draft: str | None = None  # what was being written when a message was taken to be edited

    @property
    def editing(self) -> bool:
        """Whether a message said before is being edited."""
        return self._draft is not None

    @property
    def draft(self) -> str:
        """What is being written, or was before a message was taken to be edited."""
        return self.text if self._draft is None else self._draft

    def begin_edit(self, text: str) -> None:
        """Edit a message; what was being written waits."""
        if self._draft is None:
            self._draft = self.text
        self.border_title = "Editing: Enter sends, Esc leaves it as it was"
        self.load_text(text)
        self.move_cursor(self.document.end)
        self.focus()

    def end_edit(self) -> None:
        """Go on with what was being written before."""
        if self._draft is not None:
            self.load_text(self._draft)
            self.move_cursor(self.document.end)
        self._draft = None
        self.border_title = None

    async def _on_key(self, event: events.Key) -> None:
        if self.menu is not None and self._choose(self.menu, event.key):
            event.stop()
            event.prevent_default()
        elif event.key == "enter":
            event.stop()
            event.prevent_default()
            if text := self.text.strip():
                if not self.editing:
                    self.clear()
                self.post_message(self._finished(text))
        elif event.key in self.NEW_LINE_KEYS:
            event.stop()
            event.prevent_default()
            self.insert("\n")
        elif event.character and unicodedata.category(event.character) == "Cf":
            event.stop()
            self.insert(event.character)  # what joins emoji, or parts a word: Textual takes it for no character
        elif await edited(self, event.key):
            event.stop()
            event.prevent_default()

    def _choose(self, menu: Completions, key: str) -> bool:
        """Act on the list of completions; whether the key is one of its own."""
        if menu.chosen is not None and key in ("tab", "enter"):
            menu.look(self.text)  # what was typed just before has not been looked at yet
        chosen = menu.chosen
        if chosen is None:
            return False
        if key in ("up", "down"):
            menu.move(1 if key == "down" else -1)
        elif key == "escape":
            menu.hide()
        elif key == "enter":
            self.take(chosen)
        elif key == "tab":
            self._complete(chosen)
        else:
            return False
        return True

    def take(self, chosen: Completion) -> None:
        """Do what a completion says, or let the rest of it be typed."""
        if chosen.whole:
            self.clear()
            self.post_message(self.Commanded(chosen.line))
        else:
            self._complete(chosen)

    def _complete(self, chosen: Completion) -> None:
        self.load_text(chosen.line if chosen.whole else f"{chosen.line} ")
        self.move_cursor(self.document.end)

    def _finished(self, text: str) -> Message:
        """What a line is: a command, or a message; a message that begins with a slash is written with two."""
        if self.editing:
            return self.Sent(text)
        if is_command(text):
            return self.Commanded(text)
        return self.Sent(text.removeprefix("/") if text.startswith(MESSAGE_PREFIX) else text)

    def action_delete_to_start_of_line(self) -> None:
        """Of the line as typed, however it is folded here."""
        self.delete((self.cursor_location[0], 0), self.cursor_location)

    def give_back(self, text: str) -> None:
        """Put a message that was not sent in front of what has been written since."""
        written = self.text
        self.load_text(f"{text}\n\n{written}" if written.strip() else text)
        self.move_cursor(self.document.end)
