"""`ftllm chat` as a person runs it: pipes, JSON, a terminal, and what goes wrong."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from chat_command import ROOT
from chat_command import chat_bytes as chat

STATUS = re.compile(r"\r\x1b\[K(\x1b\[2m[^\x1b]*\x1b\[0m)?")  # "loading 40%", drawn and erased on slow machines
KEYS = [
    "answer",
    "thought",
    "thought_seconds",
    "thought_tokens",
    "answer_tokens",
    "prompt_tokens",
    "tokens_per_second",
    "time_to_first_token",
    "stop_reason",
    "model",
]


def on_terminal(*arguments: str | Path, out: bool = True, **environment: str) -> tuple[str, str]:
    """Run it with standard error, and standard output too, on a pseudo-terminal: (terminal's text, stdout's)."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "ftllm", "chat", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=slave if out else subprocess.PIPE,
        stderr=slave,
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm", **environment},
    )
    os.close(slave)
    seen = b""
    try:
        while chunk := os.read(master, 65536):
            seen += chunk
    except OSError:  # Linux's way to say that the other end is closed
        pass
    piped = process.stdout.read().decode() if process.stdout else ""
    assert process.wait(300) == 0
    os.close(master)
    return STATUS.sub("", seen.decode().replace("\r\n", "\n")), piped


def test_answer_on_stdout_and_thought_on_stderr(scripted: Path) -> None:
    done = chat(scripted, "-p", "T")
    assert (done.returncode, done.stdout) == (0, b"It is 42.\n")
    lines = done.stderr.decode().splitlines()
    assert lines[0] == "Let me see."
    assert lines[1].startswith("Thought for 0.")
    assert lines[1].endswith(" seconds")
    assert len(lines) == 2


@pytest.mark.parametrize("option", ["--no-show-thoughts", "--quiet"])
def test_without_the_thought(scripted: Path, option: str) -> None:
    done = chat(scripted, "-p", "T", option)
    assert (done.stdout, done.stderr) == (b"It is 42.\n", b"")


@pytest.mark.parametrize(("arguments", "given"), [((), "T\n"), (("-p", "-"), "T\n"), (("-p", "T"), "ignored P")])
def test_where_the_prompt_comes_from(scripted: Path, arguments: tuple[str, ...], given: str) -> None:
    assert chat(scripted, *arguments, given=given).stdout == b"It is 42.\n"


def test_json(scripted: Path) -> None:
    done = chat(scripted, "-p", "T", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    value = json.loads(done.stdout)
    assert list(value) == KEYS
    assert (value["answer"], value["thought"], value["stop_reason"]) == ("It is 42.", "Let me see.", "stop")
    assert (value["thought_tokens"], value["answer_tokens"], value["prompt_tokens"]) == (7, 4, 9)
    assert 0 < value["thought_seconds"] < 5
    assert 0 < value["time_to_first_token"] < 5
    assert value["tokens_per_second"] > 1
    assert value["model"] == str(scripted)


def test_json_without_a_thought_and_cut(scripted: Path) -> None:
    value = json.loads(chat(scripted, "-p", "L", "--json", "--max-tokens", "3").stdout)
    assert (value["answer"], value["thought"], value["thought_seconds"]) == ("la lila", "", 0.0)
    assert value["stop_reason"] == "length"


def test_a_cut_reply_says_so(scripted: Path) -> None:
    done = chat(scripted, "-p", "L", "--max-tokens", "3")
    assert (done.returncode, done.stdout) == (0, b"la lila\n")
    assert b"warning: the reply is cut after 3 tokens" in done.stderr
    done = chat(scripted, "-p", "L", "--ctx", "256")
    assert b"warning: the context is full" in done.stderr


def test_think_and_system(scripted: Path, tmp_path: Path) -> None:
    assert chat(scripted, "-p", "R", "--think", "off").stdout == b"It is 42.\n"
    assert chat(scripted, "-p", "R", "--think-budget", "9").stdout == b"So yes.\n"
    (tmp_path / "system.txt").write_text("Be brief.\n")
    with_text, with_file = (
        json.loads(chat(scripted, "-p", "Q", "--json", "--system", system).stdout)["prompt_tokens"]
        for system in ("Be brief.", f"@{tmp_path / 'system.txt'}")
    )
    assert with_text == with_file == 9 + len("system:Be brief.") + 1
    assert chat(scripted, "-p", "Q", "--system", "@nowhere.txt").returncode == 2


def test_escape_sequences_reach_a_pipe_but_no_terminal(scripted: Path) -> None:
    assert chat(scripted, "-p", "E").stdout == b"\x1b[31mred\n"
    assert on_terminal(scripted, "-p", "E")[0] == "␛[31mred\n"
    assert on_terminal(scripted, "-p", "E", out=False)[1] == "\x1b[31mred\n"


def test_thoughts_are_dimmed_on_a_terminal(scripted: Path) -> None:
    shown, _ = on_terminal(scripted, "-p", "T")
    assert shown.startswith("\x1b[2mLet")
    assert shown.index("Thought for 0.") < shown.index("\x1b[0mIt is 42.\n")
    plain, _ = on_terminal(scripted, "-p", "T", NO_COLOR="1")
    assert "\x1b" not in plain
    assert plain.startswith("Let me see.\nThought for 0.")


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda whole: whole[:0], "is empty"),
        (lambda whole: b"GIF89a" + whole[6:], "is not a GGUF"),
        (lambda whole: whole[:60_000], "is cut short"),
    ],
)
def test_a_bad_gguf_is_one_line_a_hint_and_exit_2(scripted: Path, tmp_path: Path, make: object, complaint: str) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(make(scripted.read_bytes()))  # type: ignore[operator]
    done = chat(bad, "-p", "T")
    lines = done.stderr.decode().splitlines()
    assert (done.returncode, done.stdout, len(lines)) == (2, b"", 2)
    assert lines[0].startswith("error: ")
    assert complaint in lines[0]
    assert lines[1].startswith("hint: ")


