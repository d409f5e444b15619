"""What a key does to text, done in its turn."""

from __future__ import annotations

from textual import events
from textual.widget import Widget
from textual.widgets import Input

from tui.steady import Steadily


async def edited(widget: Widget, key: str) -> bool:
    """Do at once what a key does in a widget; whether it does anything.

    Textual looks for that when the key has gone through all that surrounds the widget; what was typed right after it
    would be written before it.
    """
    for binding in widget._bindings.key_to_bindings.get(key, ()):
        if not binding.priority and await widget.app.run_action(binding.action, widget):
            return True
    return False


class Field(Steadily, Input):
    """A line to type in."""

    async def _on_key(self, event: events.Key) -> None:
        if await edited(self, event.key):
            event.stop()
            event.prevent_default()
