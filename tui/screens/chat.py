"""The conversation: what can be done by key and mouse."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual import events, on
from textual.binding import Binding, BindingType

from ftllm.chat.store import Node
from ftllm.errors import UserError
from tui.screens.taking import TakingScreen
from tui.text import counted
from tui.turns import ReplyTurn, Turn, UserTurn
from tui.widgets.composer import Composer
from tui.widgets.marker import EndMarker
from tui.widgets.transcript import Transcript
from tui.widgets.transcript_messages import Clicked, Left

UNDER_WAY = "A reply is under way: Esc stops it"


class ChatScreen(TakingScreen):
    """One conversation with one model, and its keys.

    What is done with a message is done with the one selected, while one is, else with the last reply.
    """

    _editing: Node | None = None

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave_message", "Leave it", tooltip="Leave the message that is edited as it was"),
        Binding("escape", "stop", "Stop", tooltip="Stop the reply and keep what there is; take queued messages back"),
        Binding("escape", "write", "Write", tooltip="Go back to writing"),
        Binding("ctrl+n", "answer_now", "Answer now", priority=True, tooltip="End the thought and answer"),
        Binding("up", "look_up", show=False, priority=True),
        Binding(
            "ctrl+up,alt+up",
            "messages",
            "Messages",
            priority=True,
            tooltip="Select a message, to copy, edit or repeat it; Up in an empty composer does the same",
        ),
        Binding("ctrl+t", "toggle_thoughts", "Thoughts", priority=True, tooltip="Open or close all thoughts"),
        Binding("ctrl+o", "copy_reply", "Copy", priority=True, tooltip="Copy the last reply to the clipboard"),
        Binding("ctrl+r", "regenerate", "Again", show=False, priority=True, tooltip="Ask for another reply"),
        Binding("pageup", "scroll_pages(-1)", "Scroll up", show=False, priority=True),
        Binding("pagedown", "scroll_pages(1)", "Scroll down", show=False, priority=True),
        Binding("ctrl+home", "to_start", "Go to the start", show=False, priority=True),
        Binding("ctrl+end", "to_end", "Go to the end and follow it", show=False, priority=True),
    ]

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer only what can be done now."""
        reading = isinstance(self.focused, Transcript)
        match action:
            case "leave_message":
                return self.composer.editing
            case "stop":
                return self.busy or bool(self._queue)
            case "answer_now":
                thinking = self._turn is not None and self._turn.live_thought is not None
                return thinking and not self.conversation.remote  # an endpoint offers no way to
            case "write":
                return reading
            case "scroll_pages" | "regenerate" | "undo" if self.in_sidebar:
                return action == "undo"
            case "look_up":
                return self.focused is self.composer and not self.composer.text and bool(self.conversation.nodes)
            case "messages" | "copy_reply":
                return not reading and bool(self.conversation.nodes)
            case "branch":
                return (turn := self._turn_meant()) is not None and turn.branch[1] > 1
        return super().check_action(action, parameters)

    @property
    def composer(self) -> Composer:
        """Where the person writes."""
        return self.query_one(Composer)

    # Writing

    @on(Composer.Sent)
    def _sent(self, event: Composer.Sent) -> None:
        if self.composer.editing:
            self._resend(event.text)
        else:
            self.transcript.selected = None
            self.send(event.text)

    def action_stop(self) -> None:
        """End the reply; what there is of it stays."""
        if self.busy:
            self._talker.stop()
        else:
            self._return_queue()

    @on(Left)
    def action_write(self) -> None:
        """Back to the composer."""
        self.transcript.selected = None
        self.composer.focus()

    def action_answer_now(self) -> None:
        """End the thought and go on to the answer."""
        self._talker.answer_now()

    def on_key(self, event: events.Key) -> None:
        """What is typed while reading is meant for the composer, unless it is a key of the transcript."""
        if event.character and event.is_printable and event.key not in self.active_bindings:
            event.stop()
            self.composer.focus()
            self.composer.insert(event.character)

    def on_paste(self, event: events.Paste) -> None:
        """What is pasted while reading is meant for the composer, too."""
        if isinstance(self.focused, Transcript):
            self.composer.focus()
            self.composer.insert(event.text)

    # Reading

    def action_toggle_thoughts(self) -> None:
        """Close all thoughts where any is open, else open all."""
        thoughts = [thought for turn in self.transcript.turns for thought in turn.thoughts]
        opening = not any(thought.open for thought in thoughts)
        for thought in thoughts:
            thought.choose(opening)
        self.transcript.redraw_all()

    def action_scroll_pages(self, pages: int) -> None:
        """Move the transcript by whole pages."""
        self.transcript.scroll_relative(y=pages * max(self.transcript.size.height - 2, 1), animate=False)

    def action_to_start(self) -> None:
        """Show the first turn."""
        self.transcript.scroll_home(animate=False)

    @on(EndMarker.Pressed)
    def action_to_end(self) -> None:
        """Show the last line and follow it."""
        self.transcript.to_end()

    @on(Clicked)
    def _clicked(self, event: Clicked) -> None:
        turn = event.turn
        match event.what:
            case "thought" if turn.thoughts:
                opening = not any(thought.open for thought in turn.thoughts)
                for thought in turn.thoughts:
                    thought.choose(opening)
                self.transcript.redraw(turn, hold=True)
            case "branch":
                self._step(turn, event.value)
            case "code":
                self._copy_code(turn.code, event.value)
            case "save":
                self._save_code(turn.code, event.value)
            case "do":
                self._do(event.value, turn)
            case "link":
                self.app.open_url(event.value)

    # Messages

    def action_messages(self) -> None:
        """Select the last message."""
        self.set_focus(self.transcript)  # at once: the next key is for the transcript

    def action_look_up(self) -> None:
        """Select the last message, from an empty composer."""
        self.action_messages()

    def _do(self, action: str, turn: Turn | None = None) -> None:
        """Do something with a message, by default the chosen one; what cannot be done is told."""
        turn = turn or self._turn_meant()
        node = next((node for node in self.conversation.nodes if turn is not None and node.id == turn.node), None)
        if turn is None or node is None:
            self.notify("There is no message yet", timeout=2)
            return
        if turn is self._turn and action in ("edit_message", "continue_reply", "delete_message"):
            self.notify(UNDER_WAY, timeout=2)
            return
        try:
            match action:
                case "copy_message":
                    content = node.message.content
                    if turn is self._turn and self.conversation.recorder is not None:
                        content = self.conversation.recorder.message.content
                    self._copy(content, "Message" if node.message.role == "user" else "Reply")
                case "copy_thought":
                    self._copy("\n\n".join(thought.text.strip() for thought in turn.thoughts), "Thought")
                case "save_code":
                    self._save_code(turn.code)
                case "regenerate":
                    self._when_free(lambda: self._change(lambda: self.conversation.regenerate(node)))
                case "edit_message":
                    self._editing = node
                    self.composer.begin_edit(node.message.content)
                    self.refresh_bindings()
                case "continue_reply":
                    self._continue(turn, node)
                case "delete_message":
                    self._delete(node)
        except UserError as error:
            self._tell(error)

    def _change(self, asking: Callable[[], object]) -> None:
        """Ask for a reply in a way that changes what is shown."""
        self._ask(asking)
        self._show_changed()
        self.transcript.to_end()

    def action_copy_message(self) -> None:
        """Copy the message."""
        self._do("copy_message")

    def action_copy_thought(self) -> None:
        """Copy the message's thought."""
        self._do("copy_thought")

    def action_regenerate(self) -> None:
        """Ask for another reply, beside the one there is."""
        self._do("regenerate")

    def action_edit_message(self) -> None:
        """Say a message otherwise."""
        self._do("edit_message", self._turn_meant(UserTurn))

    def action_continue_reply(self) -> None:
        """Let the last reply go on."""
        self._do("continue_reply")

    def action_delete_message(self) -> None:
        """Take a message out, with what follows it."""
        self._do("delete_message")

    def action_branch(self, step: int) -> None:
        """Show the branch before or after."""
        turn = self._turn_meant()
        if turn is not None:
            self._step(turn, step)

    def action_leave_message(self) -> None:
        """Leave the message that is being edited as it was."""
        self.composer.end_edit()
        self.refresh_bindings()

    def _resend(self, text: str) -> None:
        """The message that was edited is ready."""
        node = self._editing
        if node is None or text == node.message.content.strip():
            self.action_leave_message()
            return

        self.action_leave_message()
        if node.message.role == "user":
            self._when_free(lambda: self._change(lambda: self.conversation.edit(node, text)))
        else:
            self.conversation.edit(node, text)
            self._show_changed()

    def _continue(self, turn: Turn, node: Node) -> None:
        if not isinstance(turn, ReplyTurn) or node.id != self.conversation.nodes[-1].id:
            self.notify("Only the last reply can go on", timeout=2)
        elif not self.busy:
            self._when_free(lambda: self._ask(lambda: self.conversation.go_on(node), turn))

    def _delete(self, node: Node) -> None:
        if self.busy:
            self.notify(UNDER_WAY, timeout=2)
            return
        following = len(self.conversation.nodes) - self.conversation.nodes.index(node) - 1
        self.conversation.delete(node.id)
        self._show_changed()

        def restore() -> None:
            self.conversation.restore(node.id)
            self._show_changed()
            self.transcript.select(next((one for one in self.transcript.turns if one.node == node.id), None))

        self._deleted = [*self._deleted, restore]
        with_it = f" with {counted(following, 'message')} after it" if following else ""
        self.notify(f"Deleted{with_it}; u brings it back", timeout=4)

    def _step(self, turn: Turn, step: int) -> None:
        """Show a branch beside a message."""
        if turn.node is None or turn.branch[1] < 2:
            return
        if self.busy:
            self.notify(UNDER_WAY, timeout=2)
            return
        try:
            self.conversation.step(turn.node, step)
        except UserError as error:
            self._tell(error)
        self._show_changed()
