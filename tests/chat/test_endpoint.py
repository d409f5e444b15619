"""Endpoints: llama-cpp-python's own server run for real, and servers that are slow, wrong, or gone half-way."""

from __future__ import annotations

import json
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ftllm.chat.batch import Journal, Result, answer_all, read_questions
from ftllm.chat.endpoint import FIRST_NUMBER, Endpoint
from ftllm.chat.events import AnyEvent, Done, Failed, Loaded, Stats, TextDelta, ThinkDelta, ThinkEnd
from ftllm.chat.options import ChatOptions, ReplyOptions
from ftllm.chat.remote import Remote
from ftllm.chat.session import Reply

KEY = "sesame-7f3a"


class Talk:
    """An endpoint, and a way to wait for its events."""

    def __init__(self, remote: Remote, **options: float) -> None:
        self.events: queue.Queue[AnyEvent] = queue.Queue()
        self.endpoint = Endpoint(self.events.put, pause=0.01, **options)
        self.endpoint.load(remote)

    def until(self, wanted: Callable[[AnyEvent], bool]) -> list[AnyEvent]:
        got = [self.events.get(timeout=60)]
        while not wanted(got[-1]):
            got.append(self.events.get(timeout=60))
        return got

    def loaded(self) -> Loaded | Failed:
        event = self.until(lambda event: isinstance(event, Loaded | Failed))[-1]
        assert isinstance(event, Loaded | Failed)
        return event

    def ask(self, text: str, options: ReplyOptions | None = None) -> int:
        return self.endpoint.generate([{"role": "user", "content": text}], options)

    def rest(self, number: int) -> Reply:
        reply = Reply()
        for event in self.until(lambda event: isinstance(event, Done | Failed) and event.reply in (number, 0)):
            if event.reply == number:
                reply.feed(event)
        return reply

    def say(self, text: str, options: ReplyOptions | None = None) -> Reply:
        return self.rest(self.ask(text, options))


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


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


# A server that does as it is told


def data(*deltas: dict[str, Any], finish: str | None = None, done: bool = True, **more: Any) -> bytes:
    """A stream of events."""
    values: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    if finish:
        values.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}], **more})
    lines = [f"data: {json.dumps(value, ensure_ascii=False)}\n\n" for value in values]
    return "".join([*lines, "data: [DONE]\n\n" if done else ""]).encode()


class Actor(ThreadingHTTPServer):
    """Serves `/v1/models` and, for each chat request, what the next of `acts` does; notes what it was asked."""

    daemon_threads = True

    def __init__(self, *acts: Callable[[BaseHTTPRequestHandler], None]) -> None:
        super().__init__(("127.0.0.1", 0), Play)
        self.acts = list(acts)
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.models: Any = {"data": [{"id": "actor", "max_model_len": 4096}]}
        self.remote = Remote(f"http://127.0.0.1:{self.server_address[1]}/v1", "actor")
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, *_: Any) -> None:
        """A client that has hung up is no news."""


class Play(BaseHTTPRequestHandler):
    server: Actor

    def do_GET(self) -> None:
        say(self, json.dumps(self.server.models).encode(), kind="application/json")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(body)
        self.server.headers.append(dict(self.headers))
        self.server.acts.pop(0)(self)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def say(
    play: BaseHTTPRequestHandler, body: bytes, status: int = 200, kind: str = "text/event-stream", **headers: str
) -> None:
    play.send_response(status)
    play.send_header("content-type", kind)
    for name, value in headers.items():
        play.send_header(name.replace("_", "-"), value)
    play.end_headers()
    play.wfile.write(body)


def saying(body: bytes, status: int = 200, kind: str = "text/event-stream", **headers: str) -> Callable[..., None]:
    return lambda play: say(play, body, status, kind, **headers)


def slowly(body: bytes, size: int, seconds: float) -> Callable[..., None]:
    """A few bytes at a time, cut anywhere."""

    def act(play: BaseHTTPRequestHandler) -> None:
        say(play, b"")
        for start in range(0, len(body), size):
            play.wfile.write(body[start : start + size])
            play.wfile.flush()
            time.sleep(seconds)

    return act


def hanging(body: bytes) -> Callable[..., None]:
    def act(play: BaseHTTPRequestHandler) -> None:
        say(play, body)
        play.wfile.flush()
        time.sleep(30)

    return act


def breaking(body: bytes) -> Callable[..., None]:
    """As a crashed server does: the connection is reset."""

    def act(play: BaseHTTPRequestHandler) -> None:
        if body:
            play.send_response(200)
            play.send_header("content-type", "text/event-stream")
            play.send_header("content-length", "100000")
            play.end_headers()
            play.wfile.write(body)
            play.wfile.flush()
        play.connection.shutdown(socket.SHUT_RDWR)

    return act


Acting = Callable[..., tuple[Actor, Talk]]


