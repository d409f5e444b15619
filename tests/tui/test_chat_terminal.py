"""The real program in a real terminal, by tmux: what it draws, its keys, and how it leaves the terminal behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len

from tui.screens.sessions import DRAFT_SECONDS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")]

PATIENCE = 60.0
ROOT = Path(__file__).parents[2]


class Terminal:
    """A terminal of 80 by 24 with a shell in it."""

    def __init__(self, socket: Path) -> None:
        self._socket = str(socket)
        places = (f"XDG_{kind}_HOME={socket.parent / kind.lower()}" for kind in ("DATA", "CACHE", "CONFIG", "STATE"))
        own = ["env", "PS1=$ ", *places]
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", *own, "sh")

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-u", "-S", self._socket, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout

    def keys(self, *names: str) -> None:
        self._tmux("send-keys", *names)

    def type(self, text: str) -> None:
        self._tmux("send-keys", "-l", text)

    def resize(self, columns: int, rows: int) -> None:
        self._tmux("resize-window", "-x", str(columns), "-y", str(rows))

    def screen(self) -> str:
        return self._tmux("capture-pane", "-p")

    def until(self, pattern: str) -> str:
        """The screen, once it shows the pattern."""
        deadline = time.monotonic() + PATIENCE
        while not re.search(pattern, screen := self.screen()):
            assert time.monotonic() < deadline, f"{pattern!r} is not in\n{screen}"
            time.sleep(0.05)
        return screen

    def mouse(self, code: int, column: int, row: int, end: str = "M") -> None:
        """An event of the mouse, as terminals tell it (SGR 1006); columns and rows are counted from 0."""
        self._tmux("send-keys", "-H", *(f"{byte:02x}" for byte in f"\x1b[<{code};{column + 1};{row + 1}{end}".encode()))

    def click(self, text: str, inside: int = 0) -> None:
        """Click on a text that the screen shows; `inside` counts its cells."""
        lines = self.until(re.escape(text)).splitlines()
        row = next(number for number, line in enumerate(lines) if text in line)
        column = cell_len(lines[row][: lines[row].index(text)]) + inside
        self.mouse(0, column, row)
        self.mouse(0, column, row, "m")

    def clipboard(self) -> str:
        """What was copied last."""
        return self._tmux("show-buffer")

    def program(self) -> int:
        """The process id of the program that the shell runs."""
        (program,) = children(int(self._tmux("display-message", "-p", "#{pane_pid}")))
        return program

    def until_stopped(self) -> None:
        """Until the program is, as its shell knows."""
        deadline = time.monotonic() + PATIENCE
        while not state(self.program()).startswith("T"):
            assert time.monotonic() < deadline, "the program goes on"
            time.sleep(0.05)

    def engine(self) -> int:
        """The process id of the engine that the program runs."""
        return next(child for child in children(self.program()) if "ftllm.chat.worker" in command(child))

    def close(self) -> None:
        subprocess.run(["tmux", "-S", self._socket, "kill-server"], check=False, capture_output=True)


def children(process: int) -> list[int]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], check=True, capture_output=True, text=True).stdout
    return [int(pid) for pid, parent in map(str.split, listed.splitlines()) if int(parent) == process]


def state(process: int) -> str:
    return subprocess.run(["ps", "-o", "stat=", "-p", str(process)], check=True, capture_output=True, text=True).stdout


def command(process: int) -> str:
    return subprocess.run(["ps", "-o", "args=", "-p", str(process)], check=False, capture_output=True, text=True).stdout


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(tmp_path / "tmux")
    try:
        yield opened
    finally:
        opened.close()


def start(terminal: Terminal, model: Path, options: str = "", shown: str = "Enter sends") -> None:
    terminal.type(f"{sys.executable} -m ftllm chat --temp 0 {options} {model}; echo left with $?")
    terminal.keys("Enter")
    terminal.until(shown)


def test_a_conversation(terminal: Terminal, scripted: Path) -> None:
    start(terminal, scripted)
    terminal.type("T")
    terminal.keys("Enter")
    screen = terminal.until(r"It is 42\.(.|\n)*ready")
    assert re.search(r"▸ Thought for \d+\.\d\d seconds - \d+ tokens", screen)
    assert "Let me see." not in screen
    terminal.keys("C-t")
    assert "▾ Thought for" in terminal.until(r"Let me see\.")
    terminal.type("E")
    terminal.keys("Enter")
    terminal.until(r"␛\[31mred")
    terminal.keys("C-q")
    screen = terminal.until("left with 0")
    assert "It is 42" not in screen
    terminal.type("echo still here")
    terminal.keys("Enter")
    terminal.until(r"\nstill here")


def test_branches_and_a_session_that_goes_on(terminal: Terminal, scripted: Path) -> None:
    start(terminal, scripted)
    terminal.type("T")
    terminal.keys("Enter")
    terminal.until(r"It is 42\.(.|\n)*ready")
    terminal.keys("C-r")
    terminal.until(r"It is 42\.\n +< 2/2 >(.|\n)*ready")
    terminal.keys("Up", "Left")
    terminal.until("< 1/2 >(.|\n)*c copy   r again")
    terminal.keys("Escape")
    terminal.until("Enter sends")
    terminal.keys("F6")
    terminal.until("Ask it something")
    terminal.keys("C-s")
    terminal.until(r"New session(.|\n)*T +now")
    terminal.keys("C-q")
    terminal.until("left with 0")
    terminal.type(f"clear; {sys.executable} -m ftllm chat -c; echo left with $?")
    terminal.keys("Enter")
    terminal.until(r"It is 42\.\n +< 1/2 >")
    terminal.keys("C-q")
    terminal.until("left with 0")


def test_stop_resize_and_leave_while_it_streams(terminal: Terminal, scripted: Path) -> None:
    start(terminal, scripted)
    terminal.type("L")
    terminal.keys("Enter")
    terminal.until("la lila li")
    terminal.keys("Escape")
    terminal.until(r"Stopped\.(.|\n)*ready")
    terminal.type("L")
    terminal.keys("Enter")
    terminal.until("answering")
    terminal.resize(50, 15)
    lines = terminal.until("la lila(.|\n)*answering").splitlines()
    assert len(lines) <= 15
    assert all(len(line) <= 50 for line in lines)
    terminal.keys("C-c")
    terminal.until("left with 0")


def test_settings_and_another_model(terminal: Terminal, scripted: Path, tmp_path: Path) -> None:
    shutil.copy(scripted, tmp_path / "other-F32.gguf")
    start(terminal, scripted)
    terminal.type("/loo")
    terminal.until(r"/loops \[VALUE\]")
    terminal.keys("Tab")
    terminal.type(" stop")
    terminal.keys("Enter")
    terminal.until("Loop guard: stop")
    terminal.keys("F2")
    terminal.until("‹ stop ›")
    terminal.type("7")
    terminal.until("✗ a number from 0 to 5")
    terminal.keys("Escape")
    terminal.until("Enter sends(.|\n)*ready")
    terminal.type(f"/model {tmp_path}/missing.gguf")
    terminal.keys("Enter")
    terminal.until("no such GGUF file")
    terminal.keys("C-u")
    terminal.type(f"/model {tmp_path}/other-F32.gguf")
    terminal.keys("Enter")
    terminal.until("ready +other-F32")
    terminal.type("L")
    terminal.keys("Enter")
    terminal.until(r"Stopped: the answer went in circles\.(.|\n)*ready")
    terminal.keys("C-q")
    terminal.until("left with 0")


def test_an_engine_killed_in_the_middle_of_a_reply(terminal: Terminal, scripted: Path) -> None:
    start(terminal, scripted)
    terminal.type("L")
    terminal.keys("Enter")
    terminal.until("la lila li")
    os.kill(terminal.engine(), signal.SIGKILL)
    screen = terminal.until("SIGKILL(.|\n)*failed")
    assert "la lila" in screen  # what came of it stays
    terminal.type("T")
    terminal.keys("Enter")
    terminal.until(r"It is 42\.(.|\n)*ready")
    terminal.keys("C-q")
    terminal.until("left with 0")


def test_emoji_leave_their_lines_in_place(terminal: Terminal, scripted: Path) -> None:
    start(terminal, scripted)
    terminal.type("❤️ and 👍🏽 too")
    line = next(line for line in terminal.until("too").splitlines() if "too" in line)
    terminal.keys("Enter")
    said = next(line for line in terminal.until("▌.*too").splitlines() if "▌" in line)
    # tmux gives the heart one cell, so that a blank one follows it; the hand's second half is written over
    assert re.search("❤️?  and 👍 too", said)
    assert re.search("❤️?  and 👍 too +│$", line)
    terminal.keys("C-q")
    terminal.until("left with 0")


@pytest.mark.parametrize("stop", [signal.SIGSTOP, signal.SIGTSTP])
def test_stopped_and_let_go_on(terminal: Terminal, scripted: Path, stop: signal.Signals) -> None:
    start(terminal, scripted)
    terminal.until("ready")
    terminal.type("before")
    terminal.until("│ before")
    os.kill(terminal.program(), stop)
    terminal.until_stopped()
    terminal.type("fg")
    terminal.keys("C-j")  # this shell leaves the terminal as the program had it, where Enter is no end of a line
    terminal.until("│ before(.|\n)*ready")
    terminal.keys("C-u")
    terminal.type("T")
    terminal.keys("Enter")
    terminal.until(r"It is 42\.(.|\n)*ready")
    terminal.keys("C-q")
    terminal.until(r"\n\$\s*\Z")  # the shell's prompt, and nothing after it
    terminal.type("echo still here")  # the terminal shows what is typed again
    terminal.keys("Enter")
    terminal.until(r"echo still here\nstill here")


def test_what_is_written_outlasts_the_terminal(terminal: Terminal, scripted: Path, tmp_path: Path) -> None:
    start(terminal, scripted)
    terminal.until("ready")
    terminal.type("half a thought")
    terminal.until("│ half a thought")
    program, engine = terminal.program(), terminal.engine()
    terminal.close()
    deadline = time.monotonic() + PATIENCE
    while command(program) or command(engine):
        assert time.monotonic() < deadline, "the program goes on without a terminal"
        time.sleep(0.05)
    again = Terminal(tmp_path / "tmux-again")
    try:
        start(again, scripted, shown="│ half a thought")
    finally:
        again.close()


def test_ended_from_outside_it_leaves_as_with_its_key(terminal: Terminal, scripted: Path) -> None:
    start(terminal, scripted)
    terminal.until("ready")
    terminal.type("half a thought")
    terminal.until("│ half a thought")
    os.kill(terminal.program(), signal.SIGTERM)
    assert "half a thought" not in terminal.until("left with 0")
    start(terminal, scripted, shown="│ half a thought")


def test_killed_it_has_kept_what_was_written(terminal: Terminal, scripted: Path) -> None:
    start(terminal, scripted)
    terminal.until("ready")
    terminal.type("half a thought")
    terminal.until("│ half a thought")
    time.sleep(DRAFT_SECONDS + 1)
    os.kill(terminal.program(), signal.SIGKILL)
    terminal.until("left with 137")
    terminal.keys("C-l")
    start(terminal, scripted, shown="│ half a thought")


def test_by_mouse_alone(terminal: Terminal, scripted: Path) -> None:
    start(terminal, scripted)
    terminal.type("T")
    terminal.keys("Enter")
    terminal.until(r"It is 42\.(.|\n)*ready")
    terminal.click("▸ Thought for")
    terminal.until(r"▾ Thought for(.|\n)*Let me see\.")
    terminal.click("▾ Thought for")
    row = next(n for n, line in enumerate(terminal.until("▸ Thought for").splitlines()) if "It is 42." in line)
    terminal.mouse(35, 6, row)  # over the reply
    terminal.click("copy")
    terminal.until("Reply copied")
    assert terminal.clipboard() == "It is 42."
    terminal.mouse(35, 6, row)
    terminal.click("again")
    terminal.until(r"It is 42\.\n +< 2/2 >(.|\n)*ready")
    terminal.click("< 2/2 >")
    terminal.until("< 1/2 >")
    terminal.click("Sessions")
    terminal.click("+ New session")
    terminal.until("Ask it something")
    terminal.click("Sessions")
    terminal.click("T   ")
    terminal.until("< 1/2 >")
    terminal.click("F1 Help" if "F1" in terminal.screen() else "f1 Help")
    terminal.until("Keys and commands")
    terminal.click("Esc: back")
    terminal.until("Enter sends")
    terminal.click("^q Quit")
    terminal.until("left with 0")


def test_a_session_brings_its_model_as_it_was_loaded(terminal: Terminal, scripted: Path, tmp_path: Path) -> None:
    other = tmp_path / "other-F32.gguf"
    shutil.copy(scripted, other)
    start(terminal, other, "--ctx 1024")
    terminal.type("T")
    terminal.keys("Enter")
    terminal.until(r"It is 42\.(.|\n)*ready(.|\n)*/1024")
    terminal.keys("C-q")
    terminal.until("left with 0")
    terminal.type("clear")
    terminal.keys("Enter")
    start(terminal, scripted, "--ctx 512")
    terminal.type("Q")
    terminal.keys("Enter")
    terminal.until(r"xyz(.|\n)*ready(.|\n)*/512")
    terminal.keys("C-s")
    terminal.until("New session")
    terminal.keys("Down", "Enter")
    screen = terminal.until(r"It is 42\.(.|\n)*ready +other-F32(.|\n)*/1024")
    assert re.search(r"context [1-9]\d*/1024", screen)  # what it had read is there too
    terminal.type("Q")
    terminal.keys("Enter")
    terminal.until(r"xyz(.|\n)*ready")
    terminal.keys("C-q")
    terminal.until("left with 0")


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded base model as a GGUF."""
    pytest.importorskip("torch", reason="exporting needs ftllm[export]")
    out = tmp_path_factory.mktemp("nano")
    export = [sys.executable, "-m", "ftllm", "export", "models/nano", "--quant", "Q8_0", "--verify", "none"]
    subprocess.run([*export, "--out", str(out)], check=True, cwd=ROOT, capture_output=True)
    return next(out.glob("*.gguf"))


def test_the_nano_model(terminal: Terminal, nano: Path) -> None:
    start(terminal, nano, "--max-tokens 40")
    terminal.type("What is 2 + 3?")
    terminal.keys("Enter")
    screen = terminal.until(rf"ready +{nano.stem}.* tok/s   context \d+/2048")
    answer = screen.split("What is 2 + 3?")[1].split("╭")[0]
    assert answer.strip()
    terminal.keys("F6")
    terminal.until("Ask it something")
    terminal.keys("C-q")
    terminal.until("left with 0")
