"""What the screen waits for before it is there."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

# Nothing needs these before the first message, and most took a tenth of the start or more.
LATER = (
    "pydantic",
    "ftllm.hub",
    "huggingface_hub",
    "httpx",
    "markdown_it",
    "pygments.lexers",
    "rich.progress",
    "numpy",
    "llama_cpp",
    "ftllm.llama.gpus",
    "textual.widgets._directory_tree",
    "textual.widgets._select",
    "tui.document",
    "tui.screens.path",
)
SCRIPT = f"""
import sys
from ftllm.cli import chat, main

def open_screen(*_):
    import tui.app
    print([name for name in {LATER} if name in sys.modules])
    return 0

chat.open_screen = open_screen
sys.stdin.isatty = sys.stdout.isatty = lambda: True
sys.argv = ["ftllm", "chat", sys.argv[1]]
main.main()
"""


def test_nothing_is_imported_that_can_wait(scripted: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, scripted], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


SCREEN = """
import gc, json, sys, time
from pathlib import Path
from threading import Thread
from ftllm.start import START

START.__init__(sys.argv[1])
found = Path(sys.argv[2])
sys.argv[1:] = ["chat", sys.argv[3]]

def tell():
    while "tui.document" not in sys.modules or START.begun:
        time.sleep(0.02)
    time.sleep(0.5)  # for what is written last
    loaders = {type(sys.modules[name].__spec__.loader).__module__ for name in ("textual.app", "typer", "tui.document")}
    found.write_text(json.dumps([sorted(loaders), gc.isenabled(), gc.get_threshold()[0]]))

from ftllm.__main__ import main
Thread(target=tell, daemon=True).start()
main()
"""


def test_the_screen_remembers_its_start(scripted: Path, tmp_path: Path) -> None:
    """And looks for garbage again, once it stands."""
    kept = tmp_path / "it.start"
    assert settled(scripted, kept, tmp_path / "first") == [["_frozen_importlib_external"], True, 50_000]
    before = kept.stat()
    assert settled(scripted, kept, tmp_path / "second") == [["ftllm.start"], True, 50_000]
    assert kept.stat().st_mtime_ns == before.st_mtime_ns  # there was nothing new


def settled(model: Path, kept: Path, found: Path) -> object:
    """Where the screen's modules came from, whether garbage is looked for, and after how many new objects."""
    ours, its = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {f"XDG_{kind}_HOME": str(found.parent / kind) for kind in ("CACHE", "CONFIG", "DATA")}
    command = [sys.executable, "-c", SCREEN, kept, found, model]
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment | {"TERM": "xterm"}) as program:
        os.close(its)
        deadline, asked_to_leave = time.monotonic() + 60, False
        with suppress(OSError):  # the terminal's other end is closed when the program ends
            while time.monotonic() < deadline:
                if select.select([ours], [], [], 0.1)[0]:
                    os.read(ours, 65536)
                if found.exists() and not asked_to_leave:
                    os.write(ours, b"\x11")  # Ctrl+Q
                    asked_to_leave = True
        os.close(ours)
        try:
            program.wait(10)
        finally:
            program.kill()
    assert program.returncode == 0
    return json.loads(found.read_text())
