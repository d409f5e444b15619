"""Ctrl-C and SIGTERM: a checkpoint, and how to go on from it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from ftllm.progress import Reporter
from ftllm.runs import Run
from ftllm.train import checkpoints
from ftllm.train.processes import Processes, gone, how_to_go_on, speaks_for_all

PATIENCE = 20.0  # seconds; the launcher kills after 30


class Interrupted(KeyboardInterrupt):
    """Stopped by Ctrl-C or SIGTERM, with a checkpoint saved."""


@contextmanager
def stopping(reporter: Reporter, run: Run, processes: Processes) -> Iterator[Callable[[], bool]]:
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
        with _leaving(run, processes) if processes.count > 1 else nullcontext():
            yield lambda: bool(asked)
    except Exception:
        if processes.count > 1:  # the launcher may be about to end this one too, which still has something to say
            before[signal.SIGTERM] = signal.SIG_IGN
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _leaving(run: Run, processes: Processes) -> Iterator[None]:
    """While inside, a SIGTERM that does not lead out of here in time ends this process with one line.

    It then waits, inside a library, for a process that is gone or stuck, which NCCL never notices and gloo not always.
    Another thread sees to it, since the main one may not come back from there to handle a signal.
    """
    left = threading.Event()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def watch() -> None:
        while number := os.read(reading, 1):
            if number[0] == signal.SIGTERM and not left.wait(PATIENCE):
                if speaks_for_all(run):
                    error = gone(run, processes)
                    print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr, flush=True)
                os._exit(1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        os.close(writing)
        thread.join()
        os.close(reading)


def say_how_to_go_on(run: Run, reporter: Reporter, processes: Processes) -> None:
    """Name the checkpoint that is there, and the command that goes on from it."""
    found = checkpoints.latest(run.checkpoints, reporter.warn)
    where = f"a checkpoint of step {found[0]} is saved" if found else "there is no checkpoint yet"
    command = how_to_go_on(run, processes)
    reporter.say(f"{where}; go on with: {command}")
    reporter.event("interrupted", run=str(run.path), step=found[0] if found else 0, resume=command)
