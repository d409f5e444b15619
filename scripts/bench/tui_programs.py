"""What tui.py runs in a pseudo-terminal: the screen over a recorded stream, or over the real engine.

    python scripts/bench/tui_programs.py play KIND RATE
    python scripts/bench/tui_programs.py speak KIND RATE PAUSE
    python scripts/bench/tui_programs.py long MESSAGES RATE FIGURES
    python scripts/bench/tui_programs.py chat MODEL TOKENS FIGURES

KIND is mixed, code or thought; RATE is in tokens per second, PAUSE in seconds between two deltas; FIGURES is the file
that figures are left in, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

TOKENS = 8000
WORDS = ["the", "model", "reads", "a", "line", "of", "text", "and", "writes", "another", "one", "after", "it"]
CODE = ["value", " =", " compute", "(", "left", ",", " right", ")", "  #", " a", " note", "\n"]


def program(*arguments: str) -> list[str]:
    """The command that runs one of these."""
    return [sys.executable, str(Path(__file__).resolve()), *arguments]


def measured(tokens: int) -> Any:
    from ftllm.chat.options import ChatOptions, ReplyOptions

    return ChatOptions(reply=ReplyOptions(max_tokens=tokens, ignore_end=True, loops="off", seed=1))


def speak(kind: str, rate: float, pause: float) -> None:
    """The recorded stream, as an engine's process writes it: a line after each `pause`, in seconds."""
    from ftllm.chat.events import Done, TextDelta, ThinkDelta, ThinkStart, to_json

    def say(event: Any) -> None:
        sys.stdout.write(to_json(event) + "\n")
        sys.stdout.flush()

    began, told = time.perf_counter(), 0
    if kind == "thought":
        say(ThinkStart(0.0, 1))
    if kind == "code":
        say(TextDelta(0.0, 1, "```python\n"))
    while told < TOKENS:
        time.sleep(pause)
        now = time.perf_counter() - began
        due = min(int(now * rate), TOKENS)
        text = "".join(token(kind, number) for number in range(told, due))
        told = due
        if text:
            say(ThinkDelta(now, 1, text, told) if kind == "thought" else TextDelta(now, 1, text))
    say(Done(time.perf_counter() - began, 1, "stop"))


def token(kind: str, number: int) -> str:
    if kind == "code":
        return CODE[number % len(CODE)]
    word = WORDS[number % len(WORDS)] + " "
    return word + ("\n\n" if number % 40 == 39 else "")


class Player:
    """A talker over a recorded stream in a process of its own, so that nothing of it is counted as the screen's."""

    def __init__(self, put: Callable[[Any], None], kind: str, rate: str) -> None:
        self._put, self._kind, self._rate = put, kind, rate

    def generate(self, _messages: object, options: Any, *_: object) -> int:
        command = program("speak", self._kind, self._rate, str(options.delta_seconds))
        threading.Thread(target=self._read, args=(command,), daemon=True).start()
        return 1

    def _read(self, command: list[str]) -> None:
        from ftllm.chat.events import from_json

        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for line in process.stdout:
                self._put(from_json(line.decode()))

    def load(self, *_: object) -> None: ...

    def stop(self) -> None: ...

    def answer_now(self) -> None: ...

    def save_state(self, *_: object) -> None: ...

    def load_state(self, *_: object) -> None: ...


def play(kind: str, rate: str) -> None:
    """The screen over a recorded stream."""
    from ftllm.chat.events import Loaded
    from ftllm.chat.options import ChatOptions
    from ftllm.chat.store import memory_store
    from tui.app import ChatApp
    from tui.inbox import Inbox
    from tui.setup import Setup
    from tui.widgets.composer import Composer

    inbox = Inbox()
    inbox.put(Loaded(0.0, 0, "recorded.gguf", "", 16384, 16384, 0, 0, 0.0, shares_cores=True))
    app = ChatApp(Setup(Player(inbox.put, kind, rate), inbox, memory_store(), Path("recorded.gguf"), ChatOptions()))
    app.call_later(lambda: app.screen.post_message(Composer.Sent("Go.")))
    app.run()


