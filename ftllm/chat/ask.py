"""One question, answered to the end: what `ftllm chat -p` does, without a screen."""

from __future__ import annotations

import json
import queue
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ftllm.chat.engine import Engine
from ftllm.chat.events import AnyEvent, Done, Failed, Loaded
from ftllm.chat.options import ChatOptions
from ftllm.chat.session import Reply, Session
from ftllm.errors import UserError, WorkError


class Asker:
    """An engine and its events, for callers that wait. Use it as a context manager; it starts the engine at once."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[AnyEvent] = queue.SimpleQueue()
        self._engine = Engine(self._events.put)

    def __enter__(self) -> Asker:
        self._engine.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    def ask(
        self, path: Path, prompt: str, options: ChatOptions, on_event: Callable[[AnyEvent], None] = lambda _: None
    ) -> Reply:
        """Load a GGUF and ask it one thing; `on_event` sees every event as it comes.

        Ctrl-C while the reply is under way ends it; what came so far is returned, stopped. A reply that failed after
        it had begun is returned too, its `end` a `Failed`.

        Raises:
            UserError: the model cannot be loaded, or nothing of the reply could be made.
            KeyboardInterrupt: Ctrl-C before the model was loaded, or a second time.
        """
        self._engine.load(path, options.load)
        session = Session(options.system)
        session.ask(prompt)
        number = self._engine.generate(session.context(), options.reply)
        reply = Reply()
        with _Interrupt(self._engine.stop) as interrupt:
            while True:
                event = self._events.get()
                if isinstance(event, Loaded):
                    interrupt.arm()
                on_event(event)
                if event.reply == number:
                    reply.feed(event)
                if isinstance(event, Failed) and (event.reply == 0 or not (reply.answer or reply.thoughts)):
                    raise error_of(event)
                if isinstance(event, Done | Failed):
                    return reply


class _Interrupt:
    """Once armed, the first Ctrl-C calls `stop`, wherever the program is; a second one interrupts as usual.

    An exception would arrive anywhere, in the middle of printing an event too, and leave it half done.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._usual = signal.getsignal(signal.SIGINT)
        self._armed = False

    def arm(self) -> None:
        if threading.current_thread() is threading.main_thread() and callable(self._usual):
            signal.signal(signal.SIGINT, self._once)
            self._armed = True

    def _once(self, _number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, self._usual)
        self._stop()

    def __enter__(self) -> _Interrupt:
        return self

    def __exit__(self, *_: object) -> None:
        if self._armed:
            signal.signal(signal.SIGINT, self._usual)


def error_of(failed: Failed) -> UserError:
    """The error a failure is to the person: bad input, or work that failed, with the log's last words."""
    if failed.exit_code == UserError.exit_code:
        return UserError(failed.message, failed.hint)
    last = f": {failed.log[-1]}" if failed.log else ""
    return WorkError(failed.message + last, failed.hint)


def as_json(reply: Reply, model: Path) -> str:
    """The object `ftllm chat --json` prints, on one line. Seconds are rounded to milliseconds."""
    message, stats = reply.message, reply.stats
    value: dict[str, Any] = {
        "answer": message.content,
        "thought": message.thought,
        "thought_seconds": round(message.thought_seconds, 3),
        "thought_tokens": message.thought_tokens,
        "answer_tokens": message.answer_tokens,
        "prompt_tokens": stats.prompt_tokens if stats else None,
        "tokens_per_second": _rounded(stats.tokens_per_second if stats else None, 2),
        "time_to_first_token": _rounded(stats.time_to_first_token if stats else None, 3),
        "stop_reason": message.stop_reason,
        "model": str(model),
    }
    return json.dumps(value, ensure_ascii=False)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
