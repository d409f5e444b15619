"""What this machine has for llama.cpp: threads and memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

TINY_PARAMETERS = 30_000_000  # below, one token takes about as long as threads take to meet


def allowed_cpus() -> set[int]:
    """The numbers of the logical processors this process may run on."""
    try:
        return os.sched_getaffinity(0)
    except AttributeError:  # macOS, Windows
        return set(range(os.cpu_count() or 1))


def available_cpus() -> int:
    """Logical processors this process may use: its affinity, held to a container's CPU quota (cgroup v2)."""
    allowed = len(allowed_cpus())
    return max(1, min(allowed, _quota() or allowed))


def physical_cores() -> int:
    """Physical cores among the processors this process may use.

    Matrix products saturate a core's vector units, so a core's second hardware thread only adds waiting.
    """
    try:
        siblings = {
            Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
            for cpu in allowed_cpus()
        }
    except OSError:
        return available_cpus()
    return max(1, min(len(siblings), available_cpus()))


def default_threads(n_params: int) -> int:
    """Threads for a model of `n_params` parameters: all physical cores, or one where meeting costs more.

    Threads meet after every operation; on a busy machine two ran a 4 M model six times slower than one.
    """
    return 1 if n_params < TINY_PARAMETERS else physical_cores()


def side_by_side(n_params: int) -> int:
    """How many evaluations of a model to run at once, each with its share of the threads.

    One, which has all the threads; a tiny model, evaluated by one thread, runs once a core.
    """
    return physical_cores() if default_threads(n_params) == 1 else 1


def run_side_by_side(count: int, work: Callable[[int], Generator[None, None, None]]) -> None:
    """Run `work(0)` to `work(count - 1)` to their ends, each in a thread when there are several.

    `work` yields now and then; when one fails, or the person interrupts, the others stop at their next yield, and
    the first failure is raised.
    """
    if count == 1:
        for _ in work(0):
            pass
        return
    stop = Event()

    def run(number: int) -> None:
        steps = work(number)
        try:
            for _ in steps:
                if stop.is_set():
                    return
        except BaseException:
            stop.set()
            raise
        finally:
            steps.close()

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(run, number) for number in range(count)]
        try:
            for future in futures:
                future.result()
        finally:
            stop.set()


def _quota() -> int | None:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else max(1, round(int(quota) / int(period)))
    except (OSError, ValueError):
        return None


def available_memory() -> int:
    """Bytes of memory that can be had without swapping, a container's limit included (cgroup v2); 0 where unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return 0
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = int((group / "memory.max").read_text()), int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return min(free, limit - used + int(stat["file"]))
    except (OSError, ValueError, KeyError):  # no such group, or no limit
        return free
