"""A thought as it stands in the transcript: open with a running clock while it lasts, one quiet line afterwards."""

from __future__ import annotations

from collections.abc import Callable

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from ftllm.chat.options import ThoughtMode
from ftllm.chat.session import thought_title
from tui.look import Page
from tui.markdown import parse, render
from tui.text import counted, cut, harmless, tail

TAIL_LINES = 12
RECENT_CHARACTERS = 8000
"""Enough for `TAIL_LINES` of any terminal, so that a paint costs the same however long the thought has become."""
BAR_CELLS = 16
BUDGET_SLACK = 32
"""Tokens over its budget that a thought may be: it is closed at the end of a character, with a few words."""


class Thought:
    """One thought of a reply.

    `mode` says whether it is open, until the person opens or closes it; from then on it stays as they left it.

    Args:
        clock: seconds, only differences are used.
        budget: tokens it may take.
    """

    def __init__(self, clock: Callable[[], float], mode: ThoughtMode = "auto", budget: int | None = None) -> None:
        self.mode = mode
        self.tokens = 0
        self.repeats = 0  # how often it has said the same, where the engine suspects a loop
        self._clock, self._began = clock, clock()
        self._budget = budget
        self._pieces: list[str] = []
        self._ended: str | None = None
        self._chosen: bool | None = None

    @classmethod
    def finished(cls, text: str, title: str, mode: ThoughtMode) -> Thought:
        """One that has ended."""
        thought = cls(lambda: 0.0, mode)
        thought.feed(text)
        thought._ended = title
        return thought

    @property
    def live(self) -> bool:
        """Whether the model is still at it."""
        return self._ended is None

    @property
    def open(self) -> bool:
        """Whether it can be read."""
        if self._chosen is not None:
            return self._chosen
        return self.mode == "open" or (self.mode == "auto" and self.live)

    @property
    def shown(self) -> bool:
        """Whether there is anything of it on the screen."""
        return self.live or self.mode != "hidden" or self._chosen is not None

    @property
    def text(self) -> str:
        """The thought so far, as the model wrote it."""
        return "".join(self._pieces)

    @property
    def title(self) -> str:
        """`▾ Thinking for 3.1 seconds - 96 tokens`, then `▸ Thought for 7.40 seconds - 312 tokens`."""
        mark = "▾" if self.open else "▸"
        if self._ended is not None:
            return f"{mark} {self._ended}"
        seconds = f"{mark} Thinking for {max(self._clock() - self._began, 0.0):.1f} seconds"
        return f"{seconds} - {counted(self.tokens, 'token')}" if self.tokens else seconds

    def choose(self, is_open: bool) -> None:
        """Open or close at the person's wish."""
        self._chosen = is_open

    def feed(self, text: str, tokens: int = 0) -> None:
        """Take more of the thought, which is `tokens` long by now."""
        self._pieces.append(text)
        self.tokens = tokens

    def finish(self, seconds: float | None = None, tokens: int | None = None, note: str = "") -> None:
        """The thought has ended: after how long (None: when it is now), at what length, and why if not by itself."""
        title = thought_title(max(self._clock() - self._began, 0.0) if seconds is None else seconds)
        facts = [title, counted(tokens, "token") if tokens is not None else "", note]
        self._ended = " - ".join(filter(None, facts))

    def draw(self, page: Page, key: str) -> list[Strip]:
        """Framed lines: the title, then the tail or the whole thought where it is open.

        Args:
            key: what to press for an answer now; empty where no key does that.
        """
        if not self.shown:
            return []
        lines = [self._title_line(page)]
        if self.live and self.repeats:
            what_to_do = f"press {key} to answer now" if key else "Esc stops the reply"
            lines += page.plain(f"repeating itself (x{self.repeats}), {what_to_do}", page.look["warning"])
        if self.live and self._budget and self.tokens > self._budget + BUDGET_SLACK:
            lines += page.plain(f"the endpoint ignores the budget of {self._budget:,}", page.look["warning"])
        if self.open:
            muted, bar = page.look["muted"], ("│", page.look["thought-bar"])
            if self.live:
                recent = tail(harmless("".join(self._recent())), page.width - 2, TAIL_LINES)
                lines += page.plain(recent, muted, bar) if recent else []
            else:
                for line in render(parse(harmless(self.text.strip())), page.width - 2, page.look, first_code=None):
                    lines.append(page.frame(Strip([Segment("│ ", bar[1]), *line.apply_style(muted)])))
        return lines

    def estimate(self, page: Page) -> int:
        """About how many lines it takes."""
        return 1 + (estimate(self.text, page) if self.open else 0) if self.shown else 0

    def _title_line(self, page: Page) -> Strip:
        look = page.look
        parts = [(self.title, look["muted"])]
        if self.live and self._budget:
            done = min(self.tokens * BAR_CELLS // self._budget, BAR_CELLS)
            of_all = f" of {self._budget:,}"
            if cell_len(self.title + of_all) + 2 + BAR_CELLS <= page.width:
                parts += [("  ", look["muted"]), ("━" * done, look["link"]), ("─" * (BAR_CELLS - done), look["muted"])]
            parts += [(of_all, look["muted"])]
        meta, room = Style.from_meta({"thought": True}), page.width
        segments = []
        for text, style in parts:
            segments.append(Segment(cut(text, room), style + meta))
            room -= cell_len(segments[-1].text)
        return page.frame(Strip(segments))

    def _recent(self) -> list[str]:
        """The last pieces of the thought, more than the tail can show."""
        first, characters = len(self._pieces), 0
        while first and characters < RECENT_CHARACTERS:
            first -= 1
            characters += len(self._pieces[first])
        return self._pieces[first:]


def estimate(text: str, page: Page) -> int:
    """About how many lines a text takes on a page."""
    return sum(1 + len(line) // page.width for line in text.splitlines())
