"""The conversation: what can be done by key and mouse."""

from __future__ import annotations

from typing import ClassVar

from textual import events, on
from textual.binding import Binding, BindingType

from tui.screens.choosing import ChoosingScreen
from tui.text import without_controls
from tui.widgets.composer import Composer
from tui.widgets.transcript import Clicked, EndMarker


class ChatScreen(ChoosingScreen):
    """One conversation with one model, and its keys."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop", tooltip="Stop the reply and keep what there is; take queued messages back"),
        Binding("escape", "write", "Write", show=False, tooltip="Go back to writing"),
        Binding("ctrl+n", "answer_now", "Answer now", priority=True, tooltip="End the thought and answer"),
        Binding("ctrl+t", "toggle_thoughts", "Thoughts", priority=True, tooltip="Open or close all thoughts"),
        Binding("ctrl+o", "copy_reply", "Copy", priority=True, tooltip="Copy the last reply to the clipboard"),
        Binding("pageup", "scroll_pages(-1)", "Scroll up", show=False, priority=True),
        Binding("pagedown", "scroll_pages(1)", "Scroll down", show=False, priority=True),
        Binding("ctrl+home", "to_start", "Go to the start", show=False, priority=True),
        Binding("ctrl+end", "to_end", "Go to the end and follow it", show=False, priority=True),
    ]

    # Actions

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer only what can be done now."""
        if action == "stop":
            return self.busy or bool(self._queue)
        if action == "answer_now":
            return self._turn is not None and self._turn.live_thought is not None
        return super().check_action(action, parameters)

    def action_stop(self) -> None:
        """End the reply; what there is of it stays."""
        if self.busy:
            self._talker.stop()
        else:
            self._return_queue()

    def action_write(self) -> None:
        """Back to the composer."""
        self.query_one(Composer).focus()

    def action_answer_now(self) -> None:
        """End the thought and go on to the answer."""
        self._talker.answer_now()

    def action_toggle_thoughts(self) -> None:
        """Close all thoughts where any is open, else open all."""
        thoughts = [thought for turn in self.transcript.turns for thought in turn.thoughts]
        opening = not any(thought.open for thought in thoughts)
        for thought in thoughts:
            thought.choose(opening)
        self.transcript.redraw_all()

    def action_copy_reply(self) -> None:
        """The last reply, without its thought, to the clipboard."""
        replies = [message.content for message in self.conversation.messages if message.role == "assistant"]
        if self.conversation.recorder is not None:
            replies.append(self.conversation.recorder.message.content)
        text = next((reply for reply in reversed(replies) if reply), "")
        if text:
            self.app.copy_to_clipboard(without_controls(text))
            self.notify("Reply copied", timeout=2)
        else:
            self.notify("There is no reply to copy yet", timeout=2)

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

    def on_key(self, event: events.Key) -> None:
        """What is typed while reading is meant for the composer, unless it is a key of the transcript."""
        if event.character and event.is_printable and event.key not in self.active_bindings:
            event.stop()
            composer = self.query_one(Composer)
            composer.focus()
            composer.insert(event.character)

    @on(Clicked)
    def _clicked(self, event: Clicked) -> None:
        if event.what == "thought" and event.turn.thoughts:
            opening = not any(thought.open for thought in event.turn.thoughts)
            for thought in event.turn.thoughts:
                thought.choose(opening)
            self.transcript.redraw(event.turn, hold=True)
        elif event.what == "link":
            self.app.open_url(event.value)
