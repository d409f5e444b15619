"""Two ways for work to end badly, each shown as one line and a hint, never a traceback."""

from __future__ import annotations


class UserError(Exception):
    """The person gave something wrong. The command line prints it and exits with code 2.

    Args:
        message: what is wrong and where (`file:line` when there is one), on one line.
        hint: what to do about it, on one line; empty when there is nothing useful to add.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class WorkError(UserError):
    """The work itself failed: disk full, download cut, worker killed. Exit code 1."""

    exit_code = 1
