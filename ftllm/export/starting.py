"""How the processes of an export are started: each by itself, or two that fork from one which has imported torch.

Importing takes a second and a half of each process. Where the system forks safely (Linux), two that begin together
import once.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import ftllm

FORKING = sys.platform == "linux"


class Forked:
    """A process that another one forks for us; of `subprocess.Popen` it has what a child needs.

    Attributes:
        pid: of the process, or of the one that forks it, as long as it does not run.
        stdin, stdout: text, this side of its pipes.
        returncode: as `Popen` has it; None while it runs.
    """

    def __init__(self, stdin: IO[str], stdout: IO[str], parent: subprocess.Popen[str]) -> None:
        self.pid = parent.pid
        self.stdin, self.stdout = stdin, stdout
        self.returncode: int | None = None
        self.listener: threading.Thread | None = None  # ends with the process that forks
        self._ended = threading.Event()

    def end(self, code: int) -> None:
        """It has ended."""
        if self.returncode is None:
            self.returncode = code
            self._ended.set()

    def poll(self) -> int | None:
        """Its exit code, or None."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended."""
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired("a forked process", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        """End it; one that does not run yet, together with those to be forked beside it."""
        kill_group(self)


Process = subprocess.Popen[str] | Forked
Started = tuple[Process, IO[bytes]]  # a process, and the file its stderr goes to


def start(module: str) -> Started:
    """`python -m MODULE`, its stdin and stdout pipes of text."""
    log = tempfile.TemporaryFile()  # noqa: SIM115
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        encoding="utf-8",
        env=_environment(),
        start_new_session=True,  # Ctrl-C goes to the parent alone, which then ends its children
    )
    return process, log


def start_together(modules: Sequence[str]) -> dict[str, Started]:
    """Several such processes, which import once: `ftllm.export.forking` becomes them."""
    logs = [tempfile.TemporaryFile() for _ in modules]  # noqa: SIM115
    pipes = [(os.pipe(), os.pipe()) for _ in modules]
    theirs = [(to_it[0], from_it[1], log.fileno()) for (to_it, from_it), log in zip(pipes, logs, strict=True)]
    try:
        parent = subprocess.Popen(
            [sys.executable, "-P", "-m", "ftllm.export.forking", json.dumps(list(zip(modules, theirs, strict=True)))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=logs[0],
            text=True,
            encoding="utf-8",
            env=_environment(),
            pass_fds=[number for numbers in theirs for number in numbers],
            start_new_session=True,
        )
    finally:
        for to_it, from_it in pipes:
            os.close(to_it[0])
            os.close(from_it[1])
    forked = {
        module: Forked(os.fdopen(to_it[1], "w", encoding="utf-8"), os.fdopen(from_it[0], encoding="utf-8"), parent)
        for module, (to_it, from_it) in zip(modules, pipes, strict=True)
    }
    listener = threading.Thread(target=_listen, args=(parent, forked), daemon=True)
    for process in forked.values():
        process.listener = listener
    listener.start()
    return {module: (forked[module], log) for module, log in zip(modules, logs, strict=True)}


def _listen(parent: subprocess.Popen[str], forked: dict[str, Forked]) -> None:
    """Note which processes run, and how they end, as the one that forked them tells it."""
    assert parent.stdout is not None
    with contextlib.suppress(ValueError):  # no JSON: it is out of its mind, and so as good as dead
        for line in parent.stdout:
            told = json.loads(line)
            process = forked[told["module"]]
            if "pid" in told:
                process.pid = told["pid"]
            else:
                process.end(told["code"])
    parent.kill()
    code = parent.wait()
    parent.stdout.close()
    for process in forked.values():
        if process.returncode is None:
            if process.pid != parent.pid:
                kill_group(process)
            process.end(code or -signal.SIGKILL)


def kill_group(process: Process) -> None:
    """End a process, and what it started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def close(process: Process) -> None:
    """Close the pipes of a process that is killed, and wait for its end."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    process.wait()


def bury(process: Process, timeout: float) -> None:
    """Wait for whom a process that has ended was forked from, so that what it used is counted as ours."""
    if isinstance(process, Forked) and process.listener is not None and process.poll() is not None:
        process.listener.join(timeout)


def _environment() -> dict[str, str]:
    paths = [*_source_path(), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"}
    own["OPENBLAS_NUM_THREADS"] = "1"  # numpy's sums are over chunks, of which each thread of the pass has its own
    return {**os.environ, **own}


def _source_path() -> list[str]:
    """Where a child finds ftllm when it is run from a checkout; installed, it is found anyway."""
    source = Path(ftllm.__file__).resolve().parent.parent
    return [] if {"site-packages", "dist-packages"} & set(source.parts) else [str(source)]
