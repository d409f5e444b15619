"""The same pure function of many things, spread over this machine's cores."""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ftllm.errors import WorkError

A = TypeVar("A")
T = TypeVar("T")
LEAST = 5000  # calls; fewer are done before the processes would be there
MOST = 8  # processes; each reads its own tokenizer, which of a large vocabulary takes memory
CHUNK = 64  # calls a process is given at once
# `multiprocessing` would import the parent's main script, which need not be made for it.
PROGRAM = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); from ftllm.train.spread import serve; serve()"
)


def spread(function: Callable[[A], T], items: Sequence[A], processes: int) -> Iterator[T]:
    """`function` of each of `items`, in their order, whoever comes to it first.

    Several processes work where that is worth it. They start afresh and are sent the function and their items, for a
    process with threads, as one that imported torch is, cannot be forked safely. What a call raises is raised here, and
    ends the others.

    Args:
        function: can be pickled, with what it refers to.
        items: can be pickled one by one.
        processes: how many may work at once.

    Raises:
        WorkError: a process was killed.
    """
    processes = min(processes, MOST)
    if processes < 2 or len(items) < LEAST:
        yield from map(function, items)
        return
    sent = pickle.dumps(function)
    workers = [_Worker(sent) for _ in range(processes)]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def work(start: int) -> list[T]:
        worker = idle.get()
        try:
            found: list[T] = worker(items[start : start + CHUNK])
            return found
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(processes)
    try:
        for found in threads.map(work, range(0, len(items), CHUNK)):
            yield from found
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.end()
        threads.shutdown()


def cores() -> int:
    """How many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform.startswith("linux") else os.cpu_count() or 1


class _Worker:
    """A process that calls a function of what it is sent; it ends with its parent, whose pipe it reads."""

    def __init__(self, function: bytes) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
            start_new_session=True,  # Ctrl-C goes to the parent alone
        )
        self._function = function
        self._begun = False

    def __call__(self, items: Sequence[Any]) -> list[Any]:
        """The function of each item.

        Raises:
            WorkError: the process was killed.
            Exception: what a call raised.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            if not self._begun:
                self._begun = True
                pickle.dump(sys.path, stdin)
                pickle.dump(self._function, stdin)
            pickle.dump(items, stdin)
            stdin.flush()
            found, raised = pickle.load(stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise WorkError(
                "a process that rendered rows was killed",
                "the memory may be full: close other programs, or give less data",
            ) from error
        if raised is not None:
            raise raised
        return list(found)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def serve() -> None:
    """What such a process does, to the end of its input; `PROGRAM` calls it."""
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # nothing that a library prints may come between
        stdin = sys.stdin.buffer
        function = pickle.loads(pickle.load(stdin))
        while True:
            try:
                items = pickle.load(stdin)
            except EOFError:
                return
            answer: tuple[list[Any] | None, Exception | None]
            try:
                answer = list(map(function, items)), None
            except Exception as error:
                answer = None, error
            pickle.dump(answer, answers)
            answers.flush()
