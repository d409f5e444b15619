"""The application, and how it is started on an engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar

from textual.app import App
from textual.binding import Binding, BindingType
from textual.command import Provider

from ftllm.chat.options import ChatOptions
from ftllm.chat.remote import Target
from ftllm.chat.store import Store, open_store
from ftllm.chat.voice import Voice
from ftllm.errors import UserError
from tui.inbox import Inbox
from tui.screens.chat import ChatScreen
from tui.talker import Talker


def _commands() -> type[Provider]:
    from tui.palette import CommandProvider

    return CommandProvider


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
    COMMANDS: ClassVar[set[type[Provider] | Callable[[], type[Provider]]]] = {_commands}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+q", "quit", "Quit", priority=True),
        Binding("f9", "toggle_dark", "Change between light and dark", show=False),
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

        if theme := (options.defaults.values.get("theme") if options.defaults else None):
            if theme not in self.available_themes:
                raise UserError(
                    f"{options.defaults.path}: there is no theme {theme}",  # type: ignore[union-attr]
                    f"there are {', '.join(sorted(self.available_themes))}",
                )
            self.theme = str(theme)

    def get_default_screen(self) -> ChatScreen:
        """The application opens on its conversation."""
        return self._conversation

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The palette is for the conversation, not for what lies over it."""
        if action == "command_palette":
            return self.screen is self._conversation
        return super().check_action(action, parameters)

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
