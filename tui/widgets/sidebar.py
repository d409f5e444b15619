"""The sessions that are kept, at the side: the one touched last first, or what a search finds in them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.timer import Timer
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from ftllm.chat import store as chats
from ftllm.chat.store import Hit, SessionInfo, Store
from ftllm.values import dataclass
from tui.text import harmless, one_line
from tui.widgets.options import Options
from tui.widgets.typed import Field

TYPING_SECONDS = 0.15  # the search begins when nothing has been typed for so long
LISTED = 500  # sessions; a list of more takes too long to make, and nobody reads so far
SEARCH, RENAME = "Search all sessions", "A new title; empty for the first message's"
MINUTE, HOUR, DAY = 60, 3600, 86400

now = time.time


def age(seconds: float) -> str:
    """How long ago, in few characters.

    >>> age(30), age(300), age(7200), age(3 * 86400), age(40 * 86400)
    ('now', '5 min', '2 h', '3 d', '5 wk')
    """
    for unit, name in ((7 * DAY, "wk"), (DAY, "d"), (HOUR, "h"), (MINUTE, "min")):
        if seconds >= unit:
            return f"{int(seconds / unit)} {name}"
    return "now"


class Sidebar(Vertical):
    """A list under a line to search in; the keys go to both at once.

    Args:
        store: where the sessions are.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Up", show=False, priority=True),
        Binding("down", "move(1)", "Down", show=False, priority=True),
        Binding("pageup", "pages(-1)", "Page up", show=False, priority=True),
        Binding("pagedown", "pages(1)", "Page down", show=False, priority=True),
        Binding("escape", "back", "Back", priority=True, tooltip="End the search or the new title; then close"),
        Binding("ctrl+e", "rename", "Rename", priority=True, tooltip="Give the session another title"),
        Binding("ctrl+d", "delete", "Delete", priority=True, tooltip="Delete the session; Ctrl+Z brings it back"),
        Binding("ctrl+z", "screen.undo", "Undo", priority=True, tooltip="Undo the last deletion"),
    ]

    @dataclass
    class Opened(Message):
        """A session is to be shown; a message in it where one was searched for, and whether its thought was."""

        session: int
        node: int | None = None
        thought: bool = False

    class New(Message):
        """A new session is to be begun."""

    @dataclass
    class Deleted(Message):
        """A session is to be deleted."""

        session: int
        title: str

    @dataclass
    class Renamed(Message):
        """A session is to have another title."""

        session: int
        title: str

    class Closed(Message):
        """Back to the conversation."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.current: int | None = None  # the session shown beside it
        self._store = store
        self._rows: list[SessionInfo | Hit | None] = []  # of the list; None begins a new session
        self._renaming: SessionInfo | None = None
        self._query = ""
        self._typed: Timer | None = None

    def compose(self) -> ComposeResult:
        self.border_title = "Sessions"
        yield Field(placeholder=SEARCH)
        yield Options(markup=False)

    def on_mount(self) -> None:
        """Keys are for the line; the list is only clicked."""
        self.query_one(OptionList).can_focus = False

    def on_resize(self) -> None:
        """Titles are cut to the width."""
        self.show()

    @property
    def chosen(self) -> SessionInfo | Hit | None:
        """The row that is marked; None for the one that begins a session."""
        row = self.query_one(OptionList).highlighted
        return self._rows[row] if row is not None and row < len(self._rows) else None

    @property
    def session(self) -> int | None:
        """The session of the marked row."""
        match self.chosen:
            case SessionInfo() as info:
                return info.id
            case Hit() as hit:
                return hit.session
        return None

    def show(self, current: int | None = None) -> None:
        """Read the sessions, or what is searched for, again.

        Args:
            current: the session shown beside it, where it is another one now.
        """
        self.current = current if current is not None else self.current
        listing = self.query_one(OptionList)
        marked = self.session
        width = max(listing.scrollable_content_region.width - 2, 8)
        if self._query:
            hits = chats.search(self._store, self._query)
            titles = {(hit.session, hit.snippet) for hit in hits if hit.node is None}
            hits = [hit for hit in hits if hit.node is None or (hit.session, hit.snippet) not in titles]
            self._rows = [*hits]
            prompts = [_hit(hit, width) for hit in hits]
        else:
            sessions = chats.list_sessions(self._store, limit=LISTED)
            self._rows = [None, *sessions]
            prompts = [Content.styled("+ New session", "bold")]
            prompts += [_row(info, width, current=info.id == self.current) for info in sessions]
            if len(sessions) == LISTED:
                prompts.append(Content.styled("Older ones: search", "$foreground-muted"))
        listing.clear_options()
        listing.add_options(
            Option(prompt) for prompt in prompts or [Content.styled("Nothing found", "$foreground-muted")]
        )
        wanted = self.current if marked is None else marked
        listing.highlighted = next((place for place, row in enumerate(self._rows) if _id(row) == wanted), 0)

    def ask_title(self) -> None:
        """Let the marked session be renamed."""
        info = next((info for info in self._sessions() if info.id == self.session), None)
        if info is not None:
            self._renaming = info
            self._line(info.title, RENAME, "Rename")

    # What is typed

    @on(Input.Changed)
    def _search(self, event: Input.Changed) -> None:
        if self._renaming is None and event.value.strip() != self._query:
            if self._typed is not None:
                self._typed.stop()
            self._typed = self.set_timer(TYPING_SECONDS, self._find)

    def _find(self) -> None:
        if self._renaming is None:
            self._query = self.query_one(Input).value.strip()
            self.query_one(OptionList).highlighted = None
            self.show()

    @on(Input.Submitted)
    def _enter(self, event: Input.Submitted) -> None:
        if self._renaming is not None:
            self.post_message(self.Renamed(self._renaming.id, " ".join(event.value.split())))
            self._end_renaming()
            return
        if event.value.strip() != self._query:
            self._find()
        self._open()

    @on(OptionList.OptionSelected)
    def _open(self) -> None:
        match self.chosen:
            case SessionInfo() as info:
                self.post_message(self.Opened(info.id))
            case Hit() as hit:
                self.post_message(self.Opened(hit.session, hit.node, hit.field == "thought"))
            case None if self.query_one(OptionList).highlighted == 0 and not self._query:
                self.post_message(self.New())

    # Keys

    def action_move(self, step: int) -> None:
        """Mark another row."""
        listing = self.query_one(OptionList)
        listing.highlighted = min(max((listing.highlighted or 0) + step, 0), listing.option_count - 1)

    def action_pages(self, step: int) -> None:
        """Mark a row a page away."""
        self.action_move(step * max(self.query_one(OptionList).size.height - 1, 1))

    def action_back(self) -> None:
        """One step back: the new title, the search, the list."""
        if self._renaming is not None:
            self._end_renaming()
        elif self.query_one(Input).value:
            self._line("", SEARCH, "Sessions")
            self._find()
        else:
            self.post_message(self.Closed())

    def action_rename(self) -> None:
        """Give the marked session another title."""
        self.ask_title()

    def action_delete(self) -> None:
        """Delete the marked session."""
        info = next((info for info in self._sessions() if info.id == self.session), None)
        if info is not None and self._renaming is None:
            self.post_message(self.Deleted(info.id, info.title))

    def _end_renaming(self) -> None:
        self._renaming = None
        self._line(self._query, SEARCH, "Sessions")

    def _line(self, text: str, placeholder: str, title: str) -> None:
        line = self.query_one(Input)
        line.value, line.placeholder, self.border_title = text, placeholder, title
        line.cursor_position = len(text)
        line.focus()

    def _sessions(self) -> Sequence[SessionInfo]:
        return [row for row in self._rows if isinstance(row, SessionInfo)] or chats.list_sessions(self._store)


def _id(row: SessionInfo | Hit | None) -> int | None:
    return row.id if isinstance(row, SessionInfo) else row.session if row is not None else None


def _row(info: SessionInfo, width: int, *, current: bool) -> Content:
    """A session on one line: its title, and how long ago it was touched."""
    ago = age(max(now() - info.updated, 0.0))
    title = Content(one_line(info.title or "Untitled", width - len(ago) - 2))
    title = title.stylize("bold $text-primary" if current else "")
    gap = " " * max(width - title.cell_length - len(ago), 1)
    return title + Content(gap) + Content.styled(ago, "$foreground-muted")


def _hit(hit: Hit, width: int) -> Content:
    """A message found: its session's title, and the words in their context."""
    snippet = Content(harmless(hit.snippet))
    for start, end in hit.marks:
        snippet = snippet.stylize("bold $text-warning", start, end)
    if hit.node is None:
        return snippet
    where = "you" if hit.role == "user" else "thought" if hit.field == "thought" else "reply"
    title = Content.styled(one_line(hit.title or "Untitled", width - len(where) - 2), "bold")
    return title + Content.styled(f"  {where}", "$foreground-muted") + Content("\n") + snippet
