"""The real program in a real terminal, by tmux: what it draws, its keys, and how it leaves the terminal behind."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")]

PATIENCE = 60.0
ROOT = Path(__file__).parents[2]


class Terminal:
    """A terminal of 80 by 24 with a shell in it."""

    def __init__(self, socket: Path) -> None:
        self._socket = str(socket)
        own = ["env", "PS1=$ ", f"XDG_DATA_HOME={socket.parent / 'data'}"]
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

    def close(self) -> None:
        subprocess.run(["tmux", "-S", self._socket, "kill-server"], check=False, capture_output=True)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(tmp_path / "tmux")
    try:
        yield opened
    finally:
        opened.close()


def start(terminal: Terminal, model: Path) -> None:
    terminal.type(f"{sys.executable} -m ftllm chat --temp 0 {model}; echo left with $?")
    terminal.keys("Enter")
    terminal.until("Enter sends")


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
