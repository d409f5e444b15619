"""The application, and how it is started on an engine."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import ClassVar

from textual.app import App
from textual.binding import Binding, BindingType
from textual.command import Provider
from textual.css.query import NoMatches

from ftllm.chat.defaults import default_path, read_defaults
from ftllm.chat.events import Failed, StateSaved
from ftllm.chat.options import ChatOptions
from ftllm.chat.remote import Target, lasting
from ftllm.chat.states import prune
from ftllm.chat.store import Store, memory_store, open_store
from ftllm.chat.voice import Voice
from ftllm.errors import UserError
from ftllm.start import START
from tui.clipboard import give_to_helper, has_browser, takes_osc52
from tui.inbox import Inbox
from tui.screens.chat import ChatScreen
from tui.setup import Setup
from tui.text import without_controls

STATE_SECONDS = 15.0
"""How long leaving waits for what the model has read to be written; a gigabyte takes one or two."""

LATER = 0.4
"""Seconds after the start, for what is not needed at once: the first keys typed do not wait for it."""


def _commands() -> type[Provider]:
    from tui.palette import CommandProvider

    return CommandProvider


def _settle() -> None:
    """Import what draws Markdown; all that a start needs is there then, and remembered for the next one."""
    import tui.document  # noqa: F401

    START.end(write=True)


class ChatApp(App[None]):
    """A conversation in the terminal.

    Args:
        setup: whom one talks to, and what surrounds that.
    """

    TITLE = "ftllm"
    CSS_PATH = "chat.tcss"
    COMMANDS: ClassVar[set[type[Provider] | Callable[[], type[Provider]]]] = {_commands}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+q", "quit", "Quit", priority=True),
        Binding("f9", "toggle_dark", "Change between light and dark", show=False),
    ]

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.conversation = ChatScreen(setup)
        self._warned_of = ""  # what was written when Ctrl+C was pressed
        defaults = setup.options.defaults
        if defaults is not None and (theme := defaults.values.get("theme")):
            if theme not in self.available_themes:
                raise UserError(
                    f"{defaults.path}: there is no theme {theme}",
                    f"there are {', '.join(sorted(self.available_themes))}",
                )
            self.theme = str(theme)

    def on_mount(self) -> None:
        """Finish the start soon; hear of it when the program is stopped or to end."""
        self.set_timer(LATER, Thread(target=_settle, daemon=True).start)
        if not self.is_headless and hasattr(signal, "SIGCONT"):
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGCONT, self._take_terminal)
            loop.add_signal_handler(signal.SIGHUP, self._hang_up)
            loop.add_signal_handler(signal.SIGTERM, self._end)

    def _take_terminal(self) -> None:
        """Take the terminal anew, for a shell has had it.

        Textual's own handler would start its threads a second time, the first of which never end.
        """
        with self.suspend():
            pass

    def _hang_up(self) -> None:
        """The terminal is gone, and with it every way to leave in order: keep what is written, and end on the spot."""
        with suppress(NoMatches):  # there is no screen yet
            self.conversation.leave()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGHUP)

    def _end(self) -> None:
        """Leave, and keep what there is to go on with."""
        with suppress(NoMatches):  # there is no screen yet
            self.conversation.leave()
        self.exit()

    def get_default_screen(self) -> ChatScreen:
        """The application opens on its conversation."""
        return self.conversation

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The palette is for the conversation, not for what lies over it."""
        if action == "command_palette":
            return self.screen is self.conversation
        return super().check_action(action, parameters)

    def copy_to_clipboard(self, text: str, what: str = "Selection") -> None:
        """Into the clipboard, by the terminal and by what the machine has; `what` is told to be there."""
        clean = without_controls(text)
        super().copy_to_clipboard(clean)
        if give_to_helper(clean, os.environ) or takes_osc52(os.environ):
            self.notify(f"{what} copied", timeout=2)
        else:
            self.notify(
                f"{what} copied in here only: this terminal has no clipboard for programs; x exports, s saves code",
                severity="warning",
            )

    def open_url(self, url: str, *, new_tab: bool = True) -> None:
        """In the person's browser; where there is none, the address goes to the clipboard."""
        if has_browser(os.environ):
            super().open_url(url, new_tab=new_tab)
        else:
            self.copy_to_clipboard(url, "Address")

    async def action_quit(self) -> None:
        """Leave; the session is kept to be gone on with."""
        self._end()

    def action_help_quit(self) -> None:
        """Ctrl+C with nothing selected leaves, as it does elsewhere in a terminal; what is written is asked about."""
        written, self._warned_of = self._warned_of, self.conversation.composer.text.strip()
        if self._warned_of and self._warned_of != written:
            self.notify("Ctrl+C again leaves without sending what you have written", severity="warning")
            return
        self._end()

    def action_toggle_dark(self) -> None:
        """Change between light and dark."""
        self.theme = "textual-light" if self.current_theme.dark else "textual-dark"


def run_chat(model: Target, options: ChatOptions) -> int:
    """Talk to a model until the person leaves.

    The composer is there at once; the model loads behind it.

    Returns:
        the program's exit code.
    """
    options = replace(options, defaults=options.defaults or read_defaults(default_path()))
    model = lasting(model)
    inbox = Inbox()
    store, notice = _store()
    with Voice(inbox.put) as voice, store:
        voice.load(model, options.load)
        app = ChatApp(Setup(voice, inbox, store, model, options, notice=notice))
        app.run()
        if app.conversation.saving:
            _wait_for_state(inbox)
    return app.return_code or 0


def _store() -> tuple[Store, str]:
    """Where chats are kept; where that cannot be opened, a store in memory, and why."""
    try:
        return open_store(), ""
    except UserError as error:
        why = "\n".join(filter(None, [error.message, error.hint]))
        return memory_store(), f"{why}\nWhat is said now is gone when you leave, unless you export it."


def _wait_for_state(inbox: Inbox) -> None:
    """Until what the model has read is in its file; Ctrl-C does without."""
    began, told = time.monotonic(), False
    with suppress(KeyboardInterrupt):
        while (waited := time.monotonic() - began) < STATE_SECONDS:
            for event in inbox.drain():
                if isinstance(event, StateSaved) and not event.error:
                    prune(Path(event.path))
                if isinstance(event, StateSaved | Failed):
                    return
            if waited > 1 and not told:
                told = True
                print("keeping what the model has read, so that the session goes on at once (Ctrl-C: do not)")
            time.sleep(0.02)
