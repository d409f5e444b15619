"""`ftllm --help` is quick and light, and a wrong command line costs one line and a hint."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ftllm.cli.main import VERBS, as_user_error, load
from ftllm.errors import UserError, WorkError

ROOT = Path(__file__).resolve().parent.parent.parent
HEAVY = ("torch", "transformers", "llama_cpp", "textual", "peft", "trl", "datasets", "numpy")


def ftllm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ftllm", *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120
    )


def imported_by(*arguments: str) -> set[str]:
    """Top-level names of every module that a command line imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ftllm", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def test_help_imports_nothing_heavy() -> None:
    assert not imported_by("--help") & set(HEAVY)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_of_a_verb_imports_nothing_heavy(verb: str) -> None:
    assert not imported_by(verb, "--help") & set(HEAVY) - {"numpy"}


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX accounting")
def test_help_is_quick() -> None:
    """Processor time, best of three, for the machine may be busy; the target is 0.2 s, the bound leaves room."""
    import resource

    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert ftllm("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.3


def test_help_names_every_verb() -> None:
    shown = ftllm("--help").stdout
    for name, verb in VERBS.items():
        assert name in shown
        assert " ".join(verb.summary.split()) in " ".join(shown.split())


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_of_a_verb_has_an_example(verb: str) -> None:
    done = ftllm(verb, "--help")
    assert done.returncode == 0
    assert f"ftllm {verb}" in done.stdout.split("Options:")[0].partition("\n")[2], "no example in the help"
    assert load(VERBS[verb]).__doc__


def test_no_arguments_is_help() -> None:
    done = ftllm()
    assert done.returncode == 0
    assert done.stdout == ftllm("--help").stdout


def test_version() -> None:
    done = ftllm("--version")
    assert (done.returncode, done.stdout) == (0, "ftllm 0.1.0\n")


@pytest.mark.parametrize(
    ("arguments", "says"), [(["--nope"], "--nope"), (["tarin"], "tarin"), (["eval", "--nope"], "--nope")]
)
def test_a_wrong_command_line(arguments: list[str], says: str) -> None:
    done = ftllm(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert says in error
    assert hint.startswith("hint: ")


def test_a_missing_library_names_the_extra() -> None:
    error = as_user_error(ModuleNotFoundError("No module named 'torch'", name="torch"))
    assert (error.exit_code, error.hint) == (2, "pip install 'ftllm[train]'")


def test_a_full_disk_is_failed_work() -> None:
    error = as_user_error(OSError(28, "No space left on device", "x.gguf"))
    assert isinstance(error, WorkError)
    assert error.message == "no space left while writing x.gguf"


def test_a_bug_is_called_one() -> None:
    error = as_user_error(ZeroDivisionError("division by zero"))
    assert (error.exit_code, "bug" in error.hint) == (1, True)


def test_known_errors_pass_unchanged() -> None:
    error = UserError("x", "y")
    assert as_user_error(error) is error


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_interrupted() -> None:
    """Ctrl-C during a verb ends the program with 130 and no traceback."""
    code = (
        "import sys, time; import ftllm.cli.main as m\n"
        "def wait() -> None:\n    print('ready', flush=True); time.sleep(100)\n"
        "m.load = lambda verb: wait\nm.VERBS['wait'] = m.Verb('a:b', 'Wait.')\n"
        "sys.argv = ['ftllm', 'wait']\nm.main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert errors == "interrupted\n"


@pytest.mark.parametrize("start", ["import ftllm.__main__", "import ftllm.cli.main as m; m.build(['chat']); m.main()"])
def test_garbage_is_looked_for_again(start: str) -> None:
    """In processes that multiprocessing starts, which import the program and run something else, too."""
    code = (
        "import sys, gc\nsys.argv = ['ftllm', '--version']\n"
        f"try:\n    {start}\nexcept SystemExit:\n    pass\nprint(gc.isenabled())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.splitlines()[-1:] == ["True"], done.stderr