@pytest.fixture
def acting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Acting]:
    monkeypatch.setenv("FTLLM_API_KEY", KEY)
    started: list[tuple[Actor, Talk]] = []

    def start(*acts: Callable[[BaseHTTPRequestHandler], None], **options: float) -> tuple[Actor, Talk]:
        actor = Actor(*acts)
        talk = Talk(actor.remote, **options)
        assert isinstance(talk.loaded(), Loaded)
        started.append((actor, talk))
        return actor, talk

    yield start
    for actor, talk in started:
        talk.endpoint.close()
        actor.shutdown()
        actor.server_close()


GOOD = data({"content": "Fine."}, finish="stop")


def test_reasoning_content_is_the_thought_and_the_servers_counts_are_taken(acting: Acting) -> None:
    usage = {
        "prompt_tokens": 30,
        "completion_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 20},
        "completion_tokens_details": {"reasoning_tokens": 8},
    }
    stream = data(
        {"role": "assistant", "content": None},
        {"reasoning_content": "Let me"},
        {"reasoning_content": " see.\n"},
        {"content": "\n\nIt is "},
        {"content": "42."},
        finish="stop",
        usage=usage,
    )
    _, talk = acting(saying(stream))
    reply = talk.say("x")
    assert (reply.thought, reply.answer) == ("Let me see.", "It is 42.")
    stats = reply.stats
    assert stats is not None
    assert (stats.prompt_tokens, stats.reused_tokens, stats.n_ctx, stats.context_tokens) == (30, 20, 4096, 42)
    assert (stats.thought_tokens, stats.answer_tokens) == (8, 4)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_slow_server_and_cuts_anywhere(acting: Acting, size: int) -> None:
    stream = data({"reasoning": "déjà 🙂"}, {"content": "a\u2028b 🙂"}, finish="stop").replace(b"\n", b"\r\n")
    _, talk = acting(slowly(b": a comment\r\n\r\nevent: message\r\n" + stream, size, 0.0005))
    reply = talk.say("x")
    assert (reply.thought, reply.answer) == ("déjà 🙂", "a\u2028b 🙂")


def test_half_characters_are_put_together(acting: Acting) -> None:
    stream = b"".join(
        b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n' % half
        for half in (b"hi \\ud83d", b"\\ude42", b" \\ud83d!")
    )
    _, talk = acting(saying(stream + b"data: [DONE]\n\n"))
    assert talk.say("x").answer == "hi 🙂 \ufffd!"


