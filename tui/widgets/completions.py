"""What a line that begins with a slash may become, listed above the composer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.cells import cell_len
from textual import events
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from ftllm.values import dataclass
from tui.text import one_line

ROWS = 8


@dataclass(frozen=True)
class Completion:
    """One way to go on.

    Attributes:
        line: the whole line then.
        label: how it is listed.
        help: what it does.
        whole: the line can be sent so; else something is still to be typed.
    """

    line: str
    label: str
    help: str = ""
    whole: bool = True


class Completions(Static):
    """The list; the composer's keys move through it.

    Args:
        complete: what a line may become.
    """

    DEFAULT_CSS = """
    Completions {
        width: 100%;
        max-width: 110;
        height: auto;
        padding: 0 2;
        background: $surface;
        display: none;
    }
    """

    class Taken(Message):
        """The marked one was clicked."""

    def __init__(self, complete: Callable[[str], Sequence[Completion]]) -> None:
        super().__init__(markup=False)
        self._complete = complete
        self._offered: list[Completion] = []
        self._chosen = 0
        self._first = 0  # of those in view

    @property
    def chosen(self) -> Completion | None:
        """The one that is marked, while any are shown."""
        return self._offered[self._chosen] if self._offered else None

    def look(self, line: str) -> None:
        """Show what the line may become; nothing hides the list."""
        self._show(self._complete(line))

    def hide(self) -> None:
        """Until the line changes."""
        self._show([])

    def _show(self, completions: Sequence[Completion]) -> None:
        if list(completions) == self._offered:
            return  # as with every key of a message
        self._offered, self._chosen = list(completions), 0
        self.display = bool(self._offered)
        self._draw()

    def move(self, step: int) -> None:
        """Mark the one before or after."""
        self._chosen = (self._chosen + step) % len(self._offered)
        self._draw()

    def on_click(self, event: events.Click) -> None:
        """Take the one that was clicked."""
        number = self._first + event.y
        if event.y < ROWS and number < len(self._offered):
            self._chosen = number
            self._draw()
            self.post_message(self.Taken())

    def on_resize(self) -> None:
        """Fit the new width."""
        self._draw()

    def _draw(self) -> None:
        width = self.content_size.width
        first = self._first = max(0, min(self._chosen - ROWS // 2, len(self._offered) - ROWS))
        shown = self._offered[first : first + ROWS]
        column = min(max((cell_len(one.label) for one in shown), default=0) + 2, max(width // 2, 1))
        lines = []
        for number, one in enumerate(shown, start=first):
            label = one_line(one.label, column - 1)
            line = label + " " * (column - cell_len(label))
            rest = one_line(one.help, max(width - column - 1, 0)) if width > column + 8 else ""
            style = "$primary bold reverse" if number == self._chosen else "bold"
            lines.append(Content.styled(line, style) + Content.styled(" " + rest, "dim"))
        more = len(self._offered) - len(shown)
        if more:
            lines.append(Content.styled(f"{self._chosen + 1} of {len(self._offered)}", "dim"))
        self.update(Content("\n").join(lines))
