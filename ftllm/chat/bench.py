"""How fast this machine talks with a model: what `ftllm bench` measures, with the engine that `ftllm chat` runs."""

from __future__ import annotations

import queue
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

from ftllm.chat.ask import error_of
from ftllm.chat.engine import Engine
from ftllm.chat.events import AnyEvent, Done, Failed, Loaded, Prepared, PromptProgress, Stats
from ftllm.chat.options import LoadSettings, ReplyOptions
from ftllm.chat.session import Reply
from ftllm.errors import UserError
from ftllm.values import dataclass

WORDS = ("the", "of", "and", "a", "to", "in", "is", "you", "that", "it", "he", "was", "for", "on", "are", "with", "his")
SLACK = 256  # tokens of context beyond a prompt and its reply, for the second turn
PREPARATION = 600.0  # seconds at most to wait for the engine to be ready for a second turn


@dataclass(frozen=True)
class Reading:
    """The figures at one length of prompt. Speeds are tokens a second, times seconds.

    Attributes:
        prompt_tokens: of the first turn's prompt, all evaluated.
        generated: tokens of its reply.
        first_token_cold: from asking to the first token, with an empty cache.
        first_token_warm: the same for a short second turn, of which `warm_evaluated` tokens were new.
    """

    prompt_tokens: int
    prompt_speed: float | None
    generated: int
    generation_speed: float | None
    first_token_cold: float | None
    first_token_warm: float | None
    warm_evaluated: int


@dataclass(frozen=True)
class Report:
    """What was measured of one model.

    Attributes:
        load_seconds: from asking for it to being ready to talk.
        start_seconds: the same and the start of the process.
        memory_bytes: the most the engine's process had in memory, the mapped file included; None where unknown.
    """

    model: str
    description: str
    size_bytes: int
    n_params: int
    placement: str
    n_ctx: int
    load_seconds: float
    start_seconds: float
    memory_bytes: int | None
    readings: list[Reading] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The object that `ftllm bench --json` prints."""
        return asdict(self)


def measure(
    path: Path,
    settings: LoadSettings,
    lengths: Sequence[int],
    tokens: int,
    on_step: Callable[[str], None] = lambda _: None,
) -> Report:
    """Load a model and talk with it at several lengths of prompt.

    Args:
        lengths: tokens of prompt wanted; what comes out is within a few of each.
        tokens: generated each time, whatever the model says.
        on_step: told in words what is measured next.

    Raises:
        UserError: the model cannot be loaded or cannot chat, or a length does not fit in its context.
        WorkError: the engine failed.
    """
    bench = _Bench()
    try:
        begun = time.monotonic()
        on_step("loading")
        loaded = bench.load(path, settings)
        started = time.monotonic() - begun
        longest = min(loaded.n_ctx, loaded.n_ctx_train or loaded.n_ctx)
        if longest < max(lengths) + tokens:
            raise UserError(
                f"{path.name} has a context of {longest} tokens: {max(lengths)} of prompt and {tokens} do not fit",
                "measure at shorter lengths (--length)",
            )
        writer = bench.calibrated()
        readings = []
        for length in lengths:
            on_step(f"{length} tokens")
            readings.append(bench.read(writer(length), tokens))
        return Report(
            model=str(path),
            description=loaded.description,
            size_bytes=loaded.size_bytes,
            n_params=loaded.n_params,
            placement=loaded.placement,
            n_ctx=loaded.n_ctx,
            load_seconds=loaded.seconds,
            start_seconds=started,
            memory_bytes=bench.memory(),
            readings=readings,
        )
    finally:
        bench.close()


class _Bench:
    """An engine whose events are waited for."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[AnyEvent] = queue.SimpleQueue()
        self._engine = Engine(self._events.put)

    def close(self) -> None:
        self._engine.close()

    def load(self, path: Path, settings: LoadSettings) -> Loaded:
        self._engine.load(path, settings)
        while True:
            event = self._next()
            if isinstance(event, Loaded):
                return event

    def calibrated(self) -> Callable[[int], str]:
        """A way to write a message whose prompt has about so many tokens: how many a word takes is measured first."""
        counts = {number: self._ask([_user(_text(number))], 1)[0].prompt_tokens for number in (8, 40)}
        per_word = max((counts[40] - counts[8]) / 32, 1e-3)
        return lambda length: _text(max(1, round(8 + (length - counts[8]) / per_word)))

    def read(self, text: str, tokens: int) -> Reading:
        """One length: a first turn with an empty cache, then a short second one."""
        first, reply, speed = self._ask([_user(text)], tokens)
        answer = reply.message.content
        if answer:
            self._wait_until_ready()
        said = {"role": "assistant", "content": answer or "Yes."}  # all of it may have been a thought
        warm, _, _ = self._ask([_user(text), said, _user("Go on.")], 1)
        return Reading(
            prompt_tokens=first.prompt_tokens,
            prompt_speed=speed,
            generated=first.thought_tokens + first.answer_tokens,
            generation_speed=first.tokens_per_second,
            first_token_cold=first.time_to_first_token,
            first_token_warm=warm.time_to_first_token,
            warm_evaluated=warm.prompt_tokens - warm.reused_tokens,
        )

    def memory(self) -> int | None:
        """The most the engine's process had in memory (`VmHWM` in proc_pid_status(5)); Linux only."""
        try:
            lines = Path(f"/proc/{self._engine.pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)

    def _ask(self, messages: list[Mapping[str, Any]], tokens: int) -> tuple[Stats, Reply, float | None]:
        """A reply's figures, the reply, and the tokens of prompt read a second."""
        options = ReplyOptions(max_tokens=tokens, ignore_end=True, loops="off", overflow="stop", seed=1)
        number = self._engine.generate(messages, options)
        reply, steps = Reply(), list[PromptProgress]()
        while True:
            event = self._next()
            if event.reply != number:
                continue
            reply.feed(event)
            if isinstance(event, PromptProgress):
                steps.append(event)
            if isinstance(event, Done):
                assert reply.stats is not None
                seconds = steps[-1].time - steps[0].time
                return reply.stats, reply, (steps[-1].done - steps[0].done) / seconds if seconds > 0 else None

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + PREPARATION
        try:
            while not isinstance(self._next(max(0.0, deadline - time.monotonic())), Prepared):
                pass
        except queue.Empty:
            return

    def _next(self, timeout: float | None = None) -> AnyEvent:
        event = self._events.get(timeout=timeout)
        if isinstance(event, Failed):
            raise error_of(event)
        return event


def _user(text: str) -> Mapping[str, Any]:
    return {"role": "user", "content": text}


def _text(words: int) -> str:
    """So many words, other ones for another number, from the first on."""
    drawn = random.Random(words)
    return " ".join([f"{words}", *(drawn.choice(WORDS) for _ in range(words - 1))])
