"""One vocabulary of progress for all long work.

Bars on a terminal, plain lines or nothing when piped, JSON lines with `--json`.
Data goes to stdout (JSON lines are data); everything a person watches goes to stderr.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import field
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.markup import escape

from ftllm.values import dataclass

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

BETWEEN_LINES = 10.0  # seconds, where there is no bar


@dataclass
class Reporter:
    """Where a verb's progress goes.

    Args:
        json_lines: print one JSON object a line on stdout and nothing for people.
        quiet: nothing but warnings and errors on stderr.
        verbose: show details and tracebacks.
    """

    json_lines: bool = False
    quiet: bool = False
    verbose: bool = False
    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False, soft_wrap=True))
    started: float = field(default_factory=time.monotonic)
    _stdout: TextIO | None = None  # while no one else writes there

    @property
    def live(self) -> bool:
        """True when bars may be drawn: a person watches stderr."""
        return self.console.is_terminal and not self.quiet and not self.json_lines

    def say(self, text: str) -> None:
        """One line for a person."""
        if not self.quiet and not self.json_lines:
            self.console.print(escape(text))

    def detail(self, text: str) -> None:
        """One line for a person who asked for `--verbose`."""
        if self.verbose and not self.json_lines:
            self.console.print(escape(text), style="dim")

    def warn(self, text: str) -> None:
        """One line that is shown even with `--quiet`; an event with `--json`."""
        if self.json_lines:
            self.event("warning", message=text)
        else:
            self.console.print(f"[yellow]warning:[/yellow] {escape(text)}")

    def event(self, event: str, **fields: Any) -> None:
        """One JSON line on stdout, with `--json` only."""
        if self.json_lines:
            out = self._stdout or sys.stdout
            out.write(json.dumps({"event": event, **fields}, ensure_ascii=False) + "\n")
            out.flush()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """What others print to stdout meanwhile goes to stderr: transformers greets there, as it is imported."""
        before, self._stdout = self._stdout, self._stdout or sys.stdout
        try:
            with redirect_stdout(sys.stderr):
                yield
        finally:
            self._stdout = before

    def done(self, **fields: Any) -> None:
        """The last JSON line of a long job."""
        self.event("done", **fields)

    @contextmanager
    def task(self, title: str, total: float | None, unit: str = "steps") -> Iterator[Task]:
        """A bar over `total` units (`bytes` gets sizes); `None` when the end is unknown."""
        if not self.live:
            yield Task(self, title, total, unit)
            return
        from rich import progress  # most commands end before anything of theirs takes long

        amount: ProgressColumn = progress.DownloadColumn() if unit == "bytes" else progress.MofNCompleteColumn()
        with progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=24),
            amount,
            progress.TextColumn("{task.fields[note]}", style="dim"),
            progress.TimeRemainingColumn(),
            console=self.console,
            transient=True,
        ) as bars:
            identifier = bars.add_task(escape(title), total=total, note="")
            yield Task(self, title, total, unit, bars, identifier)


def silent() -> Reporter:
    """A reporter that shows nothing at all, warnings included."""
    return Reporter(quiet=True, console=Console(quiet=True))


@dataclass
class Task:
    """One piece of long work; made by `Reporter.task`."""

    reporter: Reporter
    title: str
    total: float | None
    unit: str
    bars: Progress | None = None
    identifier: Any = None
    completed: float = 0

    def update(self, completed: float, note: str = "", **fields: Any) -> None:
        """Move to `completed` units; `note` is shown to people, `fields` go into the JSON line."""
        self.completed = completed
        if self.bars is not None:
            self.bars.update(self.identifier, completed=completed, note=escape(note))
        place = {"task": self.title, "completed": completed, "total": self.total, "unit": self.unit}
        self.reporter.event("progress", **place, **fields)

    def remark(self, note: str) -> None:
        """Show a note beside the bar, and nothing where there is none."""
        if self.bars is not None:
            self.bars.update(self.identifier, note=escape(note))

    def advance(self, amount: float = 1, note: str = "", **fields: Any) -> None:
        """Move on by `amount` units."""
        self.update(self.completed + amount, note, **fields)


def paced(task: Task, done: str) -> Callable[[int], None]:
    """What quick work calls with how much of it is done: moves the bar once a second, at the end too.

    Where there is no bar it says every ten seconds how far the work is.

    Args:
        task: the work.
        done: what has happened to its units, as a participle.
    """
    began = moved = said = time.monotonic()

    def advance(completed: int) -> None:
        nonlocal moved, said
        now = time.monotonic()
        if completed == task.total or now - moved >= 1:
            moved = now
            task.update(completed)
        if not task.reporter.live and now - said >= BETWEEN_LINES and completed != task.total:
            said = now
            if task.total:
                left = minutes((now - began) / completed * (task.total - completed))
                task.reporter.say(f"{done} {completed} of {task.total:.0f} {task.unit}, {left} left")
            else:
                task.reporter.say(f"{done} {completed} {task.unit}")

    return advance


def minutes(seconds: float) -> str:
    """`3:05`, or `1:03:05` beyond an hour."""
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
