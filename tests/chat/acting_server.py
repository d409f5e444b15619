"""An endpoint to talk through, and a server behind it that does as it is told."""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ftllm.chat.endpoint import Endpoint
from ftllm.chat.events import AnyEvent, Done, Failed, Loaded
from ftllm.chat.options import ReplyOptions
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
