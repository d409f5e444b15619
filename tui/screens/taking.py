"""What is taken out of the conversation: into the clipboard, into files, to the browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from ftllm.chat import store as chats
from ftllm.errors import UserError
from tui.markdown import CodeBlock, links
from tui.screens.sessions import SessionsScreen
from tui.text import counted, file_name
from tui.turns import ReplyTurn, Turn

if TYPE_CHECKING:
    from tui.app import ChatApp


class TakingScreen(SessionsScreen):
    """Takes from the message selected, while one is, else from the last reply."""

    def _turn_meant(self, kind: type[Turn] = ReplyTurn) -> Turn | None:
        """The message that keys act on: the selected one, or the last of a kind."""
        transcript = self.transcript
        if self.focused is transcript and transcript.selected is not None:
            return transcript.selected
        return next((turn for turn in reversed(transcript.turns) if isinstance(turn, kind)), None)

    def action_copy_reply(self) -> None:
        """Copy the last reply, without its thought."""
        replies = [message.content for message in self.conversation.messages if message.role == "assistant"]
        if self.conversation.recorder is not None:
            replies.append(self.conversation.recorder.message.content)
        self._copy(next((reply for reply in reversed(replies) if reply), ""), "Reply")

    def action_copy_code(self, number: int | str = 0) -> None:
        """Copy a block of code, by its number on the screen; 0 is the last."""
        turn = self._turn_meant()
        self._copy_code(turn.code if turn is not None else [], _number(number))

    def action_save_code(self, number: str = "") -> None:
        """Write a block of code to a file."""
        turn = self._turn_meant()
        self._save_code(turn.code if turn is not None else [], _number(number))

    def action_open_link(self) -> None:
        """Open a web page that the message names; where it names several, one that is picked."""
        turn = self._turn_meant()
        named = links("\n\n".join(turn.answer)) if isinstance(turn, ReplyTurn) else []
        if not named:
            self.notify("There is no link here", timeout=2)
        elif len(named) == 1:
            self.app.open_url(named[0])
        else:
            from tui.screens.picking import PickScreen, Row

            rows = [Row(link, (link,)) for link in named]
            self.app.push_screen(PickScreen("Open a link", ("address",), rows), self._open)

    def _open(self, link: str | None) -> None:
        if link is not None:
            self.app.open_url(link)

    def action_export(self, name: str = "") -> None:
        """Write the session to a file."""
        from tui.screens.path import PathScreen, Writing

        info = self.conversation.info
        if info is None:
            self.notify("There is nothing to export yet", timeout=2)
            return
        title, store = chats.get_session(self.conversation.store, info.id).title, self.conversation.store

        def write(path: Path) -> None:
            chats.export_session(store, info.id, path)

        path = Path(name).expanduser().absolute()
        if name and not path.exists():
            write(path)
            self._written(path)
            return
        things = [
            Writing("Markdown: the branch that is shown", name or file_name(title, ".md"), write),
            Writing("JSON: every branch, to be imported again", file_name(title, ".json"), write),
        ]
        self.app.push_screen(PathScreen("Export the session", things), self._written)

    # Out of here

    def _copy(self, text: str, what: str) -> None:
        """To the clipboard."""
        if not text:
            self.notify(f"There is no {what.lower()} to copy", timeout=2)
            return
        cast("ChatApp", self.app).copy_to_clipboard(text, what)

    def _copy_code(self, blocks: list[CodeBlock], number: int = 0) -> None:
        if not blocks or number > len(blocks):
            self._no_code(number)
            return
        number = number or len(blocks)
        self._copy(blocks[number - 1].code, f"Code {number}")

    def _no_code(self, number: int) -> None:
        self.notify(f"There is no block of code{f' {number}' if number else ''} here", timeout=2)

    def _save_code(self, blocks: list[CodeBlock], number: int = 0) -> None:
        """Ask where to, and write a block of code there."""
        from tui.screens.path import PathScreen, Writing

        if not blocks or number > len(blocks):
            self._no_code(number)
            return
        things = [
            Writing(
                f"block {place} ({block.language or 'text'}, {counted(block.code.count(chr(10)) + 1, 'line')})",
                file_name(f"code-{place}", block.suffix),
                lambda path, block=block: chats.save_code(path, block.code),  # type: ignore[misc]
            )
            for place, block in enumerate(blocks, 1)
        ]
        self.app.push_screen(PathScreen("Save code", things, (number or len(blocks)) - 1), self._written)

    def _written(self, path: Path | None) -> None:
        if path is not None:
            self.notify(f"Written: {path}", timeout=6)


def _number(text: int | str) -> int:
    """A block's number as a person gives it, 0 where they give none."""
    if isinstance(text, str) and text and not text.isdecimal():
        raise UserError(f"{text} is no number", "blocks of code have theirs in their upper right corner")
    return int(text or 0)
