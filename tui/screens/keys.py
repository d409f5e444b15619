"""Every key and command, on one screen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from tui.commands import Command
from tui.screens.dialog import ESCAPE, Dialog

WRITING = [
    ("Enter", "Send the message, or queue it while a reply runs"),
    ("Ctrl+J", "Start a new line; Shift+Enter and Alt+Enter too where the terminal tells them apart"),
    ("Tab, Shift+Tab", "Go to the messages, and back"),
    ("/", "A command: Up and Down choose, Tab completes, Enter does it; // sends a message with a slash"),
    ("Ctrl+C", "Copy what is selected with the mouse or with Shift; leave when nothing is"),
    ("Ctrl+P", "Find what can be done by typing a part of it"),
]


class KeysScreen(Dialog[None]):
    """The keys; any of Esc, F1, Enter and Q goes back."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f1,enter,q", "dismiss", "Back")]
    DEFAULT_CSS = """
    KeysScreen > .frame { width: 96; }
    KeysScreen .title { color: $text-accent; text-style: bold; margin-top: 1; }
    KeysScreen .first { margin-top: 0; }
    KeysScreen Horizontal { height: auto; }
    KeysScreen Horizontal > Static:last-child { width: 1fr; }
    """

    def __init__(self, commands: Sequence[Command]) -> None:
        super().__init__()
        places = dict.fromkeys(command.place for command in commands if command.place)
        self._parts: list[tuple[str, list[tuple[str, str]]]] = [
            ("Writing", WRITING),
            ("Keys", list(_by_key(commands, ""))),
            *((f"Keys {place}", list(_by_key(commands, place))) for place in places),
            ("Commands", [(command.words, command.help) for command in commands if command.name]),
        ]

    def compose(self) -> ComposeResult:
        with self.framed(VerticalScroll(), "Keys and commands", ("", "Up, Down, PageDown: more"), ESCAPE):
            width = max(len(name) for _, rows in self._parts for name, _ in rows) + 2
            for number, (title, rows) in enumerate(self._parts):
                yield Static(title, classes="title" if number else "title first", markup=False)
                for name, what in rows:
                    label = Static(Content.styled(name, "bold"), markup=False)
                    label.styles.width = width
                    yield Horizontal(label, Static(Content(what), markup=False))


def _by_key(commands: Sequence[Command], place: str) -> Iterable[tuple[str, str]]:
    return ((command.keys, command.help) for command in commands if command.keys and command.place == place)