@pytest.mark.parametrize(
    ("arguments", "given", "complaint"),
    [
        (("nowhere.gguf", "-p", "T"), None, "nowhere.gguf: no such GGUF file"),
        (("MODEL", "-p", " "), None, "the prompt is empty"),
        (("MODEL",), "", "the prompt is empty"),
        (("MODEL",), b"\xff\xfe", "not UTF-8"),
        (("MODEL", "-p", "T", "--gpu-layers", "many"), None, "--gpu-layers many"),
        (("MODEL", "-p", "T", "--think", "perhaps"), None, "perhaps"),
        (("MODEL", "-p", "T" * 300 + "Q", "--ctx", "256"), None, "tokens long"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    scripted: Path, arguments: tuple[str, ...], given: str | bytes | None, complaint: str
) -> None:
    done = chat(*(scripted if argument == "MODEL" else argument for argument in arguments), given=given)
    errors = done.stderr.decode()
    assert done.returncode == 2
    assert complaint in errors.splitlines()[0]
    assert "Traceback" not in errors


def test_without_a_model_it_says_what_to_do(tmp_path: Path) -> None:
    done = chat("-p", "T", cwd=tmp_path)
    assert done.returncode == 2
    assert b"no model to talk to" in done.stderr
    assert b"ftllm demo" in done.stderr


def test_without_an_argument_the_latest_run_is_taken_and_named(scripted: Path, tmp_path: Path) -> None:
    for name, started in (("old", "2026-01-01"), ("new", "2026-01-02")):
        (tmp_path / "mine" / name / "gguf").mkdir(parents=True)
        (tmp_path / "mine" / name / "manifest.json").write_text(json.dumps({"status": "finished", "started": started}))
        (tmp_path / "mine" / name / "gguf" / f"{name}-Q4_K_M.gguf").write_bytes(scripted.read_bytes())
    done = chat("-p", "T", "--runs", tmp_path / "mine")
    assert done.stdout == b"It is 42.\n"
    assert done.stderr.splitlines()[0].decode() == f"run new: {tmp_path / 'mine' / 'new' / 'gguf' / 'new-Q4_K_M.gguf'}"
    done = chat("old", "-p", "T", "--runs", tmp_path / "mine", "--json")
    assert json.loads(done.stdout)["model"].endswith("old-Q4_K_M.gguf")


def test_interrupted_it_prints_what_it_had_and_exits_130(scripted: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "ftllm", "chat", str(scripted), "-p", "L", "--max-tokens", "1000000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    first = os.read(process.stdout.fileno(), 5)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert (first + rest).startswith(b"la")
    assert (first + rest).endswith(b"\n")
    assert b"Traceback" not in errors


def test_an_engine_that_is_killed_is_one_line_and_exit_1(scripted: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "ftllm", "chat", str(scripted), "-p", "L", "--max-tokens", "1000000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    first = os.read(process.stdout.fileno(), 5)
    (engine,) = psutil.Process(process.pid).children()
    engine.kill()
    rest, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert (first + rest).startswith(b"la")
    assert (first + rest).endswith(b"\n")
    assert errors.decode().splitlines()[0].startswith("error: the engine was ended by SIGKILL")
    assert b"Traceback" not in errors


def test_a_reply_without_an_answer_says_so(scripted: Path) -> None:
    done = chat(scripted, "-p", "U")
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"warning: the model ended its turn without an answer" in done.stderr
