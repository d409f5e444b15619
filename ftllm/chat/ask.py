"""One question, answered to the end: what `ftllm chat -p` does, without a screen."""

from __future__ import annotations

import json
import queue
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ftllm.chat import store as chats
from ftllm.chat.events import AnyEvent, Done, Failed, Loaded, StateSaved
from ftllm.chat.options import ChatOptions
from ftllm.chat.remote import Remote, Target, lasting
from ftllm.chat.session import Reply, Session
from ftllm.chat.states import prune, state_file
from ftllm.chat.store import Store
from ftllm.chat.voice import Voice
from ftllm.errors import UserError, WorkError

C1_ESCAPES = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}


class Kept:
    """A session that a question goes on with, or begins.

    Args:
        store: where it is kept.
        name: its title, number or uid; another name begins a session of that title.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name
        self.info = chats.find_session(store, name)
        self.nodes = chats.shown(store, self.info.id) if self.info else []

    @property
    def shows_images(self) -> bool:
        """Whether an image was shown in it."""
        return any(node.message.images for node in self.nodes)

    def begin(self, prompt: str, options: ChatOptions, author: chats.Author) -> chats.Recorder:
        """Add the question; the recorder of its reply."""
        with self.store.writing():
            # another process may have begun it since
            info = self.info or chats.find_session(self.store, self.name)
            info = self.info = info or chats.create_session(self.store, title=self.name)
            chats.set_system(self.store, info.id, options.system)
            chats.change_session(self.store, info.id, model=author.model, load=options.load, options=author.options)
            after = chats.last_of(self.nodes)
            asked = chats.add_user(self.store, info.id, prompt, after=after, images=options.images)
            return chats.begin_reply(self.store, info.id, after=asked.id, author=author)


class Asker:
    """Someone to talk to, and their events, for callers that wait. Use it as a context manager.

    Attributes:
        model: what answers, as it was given; of an endpoint with its only model's name.
    """

    def __init__(self) -> None:
        self.model = ""
        self._events: queue.SimpleQueue[AnyEvent] = queue.SimpleQueue()
        self._voice = Voice(self._events.put)

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self._voice.close()

    def start(self) -> None:
        """Start the local engine's process, while the caller looks for a model to load."""
        self._voice.start()

    def ask(
        self,
        target: Target,
        prompt: str,
        options: ChatOptions,
        on_event: Callable[[AnyEvent], None] = lambda _: None,
        kept: Kept | None = None,
    ) -> Reply:
        """Load a model and ask it one thing; `on_event` sees every event as it comes.

        Ctrl-C while the reply is under way ends it; what came so far is returned, stopped. A reply that failed after
        it had begun is returned too, its `end` a `Failed`.

        Args:
            kept: the session to go on with; a question to which no reply was begun is not kept.

        Raises:
            UserError: the model cannot be loaded, or nothing of the reply could be made.
            KeyboardInterrupt: Ctrl-C before the model was loaded, or a second time.
        """
        self.model = str(target)
        self._voice.load(target, options.load)
        if kept is not None and kept.info is not None:
            self._voice.load_state(state_file(kept.info.uid))
        session = Session(options.system, [node.message for node in kept.nodes] if kept else [])
        session.ask(prompt, options.images)
        number = self._voice.generate(session.context(), options.reply)
        author = chats.Author(str(lasting(target)), "", options.reply)
        reply = Reply()
        recorder: chats.Recorder | None = None
        with _Interrupt(self._voice.stop) as interrupt:
            try:
                while True:
                    event = self._events.get()
                    if isinstance(event, Loaded):
                        interrupt.arm()
                        author = replace(author, model_hash=event.fingerprint)
                        if isinstance(target, Remote):
                            self.model = event.path  # the endpoint's only model has a name now
                            author = replace(author, model=event.path)
                    if kept and recorder is None and event.reply == number and not isinstance(event, Failed):
                        recorder = kept.begin(prompt, options, author)
                        reply = recorder.reply
                    on_event(event)
                    if event.reply == number:
                        (recorder or reply).feed(event)
                    if isinstance(event, Failed) and (event.reply == 0 or not (reply.answer or reply.thoughts)):
                        raise error_of(event)
                    if isinstance(event, Done | Failed):
                        break
            finally:
                if recorder is not None and reply.end is None:
                    recorder.finish()
        if kept is not None and kept.info is not None and isinstance(target, Path) and isinstance(event, Done):
            self._save_state(state_file(kept.info.uid))
        return reply

    def _save_state(self, path: Path) -> None:
        """Keep what the model has read for the session's next question; where that fails, it is read again."""
        self._voice.save_state(path)
        while not isinstance(event := self._events.get(), StateSaved | Failed):
            pass
        if isinstance(event, StateSaved) and not event.error:
            prune(path)


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


def as_json(reply: Reply, model: str) -> str:
    """The object `ftllm chat --json` prints, on one line."""
    return json_line(reply_values(reply, model))


def reply_values(reply: Reply, model: str) -> dict[str, Any]:
    """What `--json` tells of a reply. Seconds are rounded to milliseconds."""
    message, stats = reply.message, reply.stats
    return {
        "answer": message.content,
        "thought": message.thought,
        "thought_seconds": round(message.thought_seconds, 3),
        "thought_tokens": message.thought_tokens,
        "answer_tokens": message.answer_tokens,
        "prompt_tokens": (stats.prompt_tokens or None) if stats else None,  # some endpoints do not tell
        "tokens_per_second": _rounded(stats.tokens_per_second if stats else None, 2),
        "time_to_first_token": _rounded(stats.time_to_first_token if stats else None, 3),
        "stop_reason": message.stop_reason,
        "model": model,
    }


def json_line(value: Mapping[str, Any]) -> str:
    """JSON on one line, as people read it, with nothing in it that a terminal obeys (JSON escapes the rest itself)."""
    return json.dumps(value, ensure_ascii=False).translate(C1_ESCAPES)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
