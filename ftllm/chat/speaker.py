"""A loaded model that replies: prompt into the KV cache, then token after token, into events."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import field, fields, replace
from pathlib import Path
from typing import Any

from ftllm.chat.events import (
    Done,
    DoneReason,
    LoopSuspected,
    Prepared,
    PromptProgress,
    Stats,
    ThinkEndReason,
    TurnsDropped,
)
from ftllm.chat.lookup import MOST, Lookup
from ftllm.chat.memory import CHUNK, Memory
from ftllm.chat.options import LoadSettings, ReplyOptions, SamplingOptions, ThinkMode
from ftllm.chat.prompt import Prompt, build_prompt, kept_length, next_ids
from ftllm.chat.writer import Clock, Emit, Writer
from ftllm.errors import UserError
from ftllm.llama.company import Company
from ftllm.llama.context import Context
from ftllm.llama.machine import available_memory
from ftllm.llama.model import Model
from ftllm.llama.placement import devices, usual_context
from ftllm.llama.sampling import Sampler, Sampling
from ftllm.llama.text import TextStream, control_texts
from ftllm.loops import LoopGuard
from ftllm.thoughts import tags_of
from ftllm.values import dataclass

TIME_TO_ANSWER = "\n\nTime to answer.\n"  # what ends a thought that was cut off, before the closing tag
ROOM = 4  # a conversation is held to leave a quarter of the context to the reply, where turns may be dropped
LEAST_ROOM = 8  # and a reply that needs more is given an eighth, again and again
QUICK = 0.05
"""Seconds a token, under which its text goes out after the next evaluation and not before it: whoever reads it then
runs while the next token is chosen, when most of the threads rest, and takes no core from the evaluation.
"""
THOUGHT_LEFT: dict[DoneReason, ThinkEndReason] = {
    "stop": "unclosed",
    "stopped": "stopped",
    "length": "cut",
    "context": "cut",
    "loop": "loop",
}

Messages = Sequence[Mapping[str, Any]]


@dataclass
class Control:
    """What another thread may ask of the reply under way."""

    stop: bool = False
    answer_now: bool = False
    sampling: deque[SamplingOptions] = field(default_factory=deque)  # changes, the oldest first


@dataclass
class _Course:
    """One reply under way: what it answers, tokens sampled so far, and the times of the first and the last of them."""

    number: int
    messages: Messages
    prompt: Prompt
    options: ReplyOptions
    control: Control
    loop: bool = False  # the reply goes in circles, and is to be stopped for it
    sampled: int = 0
    first: float = 0.0
    last: float = 0.0

    def count(self, now: float) -> None:
        """A token was sampled."""
        self.first, self.last = (self.first if self.sampled else now), now
        self.sampled += 1

    @property
    def tokens_per_second(self) -> float | None:
        """Of all tokens but the first, whose time is the prompt's."""
        return (self.sampled - 1) / (self.last - self.first) if self.last > self.first else None


@dataclass(frozen=True)
class _Said:
    """A conversation whose last turn is the reply just made."""

    messages: Messages
    think: ThinkMode
    template_kwargs: Mapping[str, Any]


