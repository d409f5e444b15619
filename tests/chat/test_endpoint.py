"""Endpoints: servers that are slow, wrong, or gone half-way."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from acting_server import KEY, Actor, Talk, breaking, data, hanging, port, saying, slowly
from chat_command import chat

from ftllm.chat.events import Done, Failed, Loaded, Stats, ThinkDelta, ThinkEnd
from ftllm.chat.options import ReplyOptions
from ftllm.chat.remote import Remote

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
    talk.say(
        "x",
        ReplyOptions(
            temperature=0.0,
            top_k=5,
            seed=7,
            think="off",
            max_tokens=9,
            repeat_penalty=1.1,
            presence_penalty=1.5,
            think_budget=3,
            template_kwargs={"reasoning_effort": "high"},
        ),
    )
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
        "presence_penalty": 1.5,
        "repeat_penalty": 1.1,
        "repetition_penalty": 1.1,
        "reasoning_budget_tokens": 3,
        "thinking_token_budget": 3,
        "chat_template_kwargs": {"enable_thinking": False, "reasoning_effort": "high"},
    }
    assert actor.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_loops_are_told_and_stopped(acting: Acting) -> None:
    for_ever = data(*[{"content": word} for _ in range(300) for word in ("la", " li")], finish="stop")
    thinking = data(*[{"reasoning_content": "hm"} for _ in range(300)], {"content": "So."}, finish="stop")
    _, talk = acting(saying(for_ever), saying(for_ever), saying(for_ever), saying(thinking))
    warned = talk.say("x")
    assert (warned.loop is not None, warned.message.stop_reason, len(warned.answer)) == (True, "stop", 1500)
    assert talk.say("x", ReplyOptions(loops="off")).loop is None
    stopped = talk.say("x", ReplyOptions(loops="stop"))
    assert (stopped.message.stop_reason, stopped.answer) == ("loop", ("la li" * 100)[: len(stopped.answer)])
    assert len(stopped.answer) < 400
    thought = talk.say("x", ReplyOptions(loops="stop"))
    assert (thought.message.stop_reason, thought.answer, set(thought.thought)) == ("loop", "", {"h", "m"})


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


def test_a_server_that_keeps_the_line_open_after_the_end(acting: Acting) -> None:
    """As llama-server does: the command says its answer, nothing else, and ends."""
    actor, _ = acting(hanging(GOOD))
    done = chat(actor.remote.url, "-p", "x", "--model", "actor")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Fine.\n", "")


def test_a_budget_that_is_not_kept_is_told_once(acting: Acting, tmp_path: Path) -> None:
    long = data(*[{"reasoning_content": f"{number} "} for number in range(60)], {"content": "Fine."}, finish="stop")
    actor, _ = acting(saying(long), saying(long), saying(long))
    ask = (actor.remote.url, "--model", "actor", "--think-budget", "20", "--no-show-thoughts")
    done = chat(*ask, "-p", "x")
    assert (done.returncode, done.stdout) == (0, "Fine.\n")
    assert done.stderr == "warning: it thought for 60 tokens: this endpoint does not keep to --think-budget\n"
    (tmp_path / "q.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    done = chat(*ask, "--batch", tmp_path / "q.jsonl")
    assert done.returncode == 0
    assert done.stderr.count("does not keep to --think-budget") == 1


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
