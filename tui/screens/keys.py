"""Every key, on one screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

WRITING = [
    ("Enter", "Send the message, or queue it while a reply runs"),
    ("Ctrl+J", "Start a new line; Shift+Enter and Alt+Enter too where the terminal tells them apart"),
    ("Tab, Shift+Tab", "Go to the next thought, to the previous one, and back"),
    ("Enter, Space", "On a thought: open or close it; a click does the same"),
    ("Ctrl+C", "Copy what is selected with the mouse or with Shift; leave when nothing is"),
]


def key_name(keys: str) -> str:
    """`ctrl+end` as people write it: `Ctrl+End`."""
    names = {"pageup": "PageUp", "pagedown": "PageDown", "escape": "Esc"}
    first = keys.split(",")[0]
    return "+".join(names.get(part, part.capitalize()) for part in first.split("+"))


def key_rows(bindings: Sequence[BindingType]) -> list[tuple[str, str]]:
    """What each binding is called and does."""
    return [
        (key_name(binding.key), binding.tooltip or binding.description)
        for binding in bindings
        if isinstance(binding, Binding)
    ]


class KeysScreen(ModalScreen[None]):
    """The keys; any of Esc, F1, Enter and Q goes back."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f1,enter,q", "dismiss", "Back")]

    def __init__(self, bindings: Sequence[BindingType]) -> None:
        super().__init__()
        self._rows = WRITING + key_rows(bindings)

    def compose(self) -> ComposeResult:
        width = max(len(key) for key, _ in self._rows) + 2
        with VerticalScroll(id="keys") as keys:
            keys.border_title = "Keys"
            keys.border_subtitle = "Esc goes back"
            for key, what in self._rows:
                name = Static(Content.styled(key, "bold"), markup=False)
                name.styles.width = width
                yield Horizontal(name, Static(Content(what), markup=False))