class Speaker:
    """One conversation at a time with one model; what two prompts share at their beginning is evaluated once."""

    def __init__(self, model: Model, settings: LoadSettings, emit: Emit, clock: Clock = time.monotonic) -> None:
        self.model = model
        n_ctx = settings.n_ctx or usual_context(model.header, _free_memory(model))
        self.context = Context(
            model, n_ctx=n_ctx, n_batch=CHUNK, n_threads=settings.n_threads, n_outputs=1 + MOST, windowed=True
        )
        self.memory = Memory(self.context)
        self._company = Company(self.context.n_threads)
        self._tag_texts = control_texts(model, tags_of(model.chat_template).strings)
        self._dropped: tuple[Mapping[str, Any], ...] = ()  # the oldest turns, which this conversation lost
        self._said: _Said | None = None
        self._emit, self._clock = emit, clock

    def reply(self, number: int, messages: Messages, options: ReplyOptions, control: Control) -> None:
        """Make the assistant's next turn, telling all of it in events, `Done` last.

        Where the last message is the assistant's, that turn goes on; only what is new is told.

        Raises:
            UserError: the template refuses the messages, or they do not fit in the context.
            WorkError: llama.cpp failed.
        """
        begun = self._clock()
        self._said = None
        self._company.begin()
        messages, prompt = self._fitting(number, messages, options, self.context.n_ctx - 1)
        course = _Course(number, messages, prompt, options, control)
        writer = Writer(self._emit, number, prompt.tags, clock=self._clock, pause=options.delta_seconds)
        reason: DoneReason = "stopped"
        reused = self.memory.rewind(prompt.ids)
        try:
            if self._evaluate(course, prompt.ids):
                reason = self._write(course, writer)
        except Exception:
            self.memory.forget()
            raise
        if writer.answer.strip():
            told, before = course.messages, ""
            if prompt.resumed:
                told, before = told[:-1], told[-1]["content"]
            answer = {"role": "assistant", "content": (before + writer.answer).strip()}
            self._said = _Said([*told, answer], options.think, options.template_kwargs)
        now = self._clock()
        self._emit(
            Stats(
                time=now,
                reply=number,
                prompt_tokens=len(prompt.ids),
                reused_tokens=reused,
                thought_tokens=writer.thought_tokens,
                answer_tokens=writer.answer_tokens,
                thought_seconds=writer.thought_seconds,
                time_to_first_token=course.first - begun if course.sampled else None,
                tokens_per_second=course.tokens_per_second,
                n_ctx=self.context.n_ctx,
                context_tokens=len(self.memory),
            )
        )
        self._emit(Done(now, number, reason))

    def prepare(self, control: Control) -> None:
        """Bring the cache to where the next message goes on: the thought is taken out, the answer read again.

        It stops as soon as `control` says so, and tells nothing then.
        """
        said = self._said
        if said is None:
            return
        ids = next_ids(said.messages, self.model, said.think, said.template_kwargs)
        if not ids or len(ids) >= self.context.n_ctx:
            self._said = None
            return
        kept = self.memory.rewind(ids)
        if self.memory.evaluate(ids, stop=lambda: control.stop):
            self._said = None
            self.memory.mark()
            self._emit(Prepared(self._clock(), 0, len(ids), len(ids) - kept))

    def save_state(self, path: Path, model: str) -> int:
        """Write the cache to a file, ready for the next message; see `Memory.save`."""
        self.prepare(Control())
        return self.memory.save(path, model)

    def load_state(self, path: Path, model: str) -> str:
        """Take the cache from a file; why not, or nothing."""
        self._said = None
        return self.memory.load(path, model)

    def _fitting(self, number: int, messages: Messages, options: ReplyOptions, limit: int) -> tuple[Messages, Prompt]:
        """The messages the model gets to see, and their prompt of at most `limit` tokens.

        Where turns may be dropped, as many of the oldest go as leave the reply a quarter of the context, and then so
        many that the next turns need not drop more: half of the context is filled.
        """
        n_ctx, dropped = self.context.n_ctx, self._dropped
        start = int(bool(messages) and messages[0]["role"] == "system")
        turns = messages[start:]
        count = 0
        if options.overflow == "drop" and tuple(turns[: len(dropped)]) == dropped:
            count = len(dropped)
        wanted = min(limit, n_ctx - min(options.max_tokens, n_ctx // ROOM))
        while True:
            seen = [*messages[:start], *turns[count:]]
            prompt = build_prompt(seen, self.model, options.think, options.template_kwargs)
            if options.overflow == "stop" or len(prompt.ids) <= wanted or not (following := _next_turn(turns, count)):
                break
            count, wanted = following, min(limit, n_ctx // 2)
        if len(prompt.ids) > limit:
            raise UserError(
                f"the conversation is {len(prompt.ids)} tokens long, but the context holds {n_ctx}",
                "begin a new conversation, shorten the message, or start with a larger --ctx",
            )
        self._dropped = tuple(turns[:count])
        if count and self._dropped != dropped:
            self._emit(TurnsDropped(self._clock(), number, count))
        return seen, prompt

    def _evaluate(self, course: _Course, ids: Sequence[int]) -> bool:
        """Bring a prompt into the cache; False when it was stopped on the way."""

        def progress() -> None:
            self._give_way()
            self._emit(PromptProgress(self._clock(), course.number, len(self.memory), len(ids)))

        mark = 0
        if self.memory.needs_marks:
            options = course.options
            mark = kept_length(course.prompt, course.messages, self.model, options.think, options.template_kwargs)
        progress()
        return self.memory.evaluate(ids, stop=lambda: course.control.stop, progress=progress, mark=mark)

    def _write(self, course: _Course, writer: Writer) -> DoneReason:
        """Sample and decode until the reply ends."""
        model, context, options = self.model, self.context, course.options
        text, guard = TextStream(model), LoopGuard()
        lookup = Lookup(self.memory.tokens) if options.speculate else None
        reason: DoneReason = "length"
        if course.prompt.opened:
            writer.open_thought()
        if course.prompt.resumed:
            writer.resume()
        with closing(Sampler(model, sampling_of(model, options))) as sampler:
            for _ in range(options.max_tokens):
                writer.tell()
                self._give_way()
                if course.control.stop:
                    reason = "stopped"
                    break
                while course.control.sampling:
                    sampler.change(changed_sampling(sampler.sampling, course.control.sampling.popleft()))
                why = None if text.pending else self._cut_reason(course, writer)
                if why is not None:
                    if not self._close_thought(course, writer, sampler, why):
                        reason = "context"
                        break
                    guard.forget()
                if course.loop and not writer.thinking:
                    reason = "loop"
                    break
                token = sampler.sample(context, self.memory.output)
                now = self._clock()
                writer.held = course.sampled > 0 and now - course.last < QUICK
                course.count(now)
                if model.is_eog(token) and not options.ignore_end:
                    reason = "stop"
                    break
                mark = self._tag_texts.get(token)
                writer.take(text.feed(token) if mark is None else mark, control=mark is not None)
                self._look_for_loops(course, writer, guard, token)
                if len(self.memory) >= context.n_ctx and not self._make_room(course):
                    reason = "stopped" if course.control.stop else "context"
                    break
                if lookup is None:
                    self.memory.append((token,))
                else:
                    self.memory.advance(token, lookup)
        writer.finish(text.finish(), why=THOUGHT_LEFT[reason])
        return reason

    def _give_way(self) -> None:
        """Evaluate with as many threads as other programs leave cores for."""
        self.context.set_threads(self._company.look())

    def _make_room(self, course: _Course) -> bool:
        """Drop the oldest turns in the middle of a reply; False where that cannot be."""
        if course.options.overflow != "drop":
            return False
        reply = self.memory.tokens[len(course.prompt.ids) :]
        limit = self.context.n_ctx - self.context.n_ctx // LEAST_ROOM - len(reply)
        try:
            course.messages, course.prompt = self._fitting(course.number, course.messages, course.options, limit)
        except UserError:
            return False
        ids = [*course.prompt.ids, *reply]
        self.memory.rewind(ids)
        return self._evaluate(course, ids)

    def _look_for_loops(self, course: _Course, writer: Writer, guard: LoopGuard, token: int) -> None:
        if course.options.loops == "off":
            return
        found = guard.look(token)
        if found is not None:
            self._emit(LoopSuspected(self._clock(), course.number, found.period, found.count, writer.thinking))
            course.loop = course.options.loops == "stop"

    def _cut_reason(self, course: _Course, writer: Writer) -> ThinkEndReason | None:
        """Why the thought under way should end now, if it should."""
        if not writer.thinking:
            if writer.answered:
                course.control.answer_now = False
            return None
        if course.control.answer_now:
            course.control.answer_now = False
            return "answer_now"
        if course.loop:
            course.loop = False
            return "loop"
        budget = course.options.think_budget
        return "budget" if budget is not None and writer.thought_tokens >= budget else None

    def _close_thought(self, course: _Course, writer: Writer, sampler: Sampler, why: ThinkEndReason) -> bool:
        """Feed the model the end of its thought; False when the context has no room for it."""
        tags = course.prompt.tags
        tokens = self.model.encode(TIME_TO_ANSWER + tags.close + tags.answer)
        if len(self.memory) + len(tokens) >= self.context.n_ctx:
            return False
        self.memory.append(tokens)
        for token in tokens:
            sampler.accept(token)
        writer.close_thought(TIME_TO_ANSWER, len(tokens), why)
        return True


def _free_memory(model: Model) -> int:
    """Bytes that are free where the cache goes: on the GPU with its layers, else in the machine."""
    return sum(device.free for device in devices()) if model.gpu_layers else available_memory()


def sampling_of(model: Model, options: ReplyOptions) -> Sampling:
    """The GGUF's recommended sampling, overridden by what the person chose."""
    recommended = Sampling.from_metadata(model.metadata)
    sampling = changed_sampling(recommended, options)
    return sampling if options.seed is None else replace(sampling, seed=options.seed)


def changed_sampling(sampling: Sampling, choice: SamplingOptions) -> Sampling:
    """`sampling` with what `choice` says; None says nothing."""
    given = {one.name: getattr(choice, one.name) for one in fields(SamplingOptions)}
    return replace(sampling, **{name: value for name, value in given.items() if value is not None})


def _next_turn(turns: Messages, start: int) -> int:
    """Where the person speaks next after the turn at `start`; 0 where nothing of the kind is left."""
    return next((i for i in range(start + 1, len(turns)) if turns[i]["role"] == "user"), 0)
