"""One of a few values, chosen with the arrow keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widgets import Static

from ftllm.values import dataclass


class Choice(Static, can_focus=True):
    """`‹ auto ›`: Left and Right, Space or a click go through the values; a letter goes to the next one with it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "step(-1)", "Previous", show=False),
        Binding("right,space", "step(1)", "Next", show=False),
    ]

    value: reactive[str] = reactive("")

    @dataclass
    class Changed(Message):
        """Another value is chosen."""

        choice: Choice
        value: str

        @property
        def control(self) -> Choice:
            """Whose it is."""
            return self.choice

    def __init__(self, values: Sequence[str], value: str, *, id: str | None = None) -> None:
        super().__init__(id=id, markup=False)
        self._values = list(values)
        self.set_reactive(Choice.value, value)

    def on_mount(self) -> None:
        """Show the value there is."""
        self._draw()

    def watch_value(self) -> None:
        """Show another one."""
        self._draw()
        self.post_message(self.Changed(self, self.value))

    def action_step(self, step: int) -> None:
        """The value before or after."""
        here = self._values.index(self.value) if self.value in self._values else -min(step, 0)
        self.value = self._values[(here + step) % len(self._values)]

    def on_click(self) -> None:
        """The next value."""
        self.action_step(1)

    def on_key(self, event: events.Key) -> None:
        """The next value that begins with the letter typed."""
        if not event.character or not event.character.isalnum():
            return
        here = self._values.index(self.value) if self.value in self._values else -1
        following = [*self._values[here + 1 :], *self._values[: here + 1]]
        found = next((value for value in following if value.lower().startswith(event.character.lower())), None)
        if found is not None:
            event.stop()
            self.value = found

    def _draw(self) -> None:
        self.update(Content(f"‹ {self.value} ›"))
