"""When a process hangs, with a clock that is moved by hand."""

from __future__ import annotations

import os
import subprocess
import sys

from ftllm.chat.watch import Patience, Watch, work_of


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_process_that_works_is_given_time() -> None:
    clock = Clock()
    watch = Watch(Patience(idle=60, silent=600, stop=30), clock)
    for work in range(59):
        clock.now += 10
        assert watch.complaint(work) == ""
    clock.now += 20
    assert watch.complaint(1000) == "gave no sign for 10 minutes"


def test_one_that_does_nothing_is_not() -> None:
    clock = Clock()
    watch = Watch(Patience(idle=60, silent=600, stop=30), clock)
    clock.now += 59
    assert watch.complaint(5) == ""  # it worked meanwhile
    clock.now += 59
    assert watch.complaint(5) == ""
    watch.heard()
    clock.now += 59
    assert watch.complaint(5) == ""
    clock.now += 2
    assert watch.complaint(5) == "did nothing for 60 seconds"
    assert watch.complaint(None) == ""  # where that cannot be told


def test_one_that_does_not_stop_is_not_either() -> None:
    clock = Clock()
    watch = Watch(Patience(idle=60, silent=600, stop=30), clock)
    watch.stop_asked()
    for work in range(3):
        clock.now += 10
        watch.heard()
        assert watch.complaint(work) == ""
    clock.now += 1
    assert watch.complaint(9) == "did not stop within 30 seconds"
    watch.stopped()
    assert watch.complaint(10) == ""


def test_work_is_seen_from_outside() -> None:
    program = "import sys\nfor line in sys.stdin: print(sum(i * i for i in range(2_000_000)), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        before = work_of(child.pid)
        print(file=child.stdin, flush=True)
        child.stdout.readline()
        after = work_of(child.pid)
        child.stdin.close()
    assert before is not None
    assert after is not None
    assert after > before
    assert work_of(2**22 + os.getpid()) is None
