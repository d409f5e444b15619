"""The application, and how it is started on an engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar

from textual.app import App
from textual.binding import Binding, BindingType

from ftllm.chat.options import ChatOptions
from ftllm.chat.remote import Target
from ftllm.chat.store import Store, open_store
from ftllm.chat.voice import Voice
from tui.inbox import Inbox
from tui.screens.chat import ChatScreen
from tui.talker import Talker


class ChatApp(App[None]):
    """A conversation in the terminal.

    Args:
        talker: the engine, already told to load the model.
        inbox: where the engine leaves its events.
        store: where conversations are kept.
        model: the model.
        options: how it was loaded and how replies are made.
        clock: seconds, for what is timed on the screen.
    """

    TITLE = "ftllm"
    CSS_PATH = "chat.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+q", "quit", "Quit", priority=True),
        Binding("f2", "toggle_dark", "Light or dark", show=False),
    ]

    def __init__(
        self,
        talker: Talker,
        inbox: Inbox,
        store: Store,
        model: Target,
        options: ChatOptions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._conversation = ChatScreen(talker, inbox, store, model, options, clock)

    def get_default_screen(self) -> ChatScreen:
        """The application opens on its conversation."""
        return self._conversation

    def action_help_quit(self) -> None:
        """Ctrl+C with nothing selected leaves, as it does elsewhere in a terminal."""
        self.exit()

    def action_toggle_dark(self) -> None:
        """Change between light and dark."""
        self.theme = "textual-light" if self.current_theme.dark else "textual-dark"


def run_chat(model: Target, options: ChatOptions) -> int:
    """Talk to a model until the person leaves.

    The composer is there at once; the model loads behind it.

    Returns:
        the program's exit code.
    """
    inbox = Inbox()
    with Voice(inbox.put) as voice, open_store() as store:
        voice.load(model, options.load)
        app = ChatApp(voice, inbox, store, model, options)
        app.run()
    return app.return_code or 0
