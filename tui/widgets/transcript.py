"""The conversation on the screen: one view over lines that are drawn when they are first seen, and kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Offset, Region, Size
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip
from textual.widget import Widget

from tui.lines import Lines
from tui.look import NAMES, Look, Page
from tui.marks import highlighted, marked, welcome_line, word_at
from tui.steady import steady
from tui.tools import tools_line
from tui.turns import Turn
from tui.widgets.bar import BarKeeper
from tui.widgets.transcript_messages import Clicked, Left, Moved


class Transcript(ScrollView, can_focus=True):
    """Turns, oldest first. Follows the end until the person scrolls away, and again once they have come back.

    How high a turn is that was never seen is estimated; when it is drawn, the view holds the lines it shows.

    Attributes:
        selected: the turn that keys act on while the transcript has the focus.
    """

    FOCUS_ON_CLICK = False  # the composer keeps what is typed next
    COMPONENT_CLASSES: ClassVar[set[str]] = {f"transcript--{name}" for name in NAMES}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "select(-1)", "Select", key_display="↑↓", tooltip="Select the message before"),
        Binding("down,j", "select(1)", "Next message", show=False, tooltip="Select the message after; then write"),
        Binding("enter,space", "toggle_thought", "Thought", tooltip="Open or close the message's thought"),
        Binding("left,h", "screen.branch(-1)", "Branches", key_display="←→", tooltip="Show the branch before"),
        Binding("right,l", "screen.branch(1)", "Next branch", show=False, tooltip="Show the branch after"),
        Binding("c", "screen.copy_message", "Copy", show=False, tooltip="Copy the message"),
        Binding("t", "screen.copy_thought", "Copy thought", show=False, tooltip="Copy the message's thought"),
        Binding(
            "1", "screen.copy_code(1)", "Copy code", show=False, key_display="1-9", tooltip="Copy that block of code"
        ),
        *(Binding(str(number), f"screen.copy_code({number})", show=False, system=True) for number in range(2, 10)),
        Binding("o", "screen.open_link", "Open link", show=False, tooltip="Open a link of the message in the browser"),
        Binding("s", "screen.save_code", "Save code", show=False, tooltip="Save a block of code to a file"),
        Binding("r", "screen.regenerate", "Again", show=False, tooltip="Ask for another reply, beside this one"),
        Binding("e", "screen.edit_message", "Edit", show=False, tooltip="Say it otherwise, and ask again"),
        Binding("m", "screen.continue_reply", "More", show=False, tooltip="Let the last reply go on"),
        Binding("d,delete", "screen.delete_message", "Delete", show=False, tooltip="Delete it and what follows it"),
        Binding("u", "screen.undo", "Undo", show=False, tooltip="Undo the last deletion"),
        Binding("a", "screen.answer_now", "Answer now", show=False, tooltip="End the thought and answer"),
        Binding("x", "screen.export", "Export", show=False, tooltip="Write the session to a Markdown or JSON file"),
    ]

    def __init__(self, empty: str) -> None:
        super().__init__()
        self.selected: Turn | None = None
        self._hovered: Turn | None = None
        self._empty = empty
        self._lines = Lines()
        self._following = True
        self._own_scroll = False
        self._told_at_end: bool | None = None
        self._bar = BarKeeper()
        self._place: tuple[Turn, int] | None = None  # what to show at the top once the size is known

    # What is shown

    @property
    def turns(self) -> list[Turn]:
        """What there is, to be changed by the methods only."""
        return self._lines.turns

    def show(self, turns: Sequence[Turn], place: tuple[Turn, int] | None = None) -> None:
        """Show these turns instead.

        Args:
            place: the turn at the top of the view and how many of its lines are above it; None: the end.
        """
        self._lines.put(turns, anew=True)
        self.selected, self._place = None, place
        self._following = place is None
        self._go_to_place()

    def greet(self, model: str) -> None:
        """Name the model while there is no message."""
        self._empty = model
        self.refresh()

    def add(self, *turns: Turn) -> None:
        """Put turns at the end."""
        self._lines.add(turns)
        self._arrange()
        self.refresh()

    def change(self, turns: Sequence[Turn]) -> None:
        """Show these turns instead, most of which are shown already; the view and the selection stay where they can."""
        top = self._at_top()
        if top is not None and turns and not self._following:
            self._place = turns[min(self.turns.index(top[0]), len(turns) - 1)], top[1]
        if self.selected in self.turns:
            self.selected = turns[min(self.turns.index(self.selected), len(turns) - 1)] if turns else None
        self._lines.put(turns)
        self._go_to_place()

    def redraw(self, turn: Turn, *, hold: bool = False) -> None:
        """The turn has changed; with `hold`, the first line in view stays even where the end was followed."""
        view = self.scroll_offset.y
        if (alike := self._lines.redraw(turn)) is None:
            return
        self._following &= not hold
        self._arrange()
        if hold:
            self._following = self.at_end
        if not turn.running:
            self._show_bar()
        if view == self.scroll_offset.y:  # else all of it is drawn for that
            self._refresh_text(max(self._lines.span(turn)[0] + alike - view, 0))

    def redraw_all(self) -> None:
        """Every turn may have changed; the first line in view stays."""
        self._place = self._at_top()
        self._lines.put(self.turns, anew=True)
        self._go_to_place()

    # Where it is

    @property
    def at_end(self) -> bool:
        """Whether the last line of text can be seen; the line under it is blank."""
        return self.scroll_y >= self.max_scroll_y - 1

    @property
    def place(self) -> tuple[Turn, int] | None:
        """For `show` to come back to; None when it is the end."""
        return None if self._following else self._at_top()

    def to_end(self) -> None:
        """Show the end and follow it."""
        self._following = True
        self._arrange()

    def show_turn(self, turn: Turn) -> None:
        """Bring a turn into view, or as much of it as fits."""
        self._lines.look_at(self._lines.span(turn)[0], self.size.height)
        (top, bottom), view = self._lines.span(turn), self.scroll_offset.y
        if top < view or (bottom > view + self.size.height and top > view + 1):
            self._following = False
            self._resize()
            self._scroll(max(min(top - 1, bottom - self.size.height) if bottom - top < self.size.height else top, 0))
            self._arrange()
            self._following = self.at_end

    # Reading it by keys

    def action_select(self, step: int) -> None:
        """Select the message before or after; after the last one comes the composer."""
        messages = [turn for turn in self.turns if turn.node is not None]
        here = messages.index(self.selected) if self.selected in messages else len(messages)
        if here + step < len(messages):
            self.select(messages[max(here + step, 0)])
        elif step > 0:
            self.post_message(Left())

    def select(self, turn: Turn | None) -> None:
        """Let keys act on this turn."""
        self.selected = turn
        if turn is not None:
            self.show_turn(turn)
        self.refresh()
        self.screen.refresh_bindings()

    def action_toggle_thought(self) -> None:
        """Open or close the thoughts of the selected message."""
        if self.selected is not None:
            self.post_message(Clicked(self.selected, "thought", True))

    def on_focus(self) -> None:
        """There is always a message selected where there are any."""
        self._hovered = None
        if self.selected not in self.turns:
            self.action_select(-1)

    def on_blur(self) -> None:
        """The mark goes."""
        self.refresh()

    # Drawing

    def _refresh_text(self, top: int = 0) -> None:
        """Draw the lines from `top` on anew, but not the scrollbar beside them: Textual draws what a region meets."""
        if top < self.size.height:
            self.refresh(Region(0, top, self.scrollable_content_region.width, self.size.height - top))

    def render_lines(self, crop: Region) -> list[Strip]:
        """The lines of the view within `crop`, as the screen takes them.

        Textual would frame each line anew, and there is no frame. Handing on the same strips as the last time costs a
        tenth: it keeps what it has made of them, their escape codes too.
        """
        strips = [self.render_line(y) for y in crop.line_range]
        (start, end), page = crop.column_span, self._lines.page
        if not self.show_vertical_scrollbar and page is not None:  # nothing else draws on its place
            strips = [strip.adjust_cell_length(end, page.look.base.background_style) for strip in strips]
        background = self.background_colors[1]
        for line_filter in self.get_line_filters():
            strips = [strip.apply_filter(line_filter, background) for strip in strips]
        return [steady(strip.crop(start, end)) for strip in strips]

    def render_line(self, y: int) -> Strip:
        """A line of the view, each cell marked with its place, by which the mouse selects."""
        return self._lines.placed(self.scroll_offset.y + y, self._line(y))

    def _line(self, y: int) -> Strip:
        page, line = self._lines.page, self.scroll_offset.y + y
        if page is None:
            return Strip.blank(self.size.width, self.rich_style)
        if (found := self._lines.at(line)) is None:
            return welcome_line(y, self._empty, page)
        if line >= self._lines.height:
            return page.blank
        turn, inside = found
        lines = self._lines.of(turn)
        strip = lines[inside] if inside < len(lines) else page.blank
        selected = turn is self.selected and self.has_focus
        if selected and inside < len(lines) - 1:
            strip = marked(strip, page)
        elif inside == len(lines) - 1 and turn.node is not None and (selected or turn is self._hovered):
            last = next(turn for turn in reversed(self.turns) if turn.node is not None)
            strip = tools_line(turn.tools(last=turn is last), page, keys=selected)
        if (selection := self.text_selection) is not None and (span := selection.get_span(line)) is not None:
            strip = highlighted(strip, span, self.screen.get_component_rich_style("screen--selection"))
        return strip

    # Moving

    def _go_to_place(self) -> None:
        """Show the place that is to be shown, where there is one, after everything may have changed."""
        if self._lines.page is not None and self._place is not None:
            (turn, above), self._place = self._place, None
            self._lines.look_at(self._lines.span(turn)[0], self.size.height)
            top, bottom = self._lines.span(turn)
            self._resize()
            self._scroll(top + min(above, max(bottom - top - 1, 0)))
        self._arrange()
        self.refresh()

    def _arrange(self) -> None:
        """Draw what is in view, take its height, and hold the end or the first line in view."""
        if self._lines.page is None:
            return
        if self._following:
            self._lines.look_at_end(self.size.height)
            self._resize()
            self._scroll(self._lines.height - self.size.height)
        else:
            view = self.scroll_offset.y
            moved = self._lines.look_at(view, self.size.height)
            self._resize()
            if moved:
                self._scroll(view + moved)
        if self.at_end != self._told_at_end:
            self._told_at_end = self.at_end
            self.post_message(Moved())

    def _at_top(self) -> tuple[Turn, int] | None:
        """The turn at the top of the view, and how many of its lines are above."""
        return self._lines.at(self.scroll_offset.y)

    def _resize(self) -> None:
        """Be as high as the turns are. Only where the scrollbar comes or goes is the whole screen laid out again."""
        size = Size(self.scrollable_content_region.width, self._lines.height)
        if self.virtual_size.width != size.width or self.show_vertical_scrollbar != (size.height > self.size.height):
            self.virtual_size = size
        else:
            self.set_reactive(Widget.virtual_size, size)
            self._show_bar()

    def watch_show_vertical_scrollbar(self) -> None:
        """The scrollbar has come, at a place that it was not told of."""
        self._show_bar()

    def _show_bar(self) -> None:
        if self.show_vertical_scrollbar:
            growing = bool(self.turns) and self.turns[-1].running
            height, window = self.virtual_size.height, self.size.height
            self._bar.show(self.vertical_scrollbar, self.scroll_y, window, height, growing=growing)

    def scroll_to(self, *place: Any, **options: Any) -> None:
        """At once, by the scrollbar too: Textual fails where what moves by itself is moved on, to hold a line."""
        super().scroll_to(*place, **{**options, "animate": False})

    def _scroll(self, y: float) -> None:
        self._own_scroll = True
        try:
            self.scroll_to(y=max(y, 0), force=True)
        finally:
            self._own_scroll = False

    # Events

    def on_resize(self) -> None:
        """The view has another size, or has one for the first time."""
        self._take_page()

    def notify_style_update(self) -> None:
        """The theme has changed."""
        super().notify_style_update()
        if (page := self._lines.page) is not None:
            self._lines.page = Page(-1, page.look)
            self.call_after_refresh(self._take_page)

    def _take_page(self) -> None:
        width = self.scrollable_content_region.width
        if width <= 0:
            return
        page = self._lines.page
        if page is not None and page.total == width:
            self._arrange()
            return
        if page is not None and not self._following and self._place is None:
            self._place = self._at_top()
        self._lines.take(Page(width, Look.of(self)))
        self._go_to_place()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Whoever scrolls away is left there; whoever comes to the end follows it."""
        self._show_bar()
        if round(old_value) == round(new_value):
            return
        self._refresh_text()
        if not self._own_scroll:
            self._following = self.at_end
            self._arrange()

    def on_click(self, event: events.Click) -> None:
        """What was clicked is for the screen to act on; a second click selects a word."""
        event.prevent_default()  # Textual would select everything with a second one
        if (found := self._lines.at(self.scroll_offset.y + event.y)) is None or self.text_selection is not None:
            return  # a drag that selects ends in a click to Textual, too
        targets = {**event.style.meta, **({"link": event.style.link} if event.style.link else {})}
        for what in ("thought", "branch", "code", "save", "do", "link"):
            if what in targets:
                event.stop()
                self.post_message(Clicked(found[0], what, targets[what]))
                return
        place = self.screen.get_widget_and_offset_at(event.screen_x, event.screen_y)[1]
        if event.chain == 2 and place is not None:
            start, end = word_at(self.render_line(event.y).text, place.x)
            self.screen.selections = {self: Selection(Offset(start, place.y), Offset(end, place.y))}

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """The message under the mouse offers its tools, unless another is selected."""
        line = self.scroll_offset.y + event.y
        found = self._lines.at(line) if not self.has_focus and line < self._lines.height else None
        self._hover(found[0] if found else None)

    def on_leave(self) -> None:
        """The mouse has gone."""
        self._hover(None)

    def _hover(self, turn: Turn | None) -> None:
        if turn is not self._hovered:
            self._hovered = turn
            self.refresh()

    # Selecting with the mouse

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The text of a selection, without the margin."""
        return (self._lines.selected(selection), "\n") if self._lines.page is not None and self.turns else None
