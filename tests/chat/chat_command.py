"""`ftllm chat` run as a person runs it in a pipe."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def chat_bytes(*arguments: str | Path, given: str | bytes = "", cwd: Path = ROOT) -> subprocess.CompletedProcess[bytes]:
    """Run it with `given` piped in, or with an input that is empty."""
    return subprocess.run(
        [sys.executable, "-m", "ftllm", "chat", *map(str, arguments)],
        input=given.encode() if isinstance(given, str) else given,
        capture_output=True,
        cwd=cwd,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def chat(*arguments: str | Path, given: str = "", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The same, its output as text."""
    done = chat_bytes(*arguments, given=given, cwd=cwd)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())
