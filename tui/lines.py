"""A conversation as one run of lines: drawn when they are first looked at, and kept."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate

from textual.selection import Selection
from textual.strip import Strip

from tui.look import Page
from tui.turns import Turn

KEPT_LINES = 4000
"""Lines of drawn turns that are kept; the others are drawn again when they are looked at."""


class Lines:
    """The lines of all turns, oldest turn first, numbered from 0.

    How high a turn is that was never looked at is estimated, so that looking at a part may move the lines below it.

    Attributes:
        turns: whose lines they are; to be changed by the methods only.
        page: what they are drawn on; None until its size is known, and each turn counts as one line.
    """

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.page: Page | None = None
        self._heights: list[int] = []
        self._tops: list[int] = [0]  # of each turn, and the end
        self._drawn: OrderedDict[Turn, list[Strip]] = OrderedDict()
        self._placed: dict[int, tuple[Strip, Strip]] = {}  # by line: as shown, and with its places

    # What there is

    def put(self, turns: Sequence[Turn], *, anew: bool = False) -> None:
        """Have these turns instead; with `anew`, those that were there are drawn again too."""
        self.turns = list(turns)
        kept = frozenset[Turn]() if anew else frozenset(turns)
        for gone in self._drawn.keys() - kept:
            del self._drawn[gone]
        self._heights = [self._estimate(turn) for turn in self.turns]
        self._add_up()

    def add(self, turns: Sequence[Turn]) -> None:
        """Have these turns too, at the end."""
        self.turns += turns
        self._heights += [self._estimate(turn) for turn in turns]
        self._add_up()

    def take(self, page: Page) -> None:
        """Draw everything on this page from now on."""
        self.page = page
        self.put(self.turns, anew=True)

    def redraw(self, turn: Turn) -> int | None:
        """Draw a turn that has changed. The others' lines move when they are looked at.

        Returns:
            how many of its first lines look as before; None where it is not there.
        """
        before = self._drawn.pop(turn, [])
        if self.page is None or turn not in self.turns:
            return None
        self._know(self._number(turn))
        lines = self._drawn[turn]
        pairs = enumerate(zip(before, lines, strict=False))
        alike = next((i for i, (old, new) in pairs if old is not new and old != new), min(len(before), len(lines)))
        self._drawn[turn] = [*before[:alike], *lines[alike:]]  # the very same strips: the screen knows their codes
        return max(min(alike, len(before) - 1, len(lines) - 1), 0)  # the last line may show what can be done

    # Looking at it

    def of(self, turn: Turn) -> list[Strip]:
        """The turn as drawn. There must be a page."""
        assert self.page is not None
        if (lines := self._drawn.get(turn)) is None:
            lines = self._drawn[turn] = turn.draw(self.page)
            kept = sum(map(len, self._drawn.values()))
            while kept > KEPT_LINES and len(self._drawn) > 1:
                kept -= len(self._drawn.popitem(last=False)[1])
        else:
            self._drawn.move_to_end(turn)
        return lines

    def look_at(self, first: int, count: int) -> int:
        """Draw the turns of `count` lines from the line `first` on.

        Returns:
            by how many lines the turn has grown that `first` is inside; what is below it keeps its place by that.
        """
        begin = index = self._index(first)
        before, top = (self._heights[begin], self._tops[begin]) if self.turns else (0, 0)
        height = top - first
        while index < len(self.turns) and height < count:
            self._know(index)
            height += self._heights[index]
            index += 1
        self._add_up()
        return self._heights[begin] - before if self.turns and top < first else 0

    def look_at_end(self, count: int) -> None:
        """Draw the turns of the last `count` lines."""
        height, index = 0, len(self.turns)
        while index and height < count:
            index -= 1
            self._know(index)
            height += self._heights[index]
        self._add_up()

    def placed(self, line: int, strip: Strip) -> Strip:
        """A line as it is shown, each cell marked with its place."""
        known = self._placed.get(line)
        if known is None or known[0] is not strip:
            if len(self._placed) >= KEPT_LINES:
                self._placed.clear()
            known = self._placed[line] = strip, strip.apply_offsets(0, line)
        return known[1]

    def selected(self, selection: Selection) -> str:
        """The text of a selection; an end that it does not name is that of everything."""
        start, end = selection.start, selection.end
        return self.text(start.transpose if start is not None else (0, 0), end.transpose if end is not None else None)

    def text(self, start: tuple[int, int], end: tuple[int, int] | None = None) -> str:
        """The text from one place to another (None: the end), without the margin; a place is a line and a cell."""
        assert self.page is not None
        last = (self.height - 1, 10**6) if end is None else end
        texts = []
        for line in range(start[0], min(last[0], self.height - 1) + 1):
            text = self._text(line)
            left, right = (start[1] if line == start[0] else 0), (last[1] if line == last[0] else len(text))
            texts.append(text[max(left, self.page.left) : right].rstrip())
        return "\n".join(texts)

    # Where it is

    @property
    def height(self) -> int:
        """How many lines there are."""
        return self._tops[-1]

    def span(self, turn: Turn) -> tuple[int, int]:
        """A turn's first line, and the one after its last."""
        index = self._number(turn)
        return self._tops[index], self._tops[index + 1]

    def at(self, line: int) -> tuple[Turn, int] | None:
        """The turn that a line is in (the last one for lines below), and how many of its lines are above."""
        if not self.turns:
            return None
        index = self._index(line)
        return self.turns[index], line - self._tops[index]

    def _index(self, line: int) -> int:
        return max(min(bisect_right(self._tops, line), len(self.turns)) - 1, 0)

    def _number(self, turn: Turn) -> int:
        return len(self.turns) - 1 if turn is self.turns[-1] else self.turns.index(turn)

    def _text(self, line: int) -> str:
        found = self.at(line)
        lines = self.of(found[0]) if found else []
        return lines[found[1]].text if found and found[1] < len(lines) else ""

    def _estimate(self, turn: Turn) -> int:
        return turn.estimate(self.page) if self.page is not None else 1

    def _know(self, index: int) -> None:
        self._heights[index] = len(self.of(self.turns[index]))

    def _add_up(self) -> None:
        self._tops = [0, *accumulate(self._heights)]
