"""What the transcript tells the screen."""

from __future__ import annotations

from typing import Any

from textual.message import Message

from ftllm.values import dataclass
from tui.turns import Turn


class Moved(Message):
    """The end has come into view or left it."""


class Left(Message):
    """The person went down past the last message."""


@dataclass
class Clicked(Message):
    """Something in a turn was clicked.

    Its `thought`, a `branch` step, a block of `code` to copy or `save`, a `link`, or a tool that says what to `do`.
    """

    turn: Turn
    what: str
    value: Any
