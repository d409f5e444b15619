"""Asks where something is to be written, and writes it there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, Static

from ftllm.errors import UserError
from ftllm.values import dataclass
from tui.screens.dialog import ESCAPE, Dialog
from tui.widgets.typed import Field


@dataclass(frozen=True)
class Writing:
    """One thing that can be written.

    Attributes:
        what: it, in a few words.
        name: a file name for it.
        write: does so; raises `UserError` where it cannot.
    """

    what: str
    name: str
    write: Callable[[Path], None]


class PathScreen(Dialog[Path | None]):
    """Writes one of some things; nothing that is there is replaced without asking.

    Args:
        title: of the dialog.
        things: what can be written.
        first: which of them it is until the person chooses another.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "Back"),
        Binding("up", "choose(-1)", "Another", priority=True),
        Binding("down", "choose(1)", "Another", priority=True),
    ]

    DEFAULT_CSS = """
    PathScreen > .frame { width: 76; padding: 0 2; }
    PathScreen Input { margin: 1 0; }
    PathScreen #complaint { color: $text-warning; margin: 0 0 1 0; }
    """

    def __init__(self, title: str, things: Sequence[Writing], first: int = 0) -> None:
        super().__init__()
        self._title, self._things, self._chosen = title, things, first
        self._confirmed: Path | None = None  # the file that Enter would replace

    def compose(self) -> ComposeResult:
        with self.framed(Vertical(), self._title, ("enter", "Enter: write it"), ESCAPE):
            yield Static(id="things", markup=False)
            yield Field(self._things[self._chosen].name)
            yield Static(id="complaint", markup=False)

    def on_mount(self) -> None:
        """Begin with the suggestion."""
        self.query_one("#complaint").display = False
        self._show_things()

    def action_choose(self, step: int) -> None:
        """Take another of the things, and its name where the person has given none."""
        given = self.query_one(Input)
        as_suggested = given.value == self._things[self._chosen].name
        self._chosen = (self._chosen + step) % len(self._things)
        if as_suggested:
            given.value = self._things[self._chosen].name
        self._show_things()

    def _show_things(self) -> None:
        many = len(self._things) > 1
        lines = [
            Content.styled(f"{'▸ ' if many else ''}{thing.what}", "bold")
            if number == self._chosen
            else Content.styled(f"  {thing.what}", "$text-muted")
            for number, thing in enumerate(self._things)
        ]
        self.query_one("#things", Static).update(Content("\n").join(lines))

    @on(Input.Changed)
    def _forget_warning(self) -> None:
        self._confirmed = None
        self.query_one("#complaint").display = False

    @on(Input.Submitted)
    def _write(self, event: Input.Submitted) -> None:
        if not event.value.strip():
            self._complain("Give a name.")
            return
        try:
            path = Path(event.value.strip()).expanduser().absolute()
            if path.is_dir():
                self._complain(f"{path} is a directory: give a name in it")
            elif path.exists() and self._confirmed != path:
                self._complain(f"{path} exists: Enter again replaces it")
                self._confirmed = path
            else:
                self._things[self._chosen].write(path)
                self.dismiss(path)
        except UserError as error:
            self._complain("\n".join(filter(None, [error.message, error.hint])))
        except (OSError, RuntimeError, ValueError) as error:  # no home of that name, a name too long
            self._complain(str(error))

    def _complain(self, text: str) -> None:
        complaint = self.query_one("#complaint", Static)
        complaint.update(Content(text))
        complaint.display = True
