"""One thing of many: a table that is filtered by typing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

from rich.cells import cell_len
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from ftllm.values import dataclass
from tui.screens.dialog import ESCAPE, Dialog
from tui.text import one_line, shortened
from tui.widgets.options import Options
from tui.widgets.typed import Field

T = TypeVar("T")
GAP = 2


@dataclass(frozen=True)
class Row(Generic[T]):
    """A thing to pick.

    Attributes:
        cells: what its line shows; the first gives way where the line is too long.
        here: it is the one there is now.
        problem: why it cannot be picked, shown in place of its cells but the first; empty where it can.
        warning: the number of a cell that is a warning; 0 for none.
    """

    value: T
    cells: tuple[str, ...]
    here: bool = False
    problem: str = ""
    warning: int = 0

    def found_by(self, words: Sequence[str]) -> bool:
        """Whether it has all words in it."""
        text = " ".join([*self.cells, self.problem]).casefold()
        return all(word in text for word in words)


class PickScreen(Dialog[T | None]):
    """The table; dismissed with the value of a row, or with None.

    Args:
        title: what is picked.
        columns: the titles of the columns; those of numbers begin with a `>`, which is not shown.
        rows: what there is so far.
        typed: what the filter holds at first.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Back", priority=True),
        *(
            Binding(key, f"list('{action}')", show=False, priority=True)
            for key, action in (
                ("up", "cursor_up"),
                ("down", "cursor_down"),
                ("pageup", "page_up"),
                ("pagedown", "page_down"),
                ("ctrl+home", "first"),
                ("ctrl+end", "last"),
            )
        ),
        Binding("enter", "take", "Take it", priority=True),
    ]
    DEFAULT_CSS = """
    PickScreen > .frame { width: 110; }
    PickScreen Input { height: 1; padding: 0; margin-bottom: 1; background: $surface; }
    PickScreen .titles { height: 1; color: $text-muted; }
    PickScreen OptionList {
        height: auto; max-height: 1fr; min-height: 3; border: none; padding: 0; background: $background;
        scrollbar-size-vertical: 1; text-wrap: nowrap; text-overflow: ellipsis;
    }
    PickScreen .said { height: auto; color: $text-muted; }
    """

    def __init__(self, title: str, columns: Sequence[str], rows: Sequence[Row[T]] = (), typed: str = "") -> None:
        super().__init__()
        self._title = title
        self._columns = columns
        self._rows = list(rows)
        self._typed = typed
        self._shown: list[Row[T]] = []
        self._said = ""

    def compose(self) -> ComposeResult:
        with self.framed(Vertical(), self._title, ("", "Type to find   Up, Down"), ("enter", "Enter: take it"), ESCAPE):
            yield Field(self._typed, placeholder="Find", compact=True)
            yield Static(classes="titles", markup=False)
            table = Options(compact=True, markup=False)
            table.can_focus = False
            yield table
            yield Static(classes="said", markup=False)

    def on_mount(self) -> None:
        """What is typed goes to the filter."""
        self.query_one(Input).focus()

    def on_resize(self) -> None:
        """Fit the new width."""
        self.call_after_refresh(self._draw)

    def offer(self, rows: Sequence[Row[T]], said: str) -> None:
        """Show these rows, and a line about them."""
        self._rows, self._said = list(rows), said
        self._draw()

    def typed_row(self, text: str) -> Row[T] | None:
        """What is typed, where that itself can be picked."""
        del text
        return None

    @on(Input.Changed)
    def _draw(self) -> None:
        text = self.query_one(Input).value
        words = text.casefold().split()
        rows = [row for row in self._rows if row.found_by(words)]
        extra = self.typed_row(text.strip()) if text.strip() else None
        rows += [extra] if extra is not None else []
        table = self.query_one(OptionList)
        marked = self._shown[table.highlighted].value if table.highlighted is not None and self._shown else None
        self._shown = rows
        width = table.size.width - 3
        lines = [tuple(title.removeprefix(">") for title in self._columns), *(row.cells for row in rows)]
        widths = [max(cell_len(cells[n]) for cells in lines if len(cells) > n) for n in range(len(self._columns))]
        widths[0] = max(min(widths[0], width - sum(widths[1:]) - GAP * len(widths)), 8)
        self.query_one(".titles", Static).update(Content("  ") + self._cells(lines[0], widths))
        table.set_options(Option(self._line(row, widths, width), disabled=bool(row.problem)) for row in rows)
        usable = [number for number, row in enumerate(rows) if not row.problem]
        kept = [number for number in usable if rows[number].value == marked]
        here = [number for number in usable if rows[number].here and not words]
        table.highlighted = next(iter([*kept, *here, *usable]), None)
        said = self._said if rows or not self._rows else "Nothing has that in it"
        self.query_one(".said", Static).update(Content(said))
        self.query_one(".said", Static).display = bool(said)

    def _line(self, row: Row[T], widths: Sequence[int], width: int) -> Content:
        mark = Content("● " if row.here else "  ")
        if row.problem:
            name = shortened(row.cells[0], widths[0])
            name += " " * (widths[0] - cell_len(name) + GAP)
            return mark + Content(name) + Content.styled(one_line(row.problem, width - cell_len(name)), "$text-error")
        return mark + self._cells(row.cells, widths, row.warning)

    def _cells(self, cells: Sequence[str], widths: Sequence[int], warning: int = 0) -> Content:
        line = Content("")
        for number, (cell, space, title) in enumerate(zip(cells, widths, self._columns, strict=False)):
            text = shortened(cell, space)
            padding = " " * (space - cell_len(text))
            text = padding + text if title.startswith(">") else text + padding
            line += Content.styled(text + " " * GAP, "$text-warning" if warning and number == warning else "")
        return line

    def action_list(self, action: str) -> None:
        """Move through the table."""
        getattr(self.query_one(OptionList), f"action_{action}")()

    def action_take(self) -> None:
        """Take what is marked."""
        self._draw()  # what was typed just before has not been acted on yet
        place = self.query_one(OptionList).highlighted
        if place is not None:
            self.dismiss(self._shown[place].value)

    @on(OptionList.OptionSelected)
    def _clicked(self, event: OptionList.OptionSelected) -> None:
        shown = event.option_list.options
        if event.option in shown:  # it may have been filtered away meanwhile
            self.dismiss(self._shown[shown.index(event.option)].value)
