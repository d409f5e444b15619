"""What the screen waits for before it is there."""

from __future__ import annotations

import subprocess
import sys
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
