"""Processes that are forked from one which has imported what they need."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ftllm.errors import WorkError
from ftllm.export import child
from ftllm.export.child import VERIFIER, WORKER, Child, Events, prepared
from ftllm.export.starting import FORKING, Forked, Started, close, kill_group, start_together

pytestmark = pytest.mark.skipif(not FORKING, reason="they are started one by one here")

TELLS = """
import json, os, sys

def main():
    about = {"pid": os.getpid(), "parent": os.getppid(), "session": os.getsid(0), "torch": "torch" in sys.modules}
    print(json.dumps(about), flush=True)
    print(os.path.basename(__file__), file=sys.stderr, flush=True)
    for line in sys.stdin:
        if line == "end\\n":
            sys.exit(3)
"""


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Started]]:
    """Two of them."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(TELLS)
    started = start_together(["one", "two"])
    yield started
    for process, log in started.values():
        kill_group(process)
        with log:
            close(process)


def told(process: Forked) -> dict[str, int]:
    """What it says of itself."""
    about: dict[str, int] = json.loads(process.stdout.readline())
    return about


def written(started: Started) -> str:
    started[1].seek(0)
    return started[1].read().decode()


def test_they_import_once_and_are_each_on_their_own(pair: dict[str, Started]) -> None:
    one, two = (process for process, _ in pair.values())
    assert isinstance(one, Forked)
    assert isinstance(two, Forked)
    first, second = told(one), told(two)
    assert first["parent"] == second["parent"] != os.getpid()
    assert all(about["torch"] and about["session"] == about["pid"] for about in (first, second))
    assert (one.pid, two.pid) == (first["pid"], second["pid"])
    assert one.poll() is None
    one.stdin.write("end\n")
    one.stdin.flush()
    assert one.wait(20) == one.poll() == 3
    assert two.poll() is None
    kill_group(two)
    assert two.wait(20) == -signal.SIGKILL
    assert [written(started) for started in pair.values()] == ["one.py\n", "two.py\n"]


def test_killed_before_they_run_they_never_do(pair: dict[str, Started]) -> None:
    process, _ = pair["one"]
    parent = psutil.Process(process.pid)
    process.kill()
    assert [one.wait(5) for one, _ in pair.values()] == [-signal.SIGKILL] * 2
    assert not parent.is_running()
    assert all(one.stdout is not None and one.stdout.read() == "" for one, _ in pair.values())


def test_they_end_with_the_one_that_would_tell_of_their_end(pair: dict[str, Started]) -> None:
    one, two = (process for process, _ in pair.values())
    assert isinstance(one, Forked)
    assert isinstance(two, Forked)
    running = [psutil.Process(told(process)["pid"]) for process in (one, two)]
    os.kill(running[0].ppid(), signal.SIGKILL)
    assert [process.wait(20) for process in (one, two)] == [-signal.SIGKILL] * 2
    assert psutil.wait_procs(running, timeout=20)[1] == []


def test_each_ends_when_nobody_holds_its_input(pair: dict[str, Started]) -> None:
    """As when the program that started them is killed: no other process may hold the pipe open."""
    one, two = (process for process, _ in pair.values())
    assert isinstance(one, Forked)
    assert isinstance(two, Forked)
    told(one)
    one.stdin.close()
    assert one.wait(20) == 0
    assert two.poll() is None


def test_what_cannot_be_imported_is_said_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "torch.py").write_text("raise ImportError('torch is broken')")
    with prepared(WORKER, VERIFIER):
        events = Events()
        children = [Child("converting", WORKER, {}, events), Child("verifying", VERIFIER, {}, events)]
        for one in children:
            with pytest.raises(WorkError, match=r"process ended with code 1: .*torch is broken"):
                one.events.next(one)
        for one in children:
            one.kill()


def test_the_two_of_an_export_are_forked_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with prepared(WORKER, VERIFIER):
        forked = [process for process, _ in child._waiting.values() if isinstance(process, Forked)]
        parent = psutil.Process(forked[0].pid)
    assert [process.poll() for process in forked] == [-signal.SIGKILL] * 2
    assert not parent.is_running()
    with prepared(WORKER):
        assert not any(isinstance(process, Forked) for process, _ in child._waiting.values())
    monkeypatch.setattr(child, "FORKING", False)
    with prepared(WORKER, VERIFIER):
        assert not any(isinstance(process, Forked) for process, _ in child._waiting.values())
