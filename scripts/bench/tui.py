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
import json
import os
import queue
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from terminal import Terminal, busy_seconds, children, processor_seconds
from tui_programs import TOKENS, measured, program

from ftllm.chat.events import AnyEvent, Prepared, Stats

SETTLED = 3  # seconds, after which a start is over
SPEED_SECONDS = 3  # of each reply
LAYERS = 14  # to begin with
NEARLY = 0.9  # of the tokens per second that are wanted
OTHERS = 0.06  # of a core, that other programs may take in a round


def start(model: Path, rounds: int) -> Iterator[str]:
    """The first start stays until what it found is remembered for those that follow, which are measured."""
    times = []
    for number in range(rounds + 1):
        with tempfile.TemporaryDirectory() as home:  # another each time, for drafts are kept
            terminal = Terminal([sys.executable, "-m", "ftllm", "chat", str(model)], {"XDG_DATA_HOME": home})
            terminal.wait("rite a message")
            terminal.send("ß")
            terminal.wait("ß")
            times.append(time.perf_counter() - terminal.began)
            if number == 0:
                time.sleep(SETTLED)
            terminal.close()
    yield verdict("command to usable composer", statistics.median(times[1:]), 0.6, "s")


def keys(rounds: int) -> Iterator[str]:
    terminal = Terminal(program("play", "mixed", "100"))
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
        terminal = Terminal(program("play", kind, str(rate)))
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
        Terminal(program("long", "1000", "100", str(figures))).run()
        told = json.loads(figures.read_text())
    yield verdict("opening 1,000 messages", told["seconds"], 0.5, "s")
    yield verdict("memory they take", told["megabytes"], 40, "MB")
    yield verdict("an update among them, processor time", told["update_ms"], 10, "ms")


SHAPES = {100: (768, 0.97), 300: (512, 0.95)}  # by tokens/s: the model's width, and the least share of them


def speed(rounds: int, rates: Sequence[int]) -> Iterator[str]:
    for rate in rates:
        width, least = SHAPES[rate]
        pairs = speed_pairs(quick_enough(rate, width), rate * SPEED_SECONDS, rounds)
        alone, taken = (statistics.median(values) for values in list(zip(*pairs, strict=True))[:2])
        ratio = statistics.median(drawn / alone for alone, _, drawn in pairs)
        low, high = min(drawn / alone for alone, _, drawn in pairs), max(drawn / alone for alone, _, drawn in pairs)
        what = f"with the screen against the engine alone, at {alone:.0f} tokens/s, {len(pairs)} quiet rounds "
        what += f"({low:.3f} to {high:.3f}; the screen takes {taken:.1%} of a core)"
        yield verdict(what, ratio, least, "", least=True)


def speed_pairs(model: Path, tokens: int, rounds: int) -> list[tuple[float, float, float]]:
    """Tokens per second of the engine alone, the screen's share of a core, tokens per second with the screen.

    A round in which other programs took more than `OTHERS` of a core says nothing and is made again.
    """
    pairs: list[tuple[float, float, float]] = []
    with tempfile.TemporaryDirectory() as home:
        alone, drawn = Alone(model, tokens), Drawn(model, tokens, Path(home))
        for number in range(5 * rounds):
            sides = [alone, drawn] if number % 2 else [drawn, alone]
            began, busy, ours = time.perf_counter(), busy_seconds(), alone.used() + drawn.used() + time.process_time()
            found = {type(side): side() for side in sides}
            seconds = time.perf_counter() - began
            ours = alone.used() + drawn.used() + time.process_time() - ours
            others = (busy_seconds() - busy - ours) / seconds
            line = f"  {found[Alone]:.1f} tokens/s alone, {found[Drawn]:.1f} drawn: {found[Drawn] / found[Alone]:.3f}"
            quiet = others <= OTHERS
            print(f"{line}, others {others:.1%} of a core{'' if quiet else ': not counted'}", file=sys.stderr)
            if quiet and number:  # the first round warms up
                pairs.append((found[Alone], drawn.share, found[Drawn]))
            if len(pairs) == rounds:
                break
        alone.close()
        drawn.close()
    if not pairs:
        raise SystemExit("other programs are busy: nothing can be measured")
    return pairs


