"""The engine's process: stopped, killed, hanging, given bad files."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
from talking import Talk, only, reply_of

from ftllm.chat.events import (
    Done,
    Failed,
    Loaded,
    ThinkDelta,
    ThinkEnd,
)
from ftllm.chat.options import LoadSettings, ReplyOptions
from ftllm.chat.watch import Patience

ROOT = Path(__file__).resolve().parent.parent.parent


def test_stop_keeps_what_came(talk: Talk) -> None:
    number = talk.engine.generate([{"role": "user", "content": "R"}], ReplyOptions(max_tokens=10**6))
    begun = talk.until(lambda event: isinstance(event, ThinkDelta))
    talk.engine.stop()
    asked = time.monotonic()
    events = begun + talk.rest(number)
    assert time.monotonic() - asked < 20  # without it, a million tokens
    done = only(events, Done)
    assert done.reason == "stopped"
    assert only(events, ThinkEnd).why == "stopped"
    thought = reply_of(events).message.thought
    assert thought
    assert ("Well," + " hmm and" * len(thought)).startswith(thought)  # all that came, however much that was
    assert not talk.engine.busy
    assert reply_of(talk.say("T")).answer == "It is 42."


def test_a_queued_reply_can_be_stopped_before_it_begins(talk: Talk) -> None:
    numbers = [talk.engine.generate([{"role": "user", "content": "R"}]) for _ in range(2)]
    talk.engine.stop()
    reasons = [only([e for e in talk.rest(number) if e.reply == number], Done).reason for number in numbers]
    assert reasons[1] == "stopped"


def test_killed_in_the_middle_of_a_reply(talk: Talk) -> None:
    number = talk.engine.generate([{"role": "user", "content": "R"}])
    begun = talk.until(lambda event: isinstance(event, ThinkDelta))
    pid = talk.engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    events = begun + talk.rest(number)
    failed = only(events, Failed)
    assert failed.crashed
    assert "SIGKILL" in failed.message
    assert any("llama" in line for line in failed.log)
    assert reply_of(events).message.thought.startswith("Well,")
    assert not talk.engine.busy
    # the next message starts another process with the same model
    assert reply_of(talk.say("T")).answer == "It is 42."
    assert talk.engine.pid != pid


@pytest.mark.parametrize("asked", [False, True])
def test_a_child_that_hangs_is_ended(scripted: Path, tmp_path: Path, asked: bool) -> None:
    patience = Patience(idle=60, stop=0.5) if asked else Patience(idle=1)
    talk = Talk(tmp_path / "logs", patience)
    with talk.engine:
        talk.engine.load(scripted)
        number = talk.engine.generate([{"role": "user", "content": "R"}])
        begun = talk.until(lambda event: isinstance(event, ThinkDelta))
        assert talk.engine.pid is not None
        os.kill(talk.engine.pid, signal.SIGSTOP)
        if asked:
            talk.engine.stop()
        events = begun + talk.rest(number)
        failed = only(events, Failed)
        assert failed.crashed
        assert failed.message.startswith("the engine hung: it did")
        assert reply_of(events).message.thought.startswith("Well,")
        assert reply_of(talk.say("T")).answer == "It is 42."


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_process_waits_long_and_asks_for_large_pages(talk: Talk) -> None:
    talk.until(lambda event: isinstance(event, Loaded))
    process = Path(f"/proc/{talk.engine.pid}")
    environment = process.joinpath("environ").read_bytes().split(b"\0")
    assert b"GOMP_SPINCOUNT=300000" in environment
    assert b"GLIBC_TUNABLES=glibc.malloc.hugetlb=1" in environment
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if platform.libc_ver()[0] == "glibc" and pages.is_file() and "[madvise]" in pages.read_text():
        assert re.search(r"^VmFlags:.* hg\b", process.joinpath("smaps").read_text(), re.MULTILINE)


def test_killed_while_idle(talk: Talk) -> None:
    talk.until(lambda event: isinstance(event, Loaded))
    pid = talk.engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGSEGV)
    failed = only(talk.until(lambda event: isinstance(event, Failed)), Failed)
    assert (failed.reply, failed.crashed) == (0, True)
    assert "SIGSEGV" in failed.message
    assert reply_of(talk.say("T")).answer == "It is 42."


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_a_bad_file_is_the_persons_fault_and_the_engine_lives(
    content: bytes | None, scripted: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(scripted.read_bytes()[:50_000] if content is None else content)
    talk = Talk(tmp_path)
    with talk.engine:
        talk.engine.load(bad)
        failed = only(talk.until(lambda event: isinstance(event, Failed)), Failed)
        assert (failed.exit_code, failed.crashed, failed.reply) == (2, False, 0)
        assert str(bad) in failed.message
        assert only(talk.say("T"), Failed).message == failed.message
        talk.engine.load(scripted)
        assert reply_of(talk.say("T")).answer == "It is 42."


def test_modules_in_the_persons_directory_are_not_taken_for_ours(
    scripted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json.py", "numpy.py"):
        (tmp_path / name).write_text("raise SystemExit('not this one')\n")
    monkeypatch.chdir(tmp_path)
    talk = Talk(tmp_path / "logs")
    with talk.engine:
        talk.engine.load(scripted)
        assert reply_of(talk.say("T")).answer == "It is 42."


def test_several_engines_at_once(scripted: Path, tmp_path: Path) -> None:
    talks = [Talk(tmp_path) for _ in range(2)]
    with talks[0].engine, talks[1].engine:
        for talk in talks:
            talk.engine.load(scripted, LoadSettings(n_threads=1))
        numbers = [talk.engine.generate([{"role": "user", "content": "T"}]) for talk in talks]
        answers = [reply_of(talk.rest(number)).answer for talk, number in zip(talks, numbers, strict=True)]
    assert answers == ["It is 42."] * 2


def test_close_ends_the_process_and_leaves_no_log(talk: Talk, tmp_path: Path) -> None:
    talk.until(lambda event: isinstance(event, Loaded))
    pid, log = talk.engine.pid, talk.engine.log
    assert pid is not None
    assert log is not None
    assert log.exists()
    talk.engine.generate([{"role": "user", "content": "L"}])
    talk.engine.close(timeout=30)
    assert not psutil.pid_exists(pid)
    assert not log.exists()
    assert not list((tmp_path / "logs").iterdir())


def test_no_orphan_when_the_parent_is_killed(scripted: Path, tmp_path: Path) -> None:
    program = (
        "import sys, time, threading\n"
        "from pathlib import Path\n"
        "from ftllm.chat.engine import Engine\n"
        "engine = Engine(lambda event: None, log_directory=Path(sys.argv[2]))\n"
        "engine.load(Path(sys.argv[1]))\n"
        "engine.generate([{'role': 'user', 'content': 'L'}])\n"
        "print(engine.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(scripted), str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    child.wait(timeout=60)


def worker(commands: list[Mapping[str, object]], **environment: str) -> subprocess.CompletedProcess[str]:
    """The child by itself, its input closed after `commands`."""
    return subprocess.run(
        [sys.executable, "-m", "ftllm.chat.worker"],
        input="".join(json.dumps(command) + "\n" for command in commands),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        env={**os.environ, **environment},
    )


def test_the_process_goes_when_its_input_does() -> None:
    done = worker([])
    assert (done.returncode, done.stdout) == (0, "")