def test_what_is_asked(acting: Acting) -> None:
    actor, talk = acting(saying(GOOD), saying(GOOD))
    talk.say("x")
    talk.say("x", ReplyOptions(temperature=0.0, top_k=5, seed=7, think="off", max_tokens=9, repeat_penalty=1.1))
    plain, chosen = actor.asked
    assert plain == {
        "model": "actor",
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 8192,
    }
    assert chosen == plain | {
        "temperature": 0.0,
        "top_k": 5,
        "seed": 7,
        "max_tokens": 9,
        "repeat_penalty": 1.1,
        "repetition_penalty": 1.1,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert actor.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_a_begun_reply_is_gone_on_with(acting: Acting) -> None:
    actor, talk = acting(saying(data({"content": " two"}, finish="stop")))
    begun = [{"role": "user", "content": "count"}, {"role": "assistant", "content": "one"}]
    assert talk.rest(talk.endpoint.generate(begun)).answer == " two"
    assert actor.asked[0]["messages"] == begun
    assert (actor.asked[0]["continue_final_message"], actor.asked[0]["add_generation_prompt"]) == (True, False)


def test_a_server_without_streaming_is_understood(acting: Acting) -> None:
    whole = {"choices": [{"message": {"content": "<think>Hm.</think>Fine."}, "finish_reason": "length"}]}
    _, talk = acting(saying(json.dumps(whole).encode(), kind="application/json"))
    reply = talk.say("x")
    assert (reply.thought, reply.answer, reply.message.stop_reason) == ("Hm.", "Fine.", "length")


@pytest.mark.parametrize(
    ("acts", "tries"),
    [
        ([saying(b"", 503), saying(b"", 429, retry_after="0"), saying(GOOD)], 3),
        ([breaking(b""), breaking(b""), saying(GOOD)], 3),
    ],
)
def test_busy_and_broken_before_the_reply_is_tried_again(acting: Acting, acts: list[Any], tries: int) -> None:
    actor, talk = acting(*acts)
    assert talk.say("x").answer == "Fine."
    assert len(actor.asked) == tries


def test_it_is_not_tried_for_ever_nor_when_told_to_come_back_tomorrow(acting: Acting) -> None:
    actor, talk = acting(*[saying(b'{"error": {"message": "full"}}', 503)] * 4, saying(b"", 429, retry_after="86400"))
    failed = talk.say("x").end
    assert isinstance(failed, Failed)
    assert (failed.exit_code, len(actor.asked)) == (1, 4)
    assert "busy or out of order (503): full" in failed.message
    assert isinstance(talk.say("x").end, Failed)
    assert len(actor.asked) == 5


def test_a_limit_nobody_chose_is_left_out_where_it_is_refused(acting: Acting) -> None:
    refusal = saying(b'{"error": {"message": "max_tokens is too large: 8192"}}', 400)
    actor, talk = acting(refusal, saying(GOOD), refusal)
    assert talk.say("x").answer == "Fine."
    assert "max_tokens" not in actor.asked[1]
    failed = talk.say("x", ReplyOptions(max_tokens=9000)).end
    assert isinstance(failed, Failed)
    assert failed.exit_code == 2


@pytest.mark.parametrize(
    ("act", "complaint"),
    [
        (saying(data({"content": "Half"}, done=False)), "hung up in the middle of the reply"),
        (breaking(data({"content": "Half"}, done=False)), "broke the connection off in the middle"),
        (hanging(data({"content": "Half"}, done=False)), "said nothing for 1 seconds"),
        (saying(data({"content": "Half"}, done=False) + b'data: {"error": {"message": "CUDA"}}\n\n'), "failed: CUDA"),
        (saying(data({"content": "Half"}, done=False) + b"data: {oops\n\n"), "sends no JSON: {oops"),
        (saying(data({"content": "Half"}, done=False) + b"data: \xff\xfe\n\n"), "not UTF-8"),
    ],
)
def test_a_server_that_stops_half_way(acting: Acting, act: Callable[..., None], complaint: str) -> None:
    actor, talk = acting(act, saying(GOOD), silence=1.0)
    reply = talk.say("x")
    assert isinstance(reply.end, Failed)
    assert reply.message.content == "Half"
    assert complaint in reply.end.message
    assert reply.end.exit_code == 1
    assert len(actor.asked) == 1  # what has begun is not asked for again
    assert talk.say("x").answer == "Fine."


@pytest.mark.parametrize(
    ("act", "exit_code", "complaint"),
    [
        (saying(b'{"error": {"message": "no such thing"}}', 400), 2, "refuses the request (400): no such thing"),
        (saying(b'{"detail": [{"msg": "field required", "loc": ["body", "x"]}]}', 422), 2, "field required body.x"),
        (saying(b"<html><body><h1>Not\nFound</h1></body></html>", 404), 2, "has no chat: Not Found"),
        (saying(b"\x1b[31mboom\x1b[0m", 500), 1, "failed (500): ?[31mboom?[0m"),
        (saying(b"<html>Welcome to nginx</html>", 200, "text/html"), 1, "sends no JSON: Welcome to nginx"),
        (saying(b"3", 200, "application/json"), 1, "something else than a reply: 3"),
        (saying(b'{"choices": 3}', 200, "application/json"), 1, "something else than a reply"),
        (saying(b"", 307, location="http://elsewhere/"), 2, "leads elsewhere: http://elsewhere/"),
        (saying(f"no {KEY}".encode(), 400), 2, "no ***"),
        (saying(b"data: [DONE]\n\n"), 1, "hung up without a reply"),
        (saying(b""), 1, "hung up without a reply"),
    ],
)
def test_a_server_that_answers_wrongly(
    acting: Acting, act: Callable[..., None], exit_code: int, complaint: str
) -> None:
    _, talk = acting(act, saying(GOOD))
    failed = talk.say("x").end
    assert isinstance(failed, Failed)
    assert complaint in failed.message
    assert KEY not in failed.message
    assert failed.exit_code == exit_code
    assert talk.say("x").answer == "Fine."


def test_stop_in_the_middle_of_a_thought_while_the_server_is_silent(acting: Acting) -> None:
    _, talk = acting(hanging(data({"reasoning_content": "Hm"}, done=False)), saying(GOOD))
    number = talk.ask("x")
    later = talk.ask("y")
    begun = talk.until(lambda event: isinstance(event, ThinkDelta))
    talk.endpoint.stop()
    asked = time.monotonic()
    events = begun + talk.until(lambda event: isinstance(event, Done) and event.reply == later)
    assert time.monotonic() - asked < 5
    ends = [event for event in events if isinstance(event, ThinkEnd)]
    assert [(end.reply, end.why) for end in ends] == [(number, "stopped")]
    assert [event.reason for event in events if isinstance(event, Done)] == ["stopped", "stopped"]
    assert len([event for event in events if isinstance(event, Stats)]) == 2
    assert not talk.endpoint.busy


def test_several_models_are_named_and_none_is_guessed() -> None:
    actor = Actor()
    actor.models = {"data": [{"id": "one"}, {"id": "two"}]}
    talk = Talk(Remote(actor.remote.url))
    failed = talk.loaded()
    assert isinstance(failed, Failed)
    assert "several models: one, two" in failed.message
    talk.endpoint.load(Remote(actor.remote.url, "two"))
    assert isinstance(talk.loaded(), Loaded)
    actor.models = {"hello": "world"}
    talk.endpoint.load(Remote(actor.remote.url))
    failed = talk.loaded()
    assert isinstance(failed, Failed)
    assert "does not speak the OpenAI API" in failed.message
    talk.endpoint.close()
    actor.shutdown()


def test_nobody_there() -> None:
    talk = Talk(Remote(f"http://127.0.0.1:{port()}/v1", "x"))
    failed = talk.loaded()
    assert isinstance(failed, Failed)
    assert "cannot be reached" in failed.message
    assert failed.exit_code == 1
    talk.endpoint.close()
