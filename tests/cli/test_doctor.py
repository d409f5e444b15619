"""`ftllm doctor` on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ftllm", "doctor", *arguments]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=300
    )


def test_json_tells_what_is_here() -> None:
    done = doctor("--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["llama_cpp"]["version"] == metadata.version("llama-cpp-python")
    assert found["llama_cpp"]["loads"] is True
    assert isinstance(found["llama_cpp"]["gpu_offload"], bool)
    assert isinstance(found["llama_cpp"]["repacked_weights_work"], bool)
    assert found["converter"]["state"] in {"ready", "missing"}
    assert found["converter"]["tested"] is True
    assert found["extras"]["export"] == []
    assert found["room"]["disk_free"] > 0
    assert found["problems"] == []


def test_people_get_one_line_a_subject() -> None:
    done = doctor()
    assert done.returncode == 0, done.stderr
    subjects = [line.split()[0] for line in done.stdout.splitlines() if not line.startswith(("note:", " "))]
    assert subjects == [
        "ftllm", "llama.cpp", "processor", "converter", "[export]", "[train]", "[gpu]", "room", "cache",
    ]  # fmt: skip
    assert doctor("--quiet").stdout == ""
