"""A reply as plain text: the answer on one stream, the thought dimmed on another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TextIO

from ftllm.chat.events import (
    AnyEvent,
    Done,
    Failed,
    Loaded,
    LoadProgress,
    PromptProgress,
    TextDelta,
    ThinkDelta,
    ThinkEnd,
    ThinkStart,
)
from ftllm.chat.session import thought_title
from ftllm.visible import visible

DIM, PLAIN, ERASE = "\x1b[2m", "\x1b[0m", "\r\x1b[K"


class Printer:
    """Prints a reply's events as they come.

    The answer goes to `out` exactly as it is where that is a file or a pipe, made `visible` where it is a terminal,
    without surrounding white space, with one newline at its end. Thoughts and what is going on go to `err`.

    Args:
        thoughts: print thoughts.
        environment: for NO_COLOR and TERM.
        quiet: do not say where the model's layers are.
        verbose: say it even where there is no choice, on a machine without a GPU.
    """

    def __init__(
        self,
        out: TextIO,
        err: TextIO,
        *,
        thoughts: bool,
        environment: Mapping[str, str],
        quiet: bool = False,
        verbose: bool = False,
    ) -> None:
        self._out, self._err = out, err
        self._quiet, self._verbose = quiet, verbose
        self._thoughts = thoughts
        self._out_terminal, self._err_terminal = out.isatty(), err.isatty()
        dims = self._err_terminal and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"
        self._dim, self._plain = (DIM, PLAIN) if dims else ("", "")
        self._space = ""  # white space that belongs to the answer only when more follows
        self._answered = False
        self._line_open = False  # the thought's last line has no newline yet
        self._status = False

    def __call__(self, event: AnyEvent) -> None:
        """Print what there is to print of one event."""
        match event:
            case LoadProgress():
                self._show_status(f"loading {event.fraction:.0%}")
            case PromptProgress() if 0 < event.done < event.total:
                self._show_status(f"reading {event.done} of {event.total} tokens")
            case Loaded():
                self._clear_status()
                if not self._quiet and (self._verbose or "GPU" in event.placement):
                    self._err.write(f"{event.placement}; a context of {event.n_ctx} tokens\n")
            case PromptProgress():
                self._clear_status()
            case ThinkStart() if self._thoughts:
                self._clear_status()
                if self._answered:
                    self._end_answer()
            case ThinkDelta() if self._thoughts:
                self._print_thought(event.text)
            case ThinkEnd() if self._thoughts:
                self._print_thought(("\n" if self._line_open else "") + thought_title(event.seconds) + "\n")
            case TextDelta():
                self._clear_status()
                self._print_answer(event.text)
            case Done() | Failed():
                self._clear_status()
                if self._line_open:
                    self._print_thought("\n")
                if self._answered:
                    self._end_answer()
            case _:
                pass

    def _print_thought(self, text: str) -> None:
        shown = visible(text) if self._err_terminal else text
        self._err.write(f"{self._dim}{shown}{self._plain}")
        self._err.flush()
        self._line_open = not text.endswith("\n")

    def _print_answer(self, text: str) -> None:
        text = self._space + text
        body = text.rstrip()
        self._space = text[len(body) :]
        if not self._answered:
            body = body.lstrip()
            if not body:
                self._space = ""
                return
        self._out.write(visible(body) if self._out_terminal else body)
        self._out.flush()
        self._answered |= bool(body)

    def _end_answer(self) -> None:
        self._out.write("\n")
        self._out.flush()
        self._space, self._answered = "", False

    def _show_status(self, text: str) -> None:
        if self._err_terminal and self._dim:
            self._err.write(f"{ERASE}{self._dim}{text}{self._plain}")
            self._err.flush()
            self._status = True

    def _clear_status(self) -> None:
        if self._status:
            self._err.write(ERASE)
            self._err.flush()
            self._status = False
