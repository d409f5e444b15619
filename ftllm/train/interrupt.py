"""Ctrl-C and SIGTERM: a checkpoint, and how to go on from it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ftllm.progress import Reporter
from ftllm.runs import Run
from ftllm.train import checkpoints
from ftllm.train.processes import Processes, how_to_go_on


class Interrupted(KeyboardInterrupt):
    """Stopped by Ctrl-C or SIGTERM, with a checkpoint saved."""


@contextmanager
def stopping(reporter: Reporter, processes: Processes) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C or SIGTERM asked to stop.

    A second one stops at once; but not one of several processes, to which the launcher passes a terminal's Ctrl-C on
    a second time, and which it kills itself if it takes too long.
    """
    asked: list[int] = []

    def handle(number: int, _frame: Any) -> None:
        if asked and processes.count == 1:
            raise KeyboardInterrupt
        asked.append(number)
        if len(asked) > 1:
            return
        # Said from another thread: the signal may have come while this one was half-way through printing a line.
        words = "stopping after this step"
        words += "; Ctrl-C again stops at once, without a checkpoint" if processes.count == 1 else ""
        threading.Thread(target=reporter.say, args=(words,), daemon=True).start()

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    except Exception:
        if processes.count > 1:  # the launcher may be about to end this one too, which still has something to say
            before[signal.SIGTERM] = signal.SIG_IGN
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say_how_to_go_on(run: Run, reporter: Reporter, processes: Processes) -> None:
    """Name the checkpoint that is there, and the command that goes on from it."""
    found = checkpoints.latest(run.checkpoints, reporter.warn)
    where = f"a checkpoint of step {found[0]} is saved" if found else "there is no checkpoint yet"
    command = how_to_go_on(run, processes)
    reporter.say(f"{where}; go on with: {command}")
    reporter.event("interrupted", run=str(run.path), step=found[0] if found else 0, resume=command)
