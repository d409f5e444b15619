"""What one chooses from."""

from __future__ import annotations

from textual.widgets import OptionList

from tui.steady import Steadily


class Options(Steadily, OptionList):
    """A list, whatever is in its lines."""
