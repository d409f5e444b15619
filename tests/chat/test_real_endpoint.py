"""Endpoints: llama-cpp-python's own server, run for real."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from acting_server import KEY, Talk, port
from chat_command import chat

from ftllm.chat.batch import Journal, Result, answer_all, read_questions
from ftllm.chat.endpoint import FIRST_NUMBER
from ftllm.chat.events import Done, Failed, Loaded, TextDelta, ThinkDelta
from ftllm.chat.options import ChatOptions, ReplyOptions
from ftllm.chat.remote import Remote
from ftllm.chat.session import Reply


@pytest.fixture(scope="module")
def real(scripted: Path) -> Iterator[Remote]:
    """llama-cpp-python's server over the scripted model; it wants a key."""
    number = port()
    address = ["--host", "127.0.0.1", "--port", str(number), "--api_key", KEY]
    model = ["--model", str(scripted), "--model_alias", "scripted", "--n_ctx", "2048", "--verbose", "false"]
    model += ["--interrupt_requests", "false"]  # else a second request ends the first
    process = subprocess.Popen(
        [sys.executable, "-m", "llama_cpp.server", *model, *address],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", number), 1).close()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield Remote(f"http://127.0.0.1:{number}/v1")
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def talk(real: Remote, monkeypatch: pytest.MonkeyPatch) -> Iterator[Talk]:
    monkeypatch.setenv("FTLLM_API_KEY", KEY)
    talk = Talk(real)
    yield talk
    talk.endpoint.close()


def test_the_real_server_says_which_model_it_has(talk: Talk, real: Remote) -> None:
    loaded = talk.loaded()
    assert isinstance(loaded, Loaded)
    assert (loaded.path, loaded.description) == (f"{real.url} scripted", "scripted")


def test_the_real_servers_reply_comes_as_the_engines_does(talk: Talk) -> None:
    talk.loaded()
    number = talk.ask("T", ReplyOptions(temperature=0.0))
    assert number > FIRST_NUMBER
    events = talk.until(lambda event: isinstance(event, Done))
    reply = Reply()
    for event in events:
        reply.feed(event)
    assert (reply.thought, reply.answer) == ("Let me see.", "It is 42.")
    assert [type(event).__name__ for event in events if not isinstance(event, TextDelta | ThinkDelta)] == [
        "ThinkStart",
        "ThinkEnd",
        "Stats",
        "Done",
    ]
    stats = reply.stats
    assert stats is not None
    assert (stats.thought_tokens, stats.answer_tokens) == (7, 4)  # the pieces, for this server counts none
    assert reply.message.stop_reason == "stop"
    assert talk.say("P").answer == "Hi 🙂!"


def test_the_command_names_the_only_model_and_says_nothing_else(real: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTLLM_API_KEY", KEY)
    done = chat(real.url, "-p", "Q", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    value = json.loads(done.stdout)
    assert (value["answer"], value["model"]) == ("xyz", f"{real.url} scripted")


def test_the_real_server_keeps_to_the_limit(talk: Talk) -> None:
    reply = talk.say("L", ReplyOptions(max_tokens=3))
    assert (reply.answer, reply.message.stop_reason) == ("la lila", "length")


def test_a_batch_is_answered_in_order_by_the_real_server(
    real: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FTLLM_API_KEY", KEY)
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in "TPQTPQ"))
    rows, options = read_questions(tmp_path / "q.jsonl", None), ChatOptions()
    journal = Journal(rows, real, options, tmp_path)
    results: list[Result] = []
    answer_all(rows, real, options, journal, lambda _number, result: results.append(result), parallel=3)
    assert [result["answer"] for result in results] == ["It is 42.", "Hi 🙂!", "xyz"] * 2
    assert results[0]["thought"] == "Let me see."
    assert results[0]["model"] == f"{real.url} scripted"
    journal.close(remove=True)


def test_a_stop_reaches_the_real_server(talk: Talk) -> None:
    number = talk.ask("L", ReplyOptions(max_tokens=100_000))
    talk.until(lambda event: isinstance(event, TextDelta))
    talk.endpoint.stop()
    asked = time.monotonic()
    reply = talk.rest(number)
    assert time.monotonic() - asked < 5
    assert reply.message.stop_reason == "stopped"
    assert talk.say("T").answer == "It is 42."  # it is free for the next one


@pytest.mark.parametrize(("key", "complaint"), [("", "wants a key"), ("wrong", "refuses the key")])
def test_a_wrong_key_is_told_but_not_shown(
    real: Remote, monkeypatch: pytest.MonkeyPatch, key: str, complaint: str
) -> None:
    monkeypatch.setenv("FTLLM_API_KEY", key)
    talk = Talk(real)
    failed = talk.loaded()
    assert isinstance(failed, Failed)
    assert (failed.exit_code, failed.reply) == (2, 0)
    assert complaint in failed.message
    assert "wrong" not in failed.message
    assert "FTLLM_API_KEY" in failed.hint
    assert talk.say("T").message.stop_reason == "failed"
    talk.endpoint.close()