def quick_enough(rate: int, width: int) -> Path:
    """The deepest model of that width that answers about that quickly on this machine, or the quickest there is."""
    layers, quickest, its_rate = LAYERS, Path(), 0.0
    while True:
        model = shaped(width, 4 * width, layers)
        alone = Alone(model, rate)
        reached = max(alone() for _ in range(4))  # what disturbs it only makes it slower
        alone.close()
        print(f"  {width} wide, {layers} layers: {reached:.0f} tokens/s, {rate} wanted", file=sys.stderr)
        if reached <= its_rate:
            return quickest
        if reached >= rate * NEARLY or layers == 1:
            return model
        quickest, its_rate = model, reached
        layers = max(1, min(layers - 1, round(layers * reached / rate)))


def shaped(width: int, inner: int, layers: int) -> Path:
    """A model of that shape, made once."""
    import gemma300m as shape
    import platformdirs

    path = Path(platformdirs.user_cache_dir("ftllm")) / "bench" / f"words-{width}-{inner}-{layers}.gguf"
    if not path.exists():
        shape.VOCABULARY, shape.WIDTH, shape.INNER, shape.LAYERS = 32_768, width, inner, layers
        shape.write(path)
    return path


class Alone:
    """The engine, its events read and dropped."""

    def __init__(self, model: Path, tokens: int) -> None:
        from ftllm.chat.engine import Engine

        self._events: queue.SimpleQueue[AnyEvent] = queue.SimpleQueue()
        self._options = measured(tokens).reply
        self._engine = Engine(self._events.put)
        self._engine.load(model)

    def __call__(self) -> float:
        self._engine.generate([{"role": "user", "content": "Write."}], self._options)
        rate = 0.0
        while not isinstance(event := self._events.get(), Prepared):  # the reply is read again after its end
            if isinstance(event, Stats):
                rate = event.tokens_per_second or 0.0
        return rate

    def used(self) -> float:
        return processor_seconds(self._engine.pid or 0)

    def close(self) -> None:
        self._engine.close()


class Drawn:
    """The engine under the screen, which stands still while it is not asked."""

    def __init__(self, model: Path, tokens: int, home: Path) -> None:
        self.share = 0.0  # of a core, that the screen took
        self._figures = home / "figures"
        self._figures.touch()
        command = program("chat", str(model), str(tokens), str(self._figures))
        self._terminal = Terminal(command, {"XDG_DATA_HOME": str(home)})
        self._terminal.wait("ready")
        os.kill(self._terminal.pid, signal.SIGSTOP)

    def __call__(self) -> float:
        os.kill(self._terminal.pid, signal.SIGCONT)
        known = len(self._figures.read_text().splitlines())
        began, used = time.perf_counter(), processor_seconds(self._terminal.pid)
        self._terminal.send("Write.\r")
        while len(lines := self._figures.read_text().splitlines()) == known:
            self._terminal.read(0.2)
            self._terminal.output = b""
        self.share = (processor_seconds(self._terminal.pid) - used) / (time.perf_counter() - began)
        os.kill(self._terminal.pid, signal.SIGSTOP)
        return float(lines[-1])

    def used(self) -> float:
        return sum(map(processor_seconds, (self._terminal.pid, *children(self._terminal.pid))))

    def close(self) -> None:
        """Kill it, for it stands still."""
        os.kill(self._terminal.pid, signal.SIGKILL)
        self._terminal.run()


def verdict(what: str, value: float, limit: float, unit: str, *, least: bool = False) -> str:
    good = value >= limit if least else value <= limit
    mark = "ok  " if good else "MISS"
    return f"{mark} {what}: {value:.3g} {unit}".rstrip() + f" ({'at least' if least else 'at most'} {limit:g})"


def main() -> int:
    """Measure what is asked for, and say whether it is what we want."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("start", "keys", "growth", "session", "speed")
    parser.add_argument("what", nargs="*", help=", ".join(names))
    parser.add_argument("--model", type=Path, default=None, help="for start: a GGUF, by default the nano model's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=int, choices=sorted(SHAPES), action="append", help="for speed: one of them")
    asked = parser.parse_args()
    return report(asked.what or list(names), asked.model, asked.rounds, asked.rate or sorted(SHAPES))


def report(names: list[str], model: Path | None, rounds: int, rates: Sequence[int]) -> int:
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
                lines = speed(rounds, rates)
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
