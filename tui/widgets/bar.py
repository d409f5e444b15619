"""A scrollbar that costs little to keep up with text that grows."""

from __future__ import annotations

from math import ceil

from textual.scrollbar import ScrollBar

STEPS = 8
"""Heights of a cell that the scrollbar's ends are drawn with."""

COARSE = 4
"""Cells by which it lags behind at most while text is added: drawing it costs as much as drawing the text."""


class BarKeeper:
    """Keeps a scrollbar right, and has it drawn again only where it looks otherwise: each cell is a line to Textual."""

    def __init__(self) -> None:
        self._look = (0, 0, 0)  # what decides how it looks

    def show(self, bar: ScrollBar, position: float, window: int, height: int, *, growing: bool) -> None:
        """Show that the `window` lines in view, of `height` lines in all, begin at `position`.

        Args:
            growing: more lines are to come, and it would look otherwise at each of them.
        """
        height = max(height, 1)
        thumb = max(window * window / height, 1)
        start = int(STEPS * (window - thumb) * position / max(height - window, 1))
        look = (window, start // (COARSE * STEPS), 0) if growing else (window, start, ceil(STEPS * thumb))
        if look != self._look:
            self._look = look
            bar.refresh()
        bar.set_reactive(ScrollBar.window_virtual_size, height)
        bar.set_reactive(ScrollBar.position, position)
