"""Which session is shown: the sidebar, and how one is left so that it can be gone on with exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from textual import events, on
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.css.query import NoMatches
from textual.timer import Timer
from textual.widgets import TextArea

from ftllm.chat import store as chats
from ftllm.chat.states import state_file
from ftllm.chat.store import SessionInfo
from ftllm.errors import UserError
from tui.screens.choosing import ChoosingScreen
from tui.widgets.composer import Composer
from tui.widgets.sidebar import Sidebar

WIDE = 100
"""From how many columns on the sidebar stands beside the conversation."""

DRAFT_SECONDS = 2.0
"""How much of what is being written may be lost when the program is killed."""


class SessionsScreen(ChoosingScreen):
    """A conversation that can be left for another one.

    Where a session is left, its place on the screen is kept in the store, and what the model has read in a file.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s,f5", "sessions", "Sessions", priority=True, tooltip="Show the sessions, and search in them"),
        Binding("f6", "new_session", "New session", show=False, priority=True, tooltip="Begin a new session"),
    ]

    _deleted: Sequence[Callable[[], None]] = ()  # each brings something back, the last deleted last
    _kept: tuple[int | None, str] = None, ""  # the session, and what is kept of what is not sent in it
    _keeping: Timer | None = None

    def _go_on(self) -> None:
        """Show the session that was asked for by name, in the way that was asked for; else what was not sent before."""
        named = self._options.session
        found = chats.find_session(self.conversation.store, named) if named else None
        if found is not None:
            self._show(found.id, own_model=False)
            self.conversation.change(system=self._options.system or "", options=self._options.reply)
            return
        try:
            self.query_one(Composer).give_back(chats.take_draft(self.conversation.store))
        except UserError as error:
            self._tell(error)

    @property
    def sidebar(self) -> Sidebar | None:
        """The sidebar, while it is there."""
        try:
            return self.query_one(Sidebar)
        except NoMatches:
            return None

    @property
    def narrow(self) -> bool:
        """Whether the sidebar has no room beside the conversation, and lies over it."""
        return self.size.width < WIDE

    def on_resize(self, event: events.Resize) -> None:
        """Lay the sidebar beside the conversation, or over it."""
        if (sidebar := self.sidebar) is not None:
            sidebar.set_class(event.size.width < WIDE, "-narrow")

    @property
    def in_sidebar(self) -> bool:
        """Whether keys go to the sidebar."""
        return self.focused is not None and self.sidebar in self.focused.ancestors

    def open_session(self, session: int, node: int | None = None, *, thought: bool = False) -> None:
        """Show a session as it was left, and go on with it; a reply under way is stopped first.

        Args:
            node: a message to be shown, on whatever branch it is.
            thought: whether its thought is to be open.
        """
        self._after_reply(lambda: self._show(session, node, thought=thought))

    def leave(self, *, draft: bool = True) -> None:
        """Keep what is wanted to go on with the session: its place on the screen, and what the model has read.

        Args:
            draft: whether to keep what is being written, too.
        """
        self._return_queue()
        info = self.conversation.info
        try:
            self._keep(self.query_one(Composer).draft if draft else "", writing=False)
        except UserError as error:
            self._tell(error)
        if info is None:
            return
        if self.busy:
            self._talker.stop()
        if (self._unkept or self.busy) and isinstance(self.conversation.model, Path):
            self._unkept = False
            self._loader.save_state(state_file(info.uid))

    @on(TextArea.Changed, "Composer")
    def _keep_soon(self) -> None:
        """Let what is not sent be found again even if the program is killed."""
        if self._keeping is None:
            self._keeping = self.set_timer(DRAFT_SECONDS, self._keep_unsent)

    def _keep_unsent(self) -> None:
        self._keeping = None
        info, written = self.conversation.info, self.query_one(Composer).draft
        unsent = "\n\n".join([*self._queue, *([written] if written.strip() else [])])
        if (info.id if info is not None else None, unsent) != self._kept and (unsent or self._kept[1]):
            with suppress(UserError):  # it is told when the session is left
                self._keep(unsent, writing=True)

    def _keep(self, unsent: str, *, writing: bool) -> None:
        """Keep the place on the screen and what is not sent; with the session, if there is one."""
        store, info = self.conversation.store, self.conversation.info
        session, kept = self._kept
        if kept and session is None and info is not None:
            chats.keep_draft(store, "")
        if info is not None:
            self.conversation.keep_view(self._view(unsent))
        elif unsent.strip() or kept:
            chats.keep_draft(store, unsent, writing=writing)
        self._kept = (info.id if info is not None else None), unsent

    def _show_queue(self) -> None:
        super()._show_queue()
        self._keep_soon()

    def _view(self, written: str) -> dict[str, object]:
        place = self.transcript.place
        at_top = {} if place is None or place[0].node is None else {"node": place[0].node, "above": place[1]}
        return at_top | ({"draft": written} if written.strip() else {})

    def _show(self, session: int, node: int | None = None, *, thought: bool = False, own_model: bool = True) -> None:
        conversation, transcript = self.conversation, self.transcript
        another = conversation.info is None or conversation.info.id != session
        try:
            if another:
                self._put_away(draft=True)
            if node is not None:
                chats.show_node(conversation.store, node)
            info = conversation.open(session)
        except UserError as error:
            self._tell(error)
            return
        turns = self._turns(conversation.nodes)
        view = info.view
        top = next((turn for turn in turns if turn.node is not None and turn.node == view.get("node")), None)
        above = view.get("above")
        transcript.show(turns, (top, above) if top is not None and isinstance(above, int) else None)
        if another:
            self._take_up(info, own_model=own_model)
            if isinstance(draft := view.get("draft"), str):
                self.query_one(Composer).give_back(draft)
        found = next((turn for turn in turns if node is not None and turn.node == node), None)
        if found is not None:
            for one in found.thoughts if thought else ():
                one.choose(True)
            transcript.focus()
            transcript.select(found)
        self._session_changed()

    def _put_away(self, *, draft: bool) -> None:
        """Leave the session that is shown; what was to be said in it goes back to the composer.

        Args:
            draft: whether what is in the composer stays with the session; else it goes along.
        """
        composer = self.query_one(Composer)
        composer.end_edit()
        self.leave(draft=draft and self.conversation.info is not None)
        if draft and self.conversation.info is not None:
            composer.clear()

    def _take_up(self, info: SessionInfo, *, own_model: bool) -> None:
        """Let the model that a session was held with go on, loaded as it was, with what it had read.

        Args:
            own_model: whether it is loaded; else the one there is goes on.
        """
        from tui.models import kept_target, same

        here, state = self.conversation, state_file(info.uid)
        target = kept_target(info.model) if own_model else None
        if target is not None and not (same(target, here.model) and info.load == here.load):
            self._change_model(target, info.load, state)
            return
        self._loader.load_state(state)
        if info.model and target is None and Path(info.model).name != Path(str(here.model)).name:
            gone = f"{info.model} is not there any more" if own_model else f"Before with {Path(info.model).name}"
            self.notify(f"{gone}; it goes on with {here.model.stem}", markup=False)

    def _session_changed(self) -> None:
        """Another session is shown, or its title is another one."""
        info = self.conversation.info
        title = chats.get_session(self.conversation.store, info.id).title if info is not None else ""
        self.query_one(Composer).border_subtitle = Content(title)
        if (sidebar := self.sidebar) is not None:
            sidebar.show(info.id if info is not None else 0)
        self._keep_soon()
        self.refresh_bindings()

    # By key and mouse

    async def action_sessions(self) -> None:
        """Show the sessions, or go back to the conversation."""
        if (sidebar := self.sidebar) is not None:
            if self.in_sidebar:
                await self._close()
            else:
                sidebar.query_one("Input").focus()
            return
        sidebar = Sidebar(self.conversation.store)
        sidebar.set_class(self.narrow, "-narrow")
        sidebar.current = self.conversation.info.id if self.conversation.info is not None else None
        await self.mount(sidebar, before=0)
        sidebar.query_one("Input").focus()

    @on(Sidebar.Closed)
    async def _close(self) -> None:
        self.query_one(Composer).focus()
        await self.query(Sidebar).remove()

    @on(Sidebar.New)
    def action_new_session(self) -> None:
        """Begin a new session, in the way the program was started."""
        self._after_reply(self._begin)

    def _begin(self, *, write: bool = True) -> None:
        self._put_away(draft=False)
        self.conversation.begin(self._options.system, self._options.reply)
        self.transcript.show([])
        self._session_changed()
        if write:
            self._back_to_writing()

    @on(Sidebar.Opened)
    def _opened(self, event: Sidebar.Opened) -> None:
        if event.node is None:
            self._back_to_writing()
        elif self.narrow:
            self.run_worker(self._close())
        self.open_session(event.session, event.node, thought=event.thought)

    def _back_to_writing(self) -> None:
        """The sidebar stays where there is room for it."""
        if self.sidebar is not None and self.narrow:
            self.run_worker(self._close())
        self.query_one(Composer).focus()

    async def action_rename_session(self, title: str = "") -> None:
        """Give the session another title."""
        info = self.conversation.info
        if info is None:
            self.notify("There is no session yet: it begins with the first message", timeout=3)
        elif title:
            self._rename(Sidebar.Renamed(info.id, title))
        else:
            if self.sidebar is None:
                await self.action_sessions()
            if self.sidebar is not None:
                self.sidebar.show(info.id)
                self.sidebar.ask_title()

    @on(Sidebar.Renamed)
    def _rename(self, event: Sidebar.Renamed) -> None:
        try:
            chats.rename_session(self.conversation.store, event.session, event.title)
        except UserError as error:
            self._tell(error)
        self._session_changed()

    @on(Sidebar.Deleted)
    def _delete_session(self, event: Sidebar.Deleted) -> None:
        self._after_reply(lambda: self._delete_now(event.session, event.title))

    def _delete_now(self, session: int, title: str) -> None:
        shown = self.conversation.info is not None and self.conversation.info.id == session
        if shown:
            self._begin(write=False)
        chats.delete_session(self.conversation.store, session)

        def restore() -> None:
            chats.restore_session(self.conversation.store, session)
            if shown:
                self._show(session)
            self._session_changed()

        self._deleted = [*self._deleted, restore]
        self._session_changed()
        self.notify(f"Deleted “{title or 'Untitled'}”; Ctrl+Z in the list brings it back", timeout=5, markup=False)

    def action_undo(self) -> None:
        """Undo the last deletion."""
        if self._deleted:
            *self._deleted, restore = self._deleted
            restore()
        else:
            self.notify("Nothing was deleted", timeout=2)
