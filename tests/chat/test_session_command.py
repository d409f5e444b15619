"""`ftllm chat --session` as a person runs it: going on, being killed, and a database that is damaged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_command import ROOT, chat

from ftllm.chat import store as chats
from ftllm.chat.ask import Kept
from ftllm.chat.options import ChatOptions
from ftllm.chat.store import Node

FILE = Path("ftllm") / "chats.db"

Chat = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's data directory."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def shown(home: Path, session: int = 1) -> list[Node]:
    with chats.open_store(home / FILE) as store:
        return chats.shown(store, session)


def test_a_session_goes_on_with_its_model_system_prompt_and_settings(
    scripted: Path, home: Path, tmp_path: Path
) -> None:
    begun = chat(os.path.relpath(scripted, tmp_path), "-p", "T", "--session", "sums", "--system", "Add.", cwd=tmp_path)
    assert (begun.returncode, begun.stdout) == (0, "It is 42.\n")
    done = json.loads(chat("--session", "SUMS", "--json", "--max-tokens", "2", given="Q").stdout)
    assert done["answer"] == "xy"
    turns = ["system:Add.", "user:T", "assistant:It is 42.", "user:Q"]
    letters = sum(map(len, turns)) - 1  # a token each, but for "It"
    assert done["prompt_tokens"] == len(["<bos>"]) + letters + len(["<end_of_turn>"] * 4) + len("Q")
    assert chat("-c", "-p", "L").stdout == "la li\n"  # the last one; --max-tokens 2 stays with the session
    nodes = shown(home)
    assert [node.message.content for node in nodes] == ["T", "It is 42.", "Q", "xy", "L", "la li"]
    assert [node.message.stop_reason for node in nodes[1::2]] == ["stop", "length", "length"]
    assert {node.author.model for node in nodes[1::2]} == {str(scripted)}
    assert nodes[1].message.thought == "Let me see."
    assert len({node.author.model_hash for node in nodes[1::2]}) == 1
    assert chat("-p", "T", scripted).returncode == 0
    assert len(shown(home)) == 6  # what is asked without --session is not kept
    with chats.open_store(home / FILE) as store:
        assert [info.title for info in chats.list_sessions(store)] == ["sums"]


def test_two_programs_that_begin_one_session_at_once_share_it(tmp_path: Path) -> None:
    with chats.open_store(tmp_path / "chats.db") as store:
        first, second = Kept(store, "sums"), Kept(store, "sums")  # neither finds it
        for kept, prompt in ((first, "1 + 1"), (second, "2 + 2")):
            kept.begin(prompt, ChatOptions(), chats.Author())
        (info,) = chats.list_sessions(store)
        asked = [node for node in chats.all_nodes(store, info.id) if node.message.role == "user"]
        assert [(node.parent, node.message.content, node.branches) for node in asked] == [
            (None, "1 + 1", 2),
            (None, "2 + 2", 2),
        ]


@pytest.mark.usefixtures("home")
def test_a_full_context_stops_where_that_is_wished(scripted: Path) -> None:
    question = "y" * 150 + "Q"
    assert chat(scripted, "-p", question, "--ctx", "256", "--session", "s", "--overflow", "stop").returncode == 0
    done = chat("-p", question, "--session", "s")  # --overflow stays with the session
    assert (done.returncode, "the context holds 256" in done.stderr) == (2, True)
    assert chat("-p", question, "--session", "s", "--overflow", "drop").stdout == "xyz\n"


@pytest.mark.usefixtures("home")
def test_there_is_no_last_session(scripted: Path) -> None:
    done = chat(scripted, "-c", "-p", "T")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no session to go on with" in done.stderr
    assert "give one of them" in chat(scripted, "-c", "--session", "s", "-p", "T").stderr


def test_a_question_that_could_not_be_asked_is_not_kept(scripted: Path, home: Path) -> None:
    assert chat("nowhere.gguf", "-p", "T", "--session", "s").returncode == 2
    done = chat(scripted, "-p", "T" * 300, "--ctx", "256", "--session", "s")
    assert (done.returncode, done.stdout) == (2, "")
    assert "tokens long" in done.stderr
    with chats.open_store(home / FILE) as store:
        assert chats.list_sessions(store) == []


def test_killed_in_the_middle_of_a_reply_what_was_said_is_there(scripted: Path, home: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "ftllm", "chat", str(scripted), "-p", "L", "--session", "s", "--max-tokens", "1000000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    printed = b""
    while len(printed) < 1500:
        printed += os.read(process.stdout.fileno(), 1 << 16)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reply = shown(home)[-1].message
    assert reply.stop_reason == "interrupted"
    assert ("la li" * 100_000).startswith(reply.content)
    assert chat("--session", "s", "-p", "T", "--max-tokens", "20").stdout == "It is 42.\n"


def test_interrupted_it_is_kept_as_stopped(scripted: Path, home: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "ftllm", "chat", str(scripted), "-p", "L", "--session", "s", "--max-tokens", "1000000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    first = os.read(process.stdout.fileno(), 5)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=300)
    assert process.returncode == 130
    reply = shown(home)[-1].message
    assert (reply.content, reply.stop_reason) == ((first + rest).decode().strip(), "stopped")


def test_a_damaged_database_is_told_and_the_question_answered(scripted: Path, home: Path) -> None:
    assert chat(scripted, "-p", "T", "--session", "s").returncode == 0
    path = home / FILE
    with path.open("r+b") as file:
        file.write(b"\0" * 4096)
    done = chat("--session", "s", "-p", "P")
    assert (done.returncode, done.stdout) == (0, "Hi 🙂!\n")
    aside = next(path.parent.glob("chats.damaged-*.db"))
    assert str(aside) in done.stderr
    assert "1 sessions, 2 messages" in done.stderr
    assert [node.message.content for node in shown(home)] == ["T", "It is 42.", "P", "Hi 🙂!"]


def test_a_data_directory_that_cannot_be_is_one_line(scripted: Path, home: Path) -> None:
    home.write_text("a file")
    done = chat(scripted, "-p", "T", "--session", "s")
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write")
    assert len(done.stderr.splitlines()) == 2


def test_a_model_name_without_an_endpoint(scripted: Path) -> None:
    done = chat(scripted, "-p", "T", "--model", "gemma")
    assert done.returncode == 2
    assert "--model names one of an endpoint's models" in done.stderr


def test_what_an_endpoint_cannot_do_is_refused() -> None:
    for option in (("--lora", "a.gguf"), ("--ctx", "4096"), ("--gpu-layers", "3"), ("--mmproj", "m.gguf")):
        done = chat("http://127.0.0.1:9/v1", "-p", "T", "--model", "x", *option)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{option[0]} goes with a model on this machine" in done.stderr


def test_an_endpoint_that_is_not_there_is_one_line_and_exit_1() -> None:
    done = chat("http://127.0.0.1:9/v1", "-p", "T", "--model", "x")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: 127.0.0.1:9 cannot be reached")
    assert len(done.stderr.splitlines()) == 2
