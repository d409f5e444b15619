"""Ctrl-C and SIGTERM: a checkpoint, and how to go on from it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ftllm.progress import Reporter
from ftllm.runs import DEFAULT_RUNS, Run
from ftllm.train import checkpoints


class Interrupted(KeyboardInterrupt):
    """Stopped by Ctrl-C or SIGTERM, with a checkpoint saved."""


@contextmanager
def stopping(reporter: Reporter) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C or SIGTERM asked to stop; a second one stops at once."""
    asked: list[int] = []

    def handle(number: int, _frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        # Said from another thread: the signal may have come while this one was half-way through printing a line.
        words = "stopping after this step; Ctrl-C again stops at once, without a checkpoint"
        threading.Thread(target=reporter.say, args=(words,), daemon=True).start()

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say_how_to_go_on(run: Run, reporter: Reporter) -> None:
    """Name the checkpoint that is there, and the command that goes on from it."""
    found = checkpoints.latest(run.checkpoints, reporter.warn)
    where = f"a checkpoint of step {found[0]} is saved" if found else "there is no checkpoint yet"
    command = how_to_go_on(run)
    reporter.say(f"{where}; go on with: {command}")
    reporter.event("interrupted", run=str(run.path), step=found[0] if found else 0, resume=command)


def how_to_go_on(run: Run) -> str:
    """The command that resumes a run."""
    place = "" if run.path.parent == DEFAULT_RUNS.resolve() else f" --runs {run.path.parent}"
    return f"ftllm train --resume --name {run.name}{place}"
