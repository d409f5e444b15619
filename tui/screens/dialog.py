"""What lies over the conversation: one frame for every dialog."""

from __future__ import annotations

from typing import Generic, TypeVar

from textual.content import Content
from textual.screen import ModalScreen
from textual.style import Style
from textual.widget import Widget

T = TypeVar("T")
W = TypeVar("W", bound=Widget)
ESCAPE = ("escape", "Esc: back")


class Dialog(ModalScreen[T], Generic[T]):
    """A screen with one box in its middle, which `framed` makes of a container."""

    DEFAULT_CSS = """
    Dialog { align: center middle; }
    Dialog > .frame {
        width: 84;
        max-width: 96%;
        height: auto;
        max-height: 94%;
        padding: 0 1;
        border: round $primary;
        background: $background;
        scrollbar-size-vertical: 1;
    }
    """

    def framed(self, box: W, title: str, *keys: tuple[str, str]) -> W:
        """The box under its title, and above what its most important keys do.

        Args:
            keys: each as Textual names it, and what is said of it; a click there presses it, where it has a name.
        """
        box.add_class("frame")
        box.border_title = Content(title)
        buttons = [
            Content(text).stylize(Style.from_meta({"@click": f"screen.press('{key}')"}) if key else "")
            for key, text in keys
        ]
        box.border_subtitle = Content("   ").join(buttons)
        return box

    def action_press(self, key: str) -> None:
        """As if the key had been pressed. In the application's name, for a key that the box sent would end there."""
        self.app.call_later(self.app.simulate_key, key)
