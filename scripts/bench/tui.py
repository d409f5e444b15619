"""The chat's screen in a real pseudo-terminal: what it costs, and how quick it is.

    python scripts/bench/tui.py                    # everything; about five minutes
    python scripts/bench/tui.py start keys growth session
    python scripts/bench/tui.py speed --rounds 5   # with the real engine, against the engine alone

start    from the command to a composer that shows what is typed, the model loading behind it
keys     from a key to its character on the screen, while a recorded reply streams at 100 tokens/s
growth   processor time a token, late in a reply of 8,000 tokens against early: in a block of code, in a thought
session  opening a conversation of 1,000 messages, its memory, and an update of a reply streaming into it
speed    tokens/s with the screen against the engine alone, at about 100 and 300 tokens/s, interleaved
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import resource
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

COLUMNS, ROWS = 120, 36
TOKENS = 8000
WORDS = ["the", "model", "reads", "a", "line", "of", "text", "and", "writes", "another", "one", "after", "it"]
CODE = ["value", " =", " compute", "(", "left", ",", " right", ")", "  #", " a", " note", "\n"]


class Terminal:
    """A program in a pseudo-terminal of its own, and what it writes there."""

    def __init__(self, command: list[str], environment: dict[str, str] | None = None) -> None:
        self.began = time.perf_counter()
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.environ.update({"TERM": "xterm-256color", "COLORTERM": "truecolor", **(environment or {})})
            os.execvp(command[0], command)
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.output = b""

    def read(self, timeout: float) -> bool:
        """Take what has come; whether the program still runs."""
        if not select.select([self._fd], [], [], timeout)[0]:
            return True
        try:
            self.output += os.read(self._fd, 65536)
        except OSError:
            return False
        return True

    def wait(self, text: str, patience: float = 60.0) -> float:
        """Seconds, from now on, until the program has written this."""
        start, wanted = time.perf_counter(), text.encode()
        while wanted not in self.output:
            if not self.read(0.5) or time.perf_counter() - start > patience:
                raise SystemExit(f"{text!r} did not come; the end of what did: {self.output[-2000:]!r}")
        return time.perf_counter() - start

    def send(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def run(self) -> None:
        """Until the program ends."""
        while self.read(0.5):
            self.output = self.output[-4096:]
        os.waitpid(self.pid, 0)

    def close(self) -> None:
        self.send("\x11")
        self.run()


def processor_seconds(pid: int) -> float:
    """What the threads of a process have used so far."""
    tasks = Path(f"/proc/{pid}/task")
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9


def program(*arguments: str) -> list[str]:
    return [sys.executable, str(Path(__file__).resolve()), *arguments]


def start(model: Path, rounds: int) -> Iterator[str]:
    times = []
    with tempfile.TemporaryDirectory() as home:
        for _ in range(rounds + 1):
            terminal = Terminal([sys.executable, "-m", "ftllm", "chat", str(model)], {"XDG_DATA_HOME": home})
            terminal.wait("rite a message")
            terminal.send("ß")
            terminal.wait("ß")
            times.append(time.perf_counter() - terminal.began)
            terminal.close()
    yield verdict("command to usable composer", statistics.median(times[1:]), 0.6, "s")


def keys(rounds: int) -> Iterator[str]:
    terminal = Terminal(program("--play", "mixed", "--rate", "100"))
    terminal.wait("answering")
    times = []
    for number in range(40 * rounds):
        character = chr(0x0100 + number % 120)
        terminal.output = b""
        time.sleep(0.037 + 0.011 * (number % 7))
        terminal.read(0)
        terminal.send(character)
        times.append(terminal.wait(character) * 1000)
    terminal.close()
    times.sort()
    yield verdict("key to screen while streaming, p50", times[len(times) // 2], 20, "ms")
    yield verdict("key to screen while streaming, p99", times[int(len(times) * 0.99)], 60, "ms")


def growth(rate: int = 400) -> Iterator[str]:
    for kind in ("code", "thought"):
        terminal = Terminal(program("--play", kind, "--rate", str(rate)))
        terminal.wait("answering" if kind == "code" else "thinking")
        began, used = time.perf_counter(), {}
        for share in (0.08, 0.28, 0.75, 0.95):
            while time.perf_counter() - began < share * TOKENS / rate:
                terminal.read(0.02)
                terminal.output = b""
            used[share] = processor_seconds(terminal.pid)
        terminal.close()
        early, late = used[0.28] - used[0.08], used[0.95] - used[0.75]
        cost = early / (0.2 * TOKENS) * 1000
        yield verdict(
            f"processor a token, late against early, in a {kind} ({cost:.2f} ms early)", late / early, 1.3, ""
        )


def session() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as directory:
        figures = Path(directory) / "figures.json"
        Terminal(program("--session", "1000", "--rate", "100", "--figures", str(figures))).run()
        told = json.loads(figures.read_text())
    yield verdict("opening 1,000 messages", told["seconds"], 0.5, "s")
    yield verdict("memory they take", told["megabytes"], 40, "MB")
    yield verdict("an update among them, processor time", told["update_ms"], 10, "ms")


def speed(rounds: int) -> Iterator[str]:
    import gemma300m as shape

    with tempfile.TemporaryDirectory() as directory:
        for layers, rate, least in ((16, 100, 0.97), (2, 300, 0.95)):
            shape.VOCABULARY, shape.WIDTH, shape.INNER, shape.LAYERS = 32_768, 512, 2048, layers
            model, figures = Path(directory) / f"{layers}.gguf", Path(directory) / "figures.json"
            shape.write(model)
            alone, drawn = [], []
            for _ in range(rounds):
                alone.append(headless(model, rate * 6))
                Terminal(program("--chat", str(model), "--tokens", str(rate * 6), "--figures", str(figures))).run()
                drawn.append(json.loads(figures.read_text())["tokens_per_second"])
            ratio = statistics.median(drawn) / statistics.median(alone)
            what = f"with the screen against the engine alone, at {statistics.median(alone):.0f} tokens/s"
            yield verdict(what, ratio, least, "", least=True)


def headless(model: Path, tokens: int) -> float:
    """Tokens per second of the engine, its events read and dropped."""
    import queue

    from ftllm.chat.engine import Engine
    from ftllm.chat.events import AnyEvent, Done, Stats

    events: queue.SimpleQueue[AnyEvent] = queue.SimpleQueue()
    with Engine(events.put) as engine:
        engine.load(model)
        engine.generate([{"role": "user", "content": "Write."}], measured(tokens).reply)
        rate = 0.0
        while not isinstance(event := events.get(), Done):
            if isinstance(event, Stats):
                rate = event.tokens_per_second or 0.0
    return rate


def measured(tokens: int) -> Any:
    from ftllm.chat.options import ChatOptions, ReplyOptions

    return ChatOptions(reply=ReplyOptions(max_tokens=tokens, ignore_end=True, loops="off", seed=1))


def verdict(what: str, value: float, limit: float, unit: str, *, least: bool = False) -> str:
    good = value >= limit if least else value <= limit
    mark = "ok  " if good else "MISS"
    return f"{mark} {what}: {value:.3g} {unit}".rstrip() + f" ({'at least' if least else 'at most'} {limit:g})"


def speak(kind: str, rate: float) -> None:
    """The recorded stream, as an engine's process writes it: a line every 20 ms."""
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
        time.sleep(0.02)
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
        self._put, self._command = put, program("--speak", kind, "--rate", rate)

    def generate(self, *_: object) -> int:
        threading.Thread(target=self._read, daemon=True).start()
        return 1

    def _read(self) -> None:
        from ftllm.chat.events import from_json

        with subprocess.Popen(self._command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for line in process.stdout:
                self._put(from_json(line.decode()))

    def load(self, *_: object) -> None: ...

    def stop(self) -> None: ...

    def answer_now(self) -> None: ...


def play(kind: str, rate: str) -> None:
    """The screen over a recorded stream."""
    from ftllm.chat.events import Loaded
    from ftllm.chat.options import ChatOptions
    from ftllm.chat.store import memory_store
    from tui.app import ChatApp
    from tui.inbox import Inbox
    from tui.widgets.composer import Composer

    inbox = Inbox()
    inbox.put(Loaded(0.0, 0, "recorded.gguf", "", 16384, 16384, 0, 0, 0.0))
    app = ChatApp(Player(inbox.put, kind, rate), inbox, memory_store(), Path("recorded.gguf"), ChatOptions())
    app.call_later(lambda: app.screen.post_message(Composer.Sent("Go.")))
    app.run()


def open_long(messages: int, rate: str, figures: Path) -> None:
    """Open a long conversation on the screen, stream into it, and tell what that cost."""
    import asyncio

    from ftllm.chat.events import Loaded
    from ftllm.chat.options import ChatOptions
    from ftllm.chat.session import ChatMessage
    from ftllm.chat.store import add_message, create_session, last_of, memory_store, shown
    from tui.app import ChatApp
    from tui.inbox import Inbox
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
    inbox.put(Loaded(0.0, 0, "recorded.gguf", "", 16384, 16384, 0, 0, 0.0))
    app = ChatApp(Player(inbox.put, "mixed", rate), inbox, store, Path("recorded.gguf"), ChatOptions())

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
    """The screen over the real engine, for one reply."""
    from ftllm.chat.events import Done, Stats
    from ftllm.chat.store import memory_store
    from ftllm.chat.voice import Voice
    from tui.app import ChatApp
    from tui.inbox import Inbox
    from tui.widgets.composer import Composer

    inbox = Inbox()
    app: ChatApp

    def put(event: Any) -> None:
        inbox.put(event)
        if isinstance(event, Stats):
            figures.write_text(json.dumps({"tokens_per_second": event.tokens_per_second}))
        if isinstance(event, Done):
            app.call_from_thread(app.exit)

    with Voice(put) as voice:
        options = measured(tokens)
        voice.load(model)
        app = ChatApp(voice, inbox, memory_store(), model, options)
        app.call_later(lambda: app.screen.post_message(Composer.Sent("Write.")))
        app.run()


def main() -> int:
    """Measure what is asked for, and say whether it is what we want."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("start", "keys", "growth", "session", "speed")
    parser.add_argument("what", nargs="*", help=", ".join(names))
    parser.add_argument("--model", type=Path, default=None, help="for start: a GGUF, by default the nano model's")
    parser.add_argument("--rounds", type=int, default=5)
    hidden: dict[str, Any] = {"help": argparse.SUPPRESS}
    parser.add_argument("--play", **hidden)
    parser.add_argument("--speak", **hidden)
    parser.add_argument("--session", type=int, **hidden)
    parser.add_argument("--chat", type=Path, **hidden)
    parser.add_argument("--rate", default="100", **hidden)
    parser.add_argument("--tokens", type=int, default=600, **hidden)
    parser.add_argument("--figures", type=Path, default=Path(os.devnull), **hidden)
    asked = parser.parse_args()
    if asked.speak:
        speak(asked.speak, float(asked.rate))
    elif asked.play:
        play(asked.play, asked.rate)
    elif asked.session:
        open_long(asked.session, asked.rate, asked.figures)
    elif asked.chat:
        chat(asked.chat, asked.tokens, asked.figures)
    else:
        return report(asked.what or list(names), asked.model, asked.rounds)
    return 0


def report(names: list[str], model: Path | None, rounds: int) -> int:
    missed = 0
    for name in names:
        match name:
            case "start":
                lines = start(model or nano(), rounds)
            case "keys":
                lines = keys(rounds)
            case "growth":
                lines = growth()
            case "session":
                lines = session()
            case "speed":
                lines = speed(rounds)
            case _:
                raise SystemExit(f"{name}: nothing of that name is measured")
        for line in lines:
            print(line, flush=True)
            missed += line.startswith("MISS")
    return 1 if missed else 0


def nano() -> Path:
    """The nano model's GGUF."""
    from ftllm.catalogue import choose

    return choose(None).path


if __name__ == "__main__":
    sys.exit(main())