def open_long(messages: int, rate: str, figures: Path) -> None:
    """Open a long conversation on the screen, stream into it, and tell what that cost."""
    from ftllm.chat.events import Loaded
    from ftllm.chat.options import ChatOptions
    from ftllm.chat.session import ChatMessage
    from ftllm.chat.store import add_message, create_session, last_of, memory_store, shown
    from tui.app import ChatApp
    from tui.inbox import Inbox
    from tui.setup import Setup
    from tui.widgets.composer import Composer
    from tui.widgets.transcript import Transcript

    store = memory_store()
    info = create_session(store, title="Long")
    code = "\n\n```python\n" + "".join(CODE) * 12 + "```\n"
    after = None
    for number in range(messages):
        words = " ".join(WORDS * (2 + number % 9))
        text = f"**{number}** {words}\n\n- one\n- two{code if number % 6 == 1 else ''}"
        thought = words if number % 4 == 1 else ""
        message = ChatMessage("assistant" if number % 2 else "user", text, thought=thought)
        after = add_message(store, info.id, message, after=after).id
    assert after == last_of(shown(store, info.id))

    inbox = Inbox()
    inbox.put(Loaded(0.0, 0, "recorded.gguf", "", 16384, 16384, 0, 0, 0.0, shares_cores=True))
    app = ChatApp(Setup(Player(inbox.put, "mixed", rate), inbox, store, Path("recorded.gguf"), ChatOptions()))

    async def measure() -> None:
        await asyncio.sleep(1)
        screen = app.screen
        transcript = screen.query_one(Transcript)
        before, began = memory(), time.perf_counter()
        screen.open_session(info.id)
        while not transcript.turns or "**999**" not in transcript.turns[-1].answer[0]:
            await asyncio.sleep(0)
        await screen._drawn()
        seconds = time.perf_counter() - began
        for _ in range(30):
            screen.action_scroll_pages(-1)
            await screen._drawn()
        screen.action_to_end()
        updates, redraw = 0, transcript.redraw

        def counted(*arguments: Any, **named: Any) -> None:
            nonlocal updates
            updates += 1
            redraw(*arguments, **named)

        transcript.redraw = counted
        screen.post_message(Composer.Sent("Go."))
        await asyncio.sleep(2)
        used, since = time.process_time(), updates
        await asyncio.sleep(8)
        update = (time.process_time() - used) / (updates - since) * 1000
        told = {"seconds": seconds, "megabytes": memory() - before, "update_ms": update}
        figures.write_text(json.dumps(told))
        app.exit()

    app.call_later(lambda: app.run_worker(measure()))
    app.run()


def memory() -> float:
    """Megabytes in use now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def chat(model: Path, tokens: int, figures: Path) -> None:
    """The screen over the real engine; each message begins a session, each reply's speed is a line of `figures`."""
    from ftllm.chat.events import Prepared, Stats
    from ftllm.chat.store import open_store
    from ftllm.chat.voice import Voice
    from tui.app import ChatApp
    from tui.inbox import Inbox
    from tui.setup import Setup

    inbox = Inbox()
    options = measured(tokens)
    app: ChatApp

    speed = 0.0

    def put(event: Any) -> None:
        nonlocal speed
        inbox.put(event)
        if isinstance(event, Stats):
            speed = event.tokens_per_second
        if isinstance(event, Prepared):  # the reply has been read again after its end
            app.call_from_thread(app.call_later, begin_anew)

    async def begin_anew() -> None:
        while app.screen.busy:
            await asyncio.sleep(0.01)
        app.screen.conversation.begin(None, options.reply)
        with figures.open("a") as file:
            print(speed, file=file)

    with Voice(put) as voice, open_store() as store:
        voice.load(model)
        app = ChatApp(Setup(voice, inbox, store, model, options))
        app._take_terminal = lambda: None  # it is stopped between replies, but nobody else has had the terminal
        app.run()


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    match what:
        case "play":
            play(*rest)
        case "speak":
            speak(rest[0], float(rest[1]), float(rest[2]))
        case "long":
            open_long(int(rest[0]), rest[1], Path(rest[2]))
        case "chat":
            chat(Path(rest[0]), int(rest[1]), Path(rest[2]))
