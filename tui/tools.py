"""What can be done with one message, on the line under it: each with its key, and by a click."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from ftllm.values import dataclass
from tui.look import Page

GAP = 3


@dataclass(frozen=True)
class Tool:
    """One thing to do with a message.

    Attributes:
        key: while the message is selected.
        label: a word or two.
        action: of the screen, for the message selected.
    """

    key: str
    label: str
    action: str


COPY = Tool("c", "copy", "copy_message")
SAVE = Tool("s", "save code", "save_code")
EDIT = Tool("e", "edit", "edit_message")
AGAIN = Tool("r", "again", "regenerate")
MORE = Tool("m", "more", "continue_reply")
DELETE = Tool("d", "delete", "delete_message")


def tools_line(tools: Sequence[Tool], page: Page, *, keys: bool) -> Strip:
    """The tools in a line, as many as fit.

    Args:
        keys: whether their keys work now, and are shown.
    """
    muted, key = page.look["muted"], page.look["selected"] + Style(bold=True)
    segments: list[Segment] = []
    room = page.width
    for tool in tools:
        meta = Style.from_meta({"do": tool.action})
        parts = [Segment(f"{tool.key} ", key + meta)] if keys else []
        parts.append(Segment(tool.label, muted + meta))
        size = sum(cell_len(part.text) for part in parts) + GAP * bool(segments)
        if size > room:
            break
        room -= size
        segments += [Segment(" " * GAP)] if segments else []
        segments += parts
    return page.frame(Strip(segments))
