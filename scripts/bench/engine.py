"""The engine's tokens per second against llama-bench and against a bare `llama_decode` loop, on the same GGUF.

    python scripts/bench/engine.py                        # at 1,024 and 16,384 tokens of context; a quarter of an hour
    python scripts/bench/engine.py --depth 1024 --rounds 60
    python scripts/bench/engine.py --model some.gguf --threads 8

The engine is what `ftllm chat` runs: its own process, large pages, the default sampler, events over a pipe. llama-bench
and the bare loop have small pages and do not sample; the bare loop decodes the same tokens again and again. All three
stay loaded and generate in turns, a second or so each, another first each time: a machine that is shared with others
changes its speed within seconds. Figures are medians of rounds. Linux only. The model is that of gemma300m.py, the
tools those of scripts/build_llama_tools.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import queue
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import platformdirs
from terminal import processor_seconds

from ftllm.chat.engine import Engine
from ftllm.chat.events import AnyEvent, Done, Failed, Stats
from ftllm.chat.options import LoadSettings, ReplyOptions
from ftllm.export import fetch
from ftllm.llama.environment import LONG_SPIN
from ftllm.llama.header import read_header
from ftllm.llama.machine import default_threads

PIPE_BYTES = 4096  # the least that Linux makes a pipe
LEAST = {1024: 0.98, 16_384: 0.96}  # of llama-bench


class EngineSide:
    """A conversation of one long message, answered again and again."""

    def __init__(self, model: Path, depth: int, tokens: int, threads: int) -> None:
        self._events: queue.SimpleQueue[AnyEvent] = queue.SimpleQueue()
        self._engine = Engine(self._events.put)
        self._engine.load(model, LoadSettings(n_ctx=depth + tokens + 64, n_threads=threads))
        self._message = {"role": "user", "content": ("The quick brown fox. " * depth)[: depth - 32]}
        self._options = ReplyOptions(max_tokens=tokens, ignore_end=True, loops="off", seed=1)

    def __call__(self) -> float:
        number = self._engine.generate([self._message], self._options)
        stats: Stats | None = None
        while True:
            event = self._events.get()
            if isinstance(event, Failed):
                raise SystemExit(f"the engine failed: {event.message}")
            if isinstance(event, Stats):
                stats = event
            if isinstance(event, Done) and event.reply == number:
                assert stats is not None
                assert stats.tokens_per_second is not None
                return stats.tokens_per_second

    def close(self) -> None:
        self._engine.close()


class BareSide:
    """A child process with llama_decode in a loop, and nothing else."""

    def __init__(self, model: Path, depth: int, tokens: int, threads: int) -> None:
        command = [sys.executable, __file__, "--bare", str(model), str(depth), str(tokens), str(threads)]
        environment = {"GOMP_SPINCOUNT": LONG_SPIN} | os.environ  # what llama-bench has by itself
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(self) -> float:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        print(file=self._child.stdin, flush=True)
        return float(self._child.stdout.readline())

    def close(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()


def serve_bare(model_path: Path, depth: int, tokens: int, threads: int) -> None:
    """For each line on standard input, decode `tokens` tokens one by one after `depth` others; print their speed."""
    from ftllm.chat.memory import Memory
    from ftllm.llama.context import Context
    from ftllm.llama.model import Model

    with (
        Model.load(model_path) as model,
        Context(model, n_ctx=depth + tokens + 64, n_threads=threads, n_outputs=1, windowed=True) as context,
    ):
        memory = Memory(context)
        prompt = [300 + index % 60 for index in range(depth)]
        for _ in sys.stdin:
            memory.rewind([*prompt, 0])
            memory.evaluate(prompt, stop=lambda: False)
            memory.mark()
            context.decode_one(400, depth)
            begun = time.perf_counter()
            for position in range(depth + 1, depth + tokens):
                context.decode_one(400, position)
            print((tokens - 1) / (time.perf_counter() - begun), flush=True)
            memory.tokens += [400] * tokens


class LlamaBenchSide:
    """One `llama-bench -n -r`, held before each generation after its first, which follows right on reading the context.

    It says on standard error that a generation comes, before it looks at the clock. That is a pipe which is full, so it
    waits there, all its threads asleep, until the pipe is emptied. Its figures come at the end.
    """

    def __init__(self, tool: Path, model: Path, depth: int, tokens: int, threads: int, rounds: int) -> None:
        command = [str(tool), "-m", str(model), "-p", "0", "-n", str(tokens), "-d", str(depth), "-r", str(rounds + 1)]
        command += ["-t", str(threads), "-ngl", "0", "--no-warmup", "--progress", "-o", "json"]
        self._told, self._telling = os.pipe()
        fcntl.fcntl(self._telling, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._telling)
        self._hold()

    def __call__(self) -> None:
        assert self._child.poll() is None, "llama-bench has ended"
        os.read(self._told, PIPE_BYTES)  # what filled it
        self._hold()

    def _hold(self) -> None:
        """Let it generate once, and wait until it is held or has ended."""
        said = b""
        while b"generation run" not in said:
            if select.select([self._told], [], [], 1.0)[0]:
                said += os.read(self._told, PIPE_BYTES)
            elif self._child.poll() is not None:
                raise SystemExit(f"llama-bench failed: {said[-500:].decode()}")
        os.write(self._telling, bytes(PIPE_BYTES))
        used, still = -1.0, 0
        with suppress(FileNotFoundError):  # it has ended
            while still < 3 and self._child.poll() is None:
                time.sleep(0.05)
                before, used = used, processor_seconds(self._child.pid)
                still = still + 1 if used == before else 0

    def close(self) -> list[float]:
        """Tokens per second of each generation, in order."""
        os.close(self._told)
        output, _ = self._child.communicate()
        os.close(self._telling)
        row: dict[str, Any] = json.loads(output)[0]
        return [float(speed) for speed in row["samples_ts"][1:]]


def compare(model: Path, tool: Path, depth: int, tokens: int, threads: int, rounds: int) -> dict[str, float]:
    """Medians of all sides, and ratios, at one depth."""
    engine, bare = EngineSide(model, depth, tokens, threads), BareSide(model, depth, tokens, threads)
    measured: dict[str, Callable[[], float]] = {"bare loop": bare, "engine": engine}
    names, found = ("llama-bench", *measured), {name: list[float]() for name in measured}
    try:
        for side in measured.values():
            side()  # reads the prompt
        bench = LlamaBenchSide(tool, model, depth, tokens, threads, rounds)  # reads it too
        for number in range(rounds):
            if number % 10 == 0:
                print(f"  {depth} tokens of context, round {number + 1} of {rounds}", file=sys.stderr)
            first = number % len(names)
            for name in (*names[first:], *names[:first]):
                if name == "llama-bench":
                    bench()
                else:
                    found[name].append(measured[name]())
        found["llama-bench"] = bench.close()
    finally:
        engine.close()
        bare.close()
    medians = {name: statistics.median(found[name]) for name in names}
    ratios = {
        f"engine / {peer}": statistics.median(
            mine / theirs for mine, theirs in zip(found["engine"], found[peer], strict=True)
        )
        for peer in ("llama-bench", "bare loop")
    }
    return medians | ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--depth", type=int, action="append", help="tokens of context (default 1024 and 16384)")
    parser.add_argument("--tokens", type=int, default=32, help="generated a round")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--llama-bench", type=Path, default=fetch.tools_root() / "bin" / "llama-bench")
    if sys.argv[1:2] == ["--bare"]:
        model, *numbers = sys.argv[2:]
        serve_bare(Path(model), *map(int, numbers))
        return
    options = parser.parse_args()
    if not options.llama_bench.is_file():
        raise SystemExit(f"{options.llama_bench} is missing: run scripts/build_llama_tools")
    model = options.model or Path(platformdirs.user_cache_dir("ftllm")) / "bench" / "gemma300m-Q4_K_M.gguf"
    if not model.is_file():
        import gemma300m

        print(f"==> making {model}, once", file=sys.stderr)
        model.parent.mkdir(parents=True, exist_ok=True)
        gemma300m.write(model)
    threads = options.threads or default_threads(read_header(model).n_params)
    print(f"{model.name}, {threads} threads, {options.tokens} tokens a round, {options.rounds} rounds")
    for depth in options.depth or [1024, 16_384]:
        figures = compare(model, options.llama_bench, depth, options.tokens, threads, options.rounds)
        least = LEAST.get(depth)
        print(f"at {depth:,} tokens of context:")
        for name, value in figures.items():
            unit = "" if "/" in name else " tokens/s"
            wanted = f"   (at least {least})" if least and name.endswith("llama-bench") and unit == "" else ""
            print(f"  {name:22} {value:8.3f}{unit}{wanted}")


if __name__ == "__main__":
    main()
