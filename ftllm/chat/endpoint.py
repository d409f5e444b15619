"""A model on someone's server, heard through the same events as the local engine's.

Talks the OpenAI chat API, as llama-server, vLLM, Ollama, LM Studio and others do. Before a reply has begun, lost
connections and busy servers are tried again; after that a failure ends the reply, and what came of it stays.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import field
from typing import TYPE_CHECKING, Any, cast

from ftllm.chat import wire
from ftllm.chat.events import AnyEvent, Done, DoneReason, Failed, Loaded, LoopSuspected, Stats, ThinkEndReason
from ftllm.chat.offers import context_length, parse_models, request_headers
from ftllm.chat.options import LoadSettings, ReplyOptions
from ftllm.chat.prompt import is_begun
from ftllm.chat.refusals import BusyError, check, lost
from ftllm.chat.remote import Remote, api_key
from ftllm.chat.writer import Writer
from ftllm.errors import UserError, WorkError
from ftllm.loops import LoopGuard
from ftllm.thoughts import ThoughtTags
from ftllm.values import dataclass

if TYPE_CHECKING:
    import httpx

FIRST_NUMBER = 1_000_000  # replies are numbered from here, so that no number is an engine's too
CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 600.0  # a long prompt on a slow machine may take that long before its first token
TRIES = 4
PAUSE_SECONDS = 0.5  # before the second try; doubled for each further one
LONGEST_PAUSE = 30.0  # of those that a server asks for
TOO_LONG = ("max_tokens", "max_completion_tokens", "context length", "maximum context")
DONE_REASONS: dict[str, DoneReason] = {"length": "length", "loop": "loop"}


@dataclass
class _Course:
    """One reply under way."""

    number: int
    messages: list[dict[str, Any]]
    options: ReplyOptions
    writer: Writer
    asked: float
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    reasoning: bool = False  # the thought under way came in a field of its own, not between tags
    first: float | None = None
    last: float = 0.0
    finish_reason: str | None = None
    guard: LoopGuard = field(default_factory=LoopGuard)
    usage: Mapping[str, Any] = field(default_factory=dict)
    whole: tuple[wire.Whole, wire.Whole] = field(default_factory=lambda: (wire.Whole(), wire.Whole()))


class Endpoint:
    """One model behind one endpoint; the same methods as the engine's `Engine`, which return at once.

    Args:
        on_event: called with each event, in order, on a thread of its own; must not block for long.
        silence: seconds a server may say nothing.
        pause: seconds before the second try.
    """

    def __init__(
        self,
        on_event: Callable[[AnyEvent], None],
        *,
        silence: float = SILENCE_SECONDS,
        pause: float = PAUSE_SECONDS,
    ) -> None:
        self._on_event = on_event
        self._silence, self._pause = silence, pause
        self._lock = threading.Lock()
        self._numbers = FIRST_NUMBER
        self._pending: dict[int, _Course] = {}
        self._remote: Remote | None = None
        self._key: str | None = None
        self._n_ctx = 0
        self._names: list[str] = []
        self._closed = False
        self._client: httpx.AsyncClient | None = None
        self._loop = asyncio.new_event_loop()
        self._jobs: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self._thread = threading.Thread(target=self._run, name="endpoint", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a reply is under way or queued."""
        return bool(self._pending)

    def load(self, remote: Remote, settings: LoadSettings | None = None) -> None:
        """Take a model for the replies to come; `Loaded` or `Failed` follows. There is nothing to set about it."""
        del settings
        self._later(lambda: self._load(remote))

    def generate(self, messages: Sequence[Mapping[str, Any]], options: ReplyOptions | None = None) -> int:
        """Ask for the assistant's next turn; the reply's number."""
        with self._lock:
            if self._closed:
                raise WorkError("the connection is closed")
            self._numbers += 1
            number = self._numbers
            course = _Course(
                number,
                [dict(message) for message in messages],
                options or ReplyOptions(),
                Writer(self._emit, number, ThoughtTags()),
                time.monotonic(),
            )
            if is_begun(course.messages):
                course.writer.resume()
            self._pending[number] = course
        self._later(lambda: self._reply(course))
        return number

    def stop(self) -> None:
        """End all replies asked for so far; each still gets its `Done`."""
        for course in tuple(self._pending.values()):
            self._soon(course.stop.set)

    def close(self, timeout: float = 2.0) -> None:
        """Hang up. No events after this."""
        with self._lock:
            self._closed = True
        self.stop()
        self._soon(self._loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        serving = self._loop.create_task(self._serve())
        try:
            self._loop.run_forever()
            serving.cancel()
            with suppress(asyncio.CancelledError):
                self._loop.run_until_complete(serving)
            if self._client is not None:
                self._loop.run_until_complete(self._client.aclose())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        while True:
            await (await self._jobs.get())()

    def _soon(self, work: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(work)

    def _later(self, job: Callable[[], Awaitable[None]]) -> None:
        self._soon(lambda: self._jobs.put_nowait(job))

    def _emit(self, event: AnyEvent) -> None:
        if not self._closed:
            self._on_event(event)

    async def _load(self, remote: Remote) -> None:
        began = time.monotonic()
        self._key = await asyncio.to_thread(api_key, remote)  # a keyring may ask the person
        self._remote, self._n_ctx, self._names = remote, 0, []
        try:
            models = await self._retrying(self._models)
            self._names = [str(model["id"]) for model in models if model.get("id")]
            if not remote.model:
                if len(self._names) > 1:
                    raise UserError(
                        f"{remote.url} has several models: {', '.join(self._names[:20])}",
                        "choose one with --model NAME",
                    )
                self._remote = remote = Remote(remote.url, "".join(self._names))
            info: dict[str, Any] = next((model for model in models if model.get("id") == remote.model), {})
            self._n_ctx = context_length(info)
        except UserError as error:
            self._remote = None
            self._emit(self._failed(0, error))
            return
        now = time.monotonic()
        self._emit(Loaded(now, 0, str(remote), remote.model, self._n_ctx, self._n_ctx, 0, 0, now - began))

    async def _models(self) -> list[dict[str, Any]]:
        """What the endpoint has; nothing where it does not tell."""
        response = await self._http().get(f"{self._target.url}/models", headers=request_headers(self._key))
        if response.status_code in (404, 405) and self._target.model:
            return []
        self._check(response, response.content)
        return parse_models(self._target, response.text)

    async def _reply(self, course: _Course) -> None:
        streaming = asyncio.ensure_future(self._retrying(lambda: self._stream(course), course))
        stopping = asyncio.ensure_future(course.stop.wait())
        failure: UserError | None = None
        try:
            await asyncio.wait((streaming, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not streaming.done():
                streaming.cancel()
            await asyncio.wait((streaming,))
            if not streaming.cancelled() and (error := streaming.exception()) is not None:
                failure = error if isinstance(error, UserError) else _bug(error)
        finally:
            stopping.cancel()
            streaming.cancel()
        stopped = streaming.cancelled()
        reason: DoneReason = "stopped" if stopped else DONE_REASONS.get(course.finish_reason or "", "stop")
        if course.reasoning and course.writer.thinking and not stopped and failure is None and reason != "loop":
            course.writer.close_thought("", 0, "closed")
        left: ThinkEndReason = "unclosed" if reason == "stop" else "loop" if reason == "loop" else "cut"
        course.writer.finish("", why="stopped" if stopped or failure else left)
        with self._lock:
            self._pending.pop(course.number, None)
        if failure is not None:
            self._emit(self._failed(course.number, failure))
            return
        self._emit(self._stats(course))
        self._emit(Done(time.monotonic(), course.number, reason))

    async def _retrying(self, work: Callable[[], Awaitable[Any]], course: _Course | None = None) -> Any:
        """Do `work`, again while the connection fails or the server is busy and nothing has come of it yet."""
        import httpx

        for attempt in range(1, TRIES + 1):
            pause = self._pause * 2 ** (attempt - 1) * random.uniform(0.8, 1.2)
            try:
                return await work()
            except BusyError as busy:
                failure, pause = busy.failure, pause if busy.pause is None else busy.pause
            except httpx.TransportError as error:
                begun = course is not None and course.first is not None
                failure = lost(error, self._target, begun=begun, silence=self._silence)
                if begun or isinstance(error, httpx.ReadTimeout | httpx.UnsupportedProtocol):
                    raise failure from None
            except httpx.HTTPError as error:
                raise WorkError(f"{self._target.url}: {error}", wire.NOT_OPENAI) from None
            if attempt == TRIES or pause > LONGEST_PAUSE:
                raise failure
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def _stream(self, course: _Course) -> None:
        """Ask, and take the reply as it comes.

        Raises:
            UserError: the request is refused.
            WorkError: the server failed, or stopped half-way.
        """
        body = wire.request_body(self._target.model, course.messages, course.options)
        default = course.options.max_tokens == ReplyOptions().max_tokens
        try:
            await self._take(course, body)
        except UserError as error:
            # the limit was not the person's choice, and some servers refuse one that is beyond their context
            if not default or not any(words in error.message for words in TOO_LONG):
                raise
            del body["max_tokens"]
            await self._take(course, body)

    async def _take(self, course: _Course, body: dict[str, Any]) -> None:
        url, headers = f"{self._target.url}/chat/completions", request_headers(self._key)
        async with self._http().stream("POST", url, json=body, headers=headers) as response:
            if response.status_code != 200:
                self._check(response, await _beginning(response))
            if "event-stream" not in response.headers.get("content-type", ""):
                # the whole reply at once, from a server that does not stream; or no reply at all
                pieces = wire.piece_of((await _beginning(response, wire.MAX_EVENT)).decode("utf-8", "replace"))
                self._heard(course, pieces or wire.Piece())
                return
            ended = False
            # both closed by hand: one left to the garbage collector outlives the loop
            chunks = cast("AsyncGenerator[bytes, None]", response.aiter_bytes())
            async with aclosing(chunks), aclosing(wire.server_sent_events(chunks)) as events:
                async for data in events:
                    piece = wire.piece_of(data)
                    if piece is None:
                        ended = True
                        break
                    self._heard(course, piece)
                    if course.finish_reason == "loop":
                        return
        if course.finish_reason is None and (course.first is None or not ended):
            where = "without a reply" if course.first is None else "in the middle of the reply"
            raise WorkError(f"{self._target.host} hung up {where}", "ask again; the server's own log may say more")

    def _heard(self, course: _Course, piece: wire.Piece) -> None:
        writer, now = course.writer, time.monotonic()
        if piece.thought or piece.answer:
            course.first, course.last = (now if course.first is None else course.first), now
        if piece.thought:
            if not course.reasoning:
                course.reasoning = True
                writer.open_thought()
            writer.take(course.whole[0].feed(piece.thought))
        if piece.answer:
            if course.reasoning:
                course.reasoning = False
                writer.close_thought("", 0, "closed")
            writer.take(course.whole[1].feed(piece.answer))
        course.finish_reason = piece.finish_reason or course.finish_reason
        course.usage = piece.usage or course.usage
        if piece.thought or piece.answer:
            self._look_for_loops(course, piece)

    def _look_for_loops(self, course: _Course, piece: wire.Piece) -> None:
        """As the engine does, with the pieces that came for tokens; a thought can only be ended with its reply."""
        if course.options.loops == "off":
            return
        found = course.guard.look(hash((piece.thought, piece.answer)))
        if found is not None:
            thinking = course.writer.thinking
            self._emit(LoopSuspected(time.monotonic(), course.number, found.period, found.count, thinking))
            if course.options.loops == "stop":
                course.finish_reason = "loop"

    def _stats(self, course: _Course) -> Stats:
        """The figures: the server's own counts where it gives them, else a token for each piece of text."""
        writer, usage = course.writer, course.usage
        details = usage.get("completion_tokens_details") or {}
        thought = _count(details, "reasoning_tokens") or writer.thought_tokens
        total = _count(usage, "completion_tokens") or writer.thought_tokens + writer.answer_tokens
        prompt = _count(usage, "prompt_tokens")
        cached = _count(usage.get("prompt_tokens_details") or {}, "cached_tokens")
        seconds = course.last - course.first if course.first is not None else 0.0
        return Stats(
            time=time.monotonic(),
            reply=course.number,
            prompt_tokens=prompt,
            reused_tokens=cached,
            thought_tokens=thought,
            answer_tokens=max(0, total - thought),
            thought_seconds=writer.thought_seconds,
            time_to_first_token=None if course.first is None else course.first - course.asked,
            tokens_per_second=(total - 1) / seconds if seconds > 0 and total > 1 else None,
            n_ctx=self._n_ctx,
            context_tokens=prompt + total,
        )

    def _check(self, response: httpx.Response, body: bytes) -> None:
        has_key = self._key is not None
        check(self._target, response.status_code, response.headers, body, has_key=has_key, names=self._names)

    def _failed(self, number: int, error: UserError) -> Failed:
        message = error.message.replace(self._key, "***") if self._key else error.message
        return Failed(time.monotonic(), number, message, error.hint, error.exit_code)

    @property
    def _target(self) -> Remote:
        if self._remote is None:
            raise WorkError("no model is chosen")
        return self._remote

    def _http(self) -> httpx.AsyncClient:
        """The client, made on the loop. It follows no redirects: a key must not reach another host."""
        import httpx

        if self._client is None:
            timeout = httpx.Timeout(CONNECT_SECONDS, read=self._silence, write=60.0)
            self._client = httpx.AsyncClient(timeout=timeout)
        return self._client


async def _beginning(response: httpx.Response, limit: int = 64 << 10) -> bytes:
    """A body, or as much of it as anyone wants."""
    data = b""
    async for chunk in response.aiter_bytes():  # the response is closed right after
        data += chunk
        if len(data) > limit:
            break
    return data[:limit]


def _count(values: Mapping[str, Any], name: str) -> int:
    value = values.get(name)
    return value if isinstance(value, int) and value > 0 else 0


def _bug(error: BaseException) -> WorkError:
    return WorkError(f"the connection failed: {type(error).__name__}: {error}", "this is a bug in ftllm")
