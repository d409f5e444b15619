"""The same pure function of many numbers, spread over this machine's cores."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from ftllm.errors import WorkError

T = TypeVar("T")
LEAST = 5000  # calls; fewer are done before the processes would be there
CHUNK = 64  # calls a process is given at once
_function: Callable[[int], Any] | None = None  # what the children were forked with


def spread(function: Callable[[int], T], count: int, processes: int) -> Iterator[T]:
    """`function` of 0 to `count - 1`, in this order, whoever comes to it first.

    Several processes work where that is worth it and the system can fork, so that they see what `function` refers to
    without a copy of it. What a call raises is raised here, and ends the others.

    Args:
        function: of its number alone; it uses neither torch nor what a lock guards.
        count: of the calls.
        processes: how many may work at once.

    Raises:
        WorkError: a process was killed.
    """
    if processes < 2 or count < LEAST or not sys.platform.startswith("linux"):
        yield from map(function, range(count))
        return
    global _function
    _function = function
    gc.freeze()  # so that no collection in a child touches, and so copies, what they share
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_begin)
    try:
        yield from pool.map(_call, range(count), chunksize=CHUNK)
    except BrokenProcessPool:
        raise WorkError(
            "a process that rendered rows was killed", "the memory may be full: close other programs, or give less data"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
        gc.unfreeze()
        _function = None


def cores() -> int:
    """How many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform.startswith("linux") else os.cpu_count() or 1


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends the others
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _call(number: int) -> Any:
    assert _function is not None
    return _function(number)
