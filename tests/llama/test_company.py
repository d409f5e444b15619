"""How many threads evaluate beside other programs."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

from ftllm.llama.company import WINDOW, Company, others_seconds


class Machine:
    """Processor seconds of other programs, and the clock, as a test wants them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.used: float | None = 0.0

    def run(self, seconds: float, others: float) -> None:
        self.now += seconds
        if self.used is not None:
            self.used += seconds * others

    def company(self, wanted: int, cpus: int) -> Company:
        return Company(wanted, lambda: self.used, lambda: self.now, cpus)


def follow(machine: Machine, company: Company, others: list[float]) -> list[int]:
    found = []
    for cores in others:
        machine.run(1.0, cores)
        found.append(company.look())
    return found


def test_a_thread_goes_when_its_core_is_taken_and_comes_back_with_it() -> None:
    machine = Machine()
    company = machine.company(wanted=2, cpus=2)
    assert follow(machine, company, [0.0, 0.4, 0.6, 1.0, 0.4, 0.2, 0.0]) == [2, 2, 1, 1, 1, 2, 2]


def test_as_many_go_as_cores_are_taken_but_one_stays() -> None:
    machine = Machine()
    company = machine.company(wanted=4, cpus=4)
    assert follow(machine, company, [1.0, 3.0, 4.0, 2.0, 0.1]) == [3, 1, 1, 2, 4]


def test_free_hardware_threads_take_the_others() -> None:
    machine = Machine()
    company = machine.company(wanted=4, cpus=8)
    assert follow(machine, company, [3.0, 4.4, 6.0]) == [4, 4, 2]


def test_nothing_changes_within_a_window_or_for_what_was_before() -> None:
    machine = Machine()
    company = machine.company(wanted=2, cpus=2)
    machine.run(WINDOW / 2, 2.0)
    assert company.look() == 2
    company.begin()
    machine.run(2 * WINDOW, 0.0)
    assert company.look() == 2


@pytest.mark.parametrize("later", [None, 5.0])
def test_where_nobody_knows_all_threads_stay(later: float | None) -> None:
    machine = Machine()
    machine.used = None
    company = machine.company(wanted=2, cpus=2)
    machine.now, machine.used = 5.0, later
    assert company.look() == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/stat")
def test_a_busy_program_counts_and_this_one_does_not() -> None:
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})  # of other tests beside this one, and of what the busy program may take
    try:
        alone = "import time\nend = time.monotonic() + 30\nwhile time.monotonic() < end: pass"
        with subprocess.Popen([sys.executable, "-c", alone]) as busy:
            try:
                before, theirs = others_seconds(), psutil.Process(busy.pid).cpu_times().user
                time.sleep(1.0)
                after, theirs = others_seconds(), psutil.Process(busy.pid).cpu_times().user - theirs
                assert before is not None
                assert after is not None
                assert after - before > 0.9 * theirs > 0
            finally:
                busy.kill()

        def spin(seconds: float) -> None:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                pass

        before, used = others_seconds(), time.process_time()
        assert before is not None
        begun = time.monotonic()
        spin(1.0)
        after = others_seconds()
        assert after is not None
        mine, passed = time.process_time() - used, time.monotonic() - begun
        assert after - before < passed - mine + 0.1
    finally:
        os.sched_setaffinity(0, cpus)
