"""The line at the bottom: keys that do something now, each a button too."""

from __future__ import annotations

from textual import events
from textual.content import Content
from textual.screen import Screen
from textual.style import Style
from textual.widgets import Static

HELP = "f1"
"""Always there, on the right."""
LAST = ("ctrl+q", "f2", "f3")
"""What gives way first."""


class KeyBar(Static):
    """As Textual's `Footer`, but one widget however many keys: it is drawn anew with every change of what can be done.

    Where they do not all fit, the last ones are left out; the help lists them all.
    """

    def __init__(self) -> None:
        super().__init__(markup=False)
        self.keys: list[tuple[str, str, str]] = []  # key, as it is written, what it does

    def on_mount(self) -> None:
        """Follow what can be done."""
        self.screen.bindings_updated_signal.subscribe(self, self._follow)

    def on_resize(self) -> None:
        """Fit the new width."""
        self._draw()

    def _follow(self, screen: Screen[object]) -> None:
        if screen is not self.screen or not self.app.app_focus:
            return
        shown: dict[str, tuple[str, str, str]] = {}
        for _, binding, enabled, _ in screen.active_bindings.values():
            if binding.show and enabled and binding.action not in shown:
                shown[binding.action] = binding.key, self.app.get_key_display(binding), binding.description
        if list(shown.values()) != self.keys:
            self.keys = list(shown.values())
            self._draw()

    def _draw(self) -> None:
        width = self.content_size.width
        help_key = [key for key in self.keys if key[0] == HELP]
        others = sorted((key for key in self.keys if key[0] != HELP), key=_rank)
        right = Content("").join(map(self._button, help_key))
        left = Content("")
        for button in map(self._button, others):
            if left.cell_length + button.cell_length + right.cell_length > width:
                break
            left += button
        self.update(left + Content(" " * (width - left.cell_length - right.cell_length)) + right)

    def _button(self, key: tuple[str, str, str]) -> Content:
        name, display, what = key
        text = Content.styled(f" {display}", "bold $footer-key-foreground") + Content(f" {what} ")
        return text.stylize(Style.from_meta({"press": name}))

    def on_click(self, event: events.Click) -> None:
        """As if the key had been pressed."""
        if key := event.style.meta.get("press"):
            event.stop()
            self.app.simulate_key(key)


def _rank(key: tuple[str, str, str]) -> int:
    return LAST.index(key[0]) + 1 if key[0] in LAST else -(key[0] == "escape")
