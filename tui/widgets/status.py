"""The line that says which model this is, what it is doing, how fast, and how full its context is."""

from __future__ import annotations

from textual.content import Content
from textual.reactive import reactive
from textual.widgets import Static

from tui.meter import Figures
from tui.text import shortened

CONTEXT_WARNING = 0.5
CONTEXT_ALARM = 0.8


def status_content(figures: Figures, width: int) -> Content:
    """The status line in `width` cells: the context first, then speed; the model's name gives way last, its end
    with the quantization least."""
    state = Content.styled(figures.state, "bold")
    parts: list[Content] = []
    if figures.n_ctx and figures.context_tokens is not None:
        share = figures.context_tokens / figures.n_ctx
        style = "$text-error" if share >= CONTEXT_ALARM else "$text-warning" if share >= CONTEXT_WARNING else ""
        parts.append(Content.styled(f"context {figures.context_tokens}/{figures.n_ctx} {share:.0%}", style))
    if figures.tokens_per_second is not None:
        parts.append(Content(f"{figures.tokens_per_second:.1f} tok/s"))
    think = [Content(f"think {figures.think}")] if figures.think else []
    if figures.think != "auto":  # a choice goes before a figure
        parts += think
    if figures.first_token is not None:
        parts.append(Content(f"first after {figures.first_token:.2f} s"))
    if figures.think == "auto":
        parts += think
    gap = Content("   ")
    right = Content("")
    for part in parts:
        longer = part + gap + right if right else part
        if state.cell_length + 3 + longer.cell_length + 12 > width and right:
            break
        right = longer
    room = width - state.cell_length - right.cell_length - 6
    left = state + gap + Content(shortened(figures.model, room)) if room >= 4 else state
    space = width - left.cell_length - right.cell_length
    return left + Content(" " * space) + right if space > 0 else left


class StatusLine(Static):
    """Shows `figures`; draws itself again only when they or its width change."""

    figures: reactive[Figures] = reactive(Figures("", ""))

    def __init__(self) -> None:
        super().__init__(markup=False)

    def watch_figures(self) -> None:
        """Draw the new figures."""
        self._draw()

    def on_resize(self) -> None:
        """Fit the new width."""
        self._draw()

    def _draw(self) -> None:
        self.update(status_content(self.figures, self.content_size.width), layout=False)
