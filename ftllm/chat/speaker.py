"""A loaded model that replies: prompt into the KV cache, then token after token, into events."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from ftllm.chat.events import Done, DoneReason, PromptProgress, Stats, ThinkEndReason
from ftllm.chat.options import LoadSettings, ReplyOptions
from ftllm.chat.prompt import Prompt, build_prompt
from ftllm.chat.writer import Clock, Emit, Writer
from ftllm.errors import UserError
from ftllm.llama.context import AbortedError, Context
from ftllm.llama.model import Model
from ftllm.llama.sampling import Sampler, Sampling
from ftllm.llama.text import TextStream
from ftllm.thoughts import tags_of

CHUNK = 512  # tokens of prompt between two looks at `Control.stop` (where llama.cpp cannot be aborted: on GPUs)
TIME_TO_ANSWER = "\n\nTime to answer.\n"  # what ends a thought that was cut off, before the closing tag
THOUGHT_LEFT: dict[DoneReason, ThinkEndReason] = {
    "stop": "unclosed",
    "stopped": "stopped",
    "length": "cut",
    "context": "cut",
}


@dataclass
class Control:
    """What another thread may ask of the reply under way."""

    stop: bool = False
    answer_now: bool = False


@dataclass
class _Course:
    """One reply under way: tokens sampled so far, and the times of the first and the last of them."""

    number: int
    prompt: Prompt
    options: ReplyOptions
    control: Control
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


class Speaker:
    """One conversation at a time with one model; what two prompts share at their beginning is evaluated once."""

    def __init__(self, model: Model, settings: LoadSettings, emit: Emit, clock: Clock = time.monotonic) -> None:
        self.model = model
        self.context = Context(model, n_ctx=settings.n_ctx, n_batch=CHUNK, n_threads=settings.n_threads, n_outputs=1)
        self.cached: list[int] = []  # the ids in the KV cache
        self.tag_tokens = tag_tokens(model)
        self._emit, self._clock = emit, clock

    def reply(
        self, number: int, messages: Sequence[Mapping[str, str]], options: ReplyOptions, control: Control
    ) -> None:
        """Make the assistant's next turn, telling all of it in events, `Done` last.

        Raises:
            UserError: the template refuses the messages, or they do not fit in the context.
            WorkError: llama.cpp failed.
        """
        begun = self._clock()
        prompt = build_prompt(messages, self.model, options.think)
        if len(prompt.ids) >= self.context.n_ctx:
            raise UserError(
                f"the conversation is {len(prompt.ids)} tokens long, but the context holds {self.context.n_ctx}",
                "begin a new conversation, shorten the message, or start with a larger --ctx",
            )
        course = _Course(number, prompt, options, control)
        writer = Writer(self._emit, number, prompt.tags, clock=self._clock)
        reason: DoneReason = "stopped"
        reused = self._reuse(prompt.ids)
        try:
            if self._evaluate(course):
                reason = self._write(course, writer)
        except Exception:
            self._forget(0)  # whatever the cache holds now
            raise
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
                context_tokens=len(self.cached),
            )
        )
        self._emit(Done(now, number, reason))

    def _reuse(self, ids: Sequence[int]) -> int:
        """Forget all of the cache but what `ids` begin with; how many tokens that is (never all of `ids`)."""
        common = common_prefix(self.cached, ids[:-1])
        self._forget(common)
        return len(self.cached)

    def _forget(self, start: int) -> None:
        """Keep the cache's first `start` tokens, or none where the model's memory cannot be cut (recurrent models)."""
        if start == len(self.cached) and self.context.length() == start:
            return
        if start == 0 or not self.context.remove(0, start):
            self.context.clear()
            start = 0
        del self.cached[start:]

    def _evaluate(self, course: _Course) -> bool:
        """Bring the prompt into the cache; False when it was stopped on the way."""
        ids, control = course.prompt.ids, course.control
        self._progress(course)
        self.context.set_abort(lambda: control.stop)
        try:
            while len(self.cached) < len(ids):
                if control.stop:
                    return False
                start = len(self.cached)
                chunk = ids[start : start + CHUNK]
                last = start + len(chunk) == len(ids)
                try:
                    self.context.decode(chunk, start=start, logits="last" if last else "none")
                except AbortedError:
                    self._forget(start)
                    return False
                self.cached.extend(chunk)
                self._progress(course)
        finally:
            self.context.set_abort(None)
        return not control.stop

    def _progress(self, course: _Course) -> None:
        self._emit(PromptProgress(self._clock(), course.number, len(self.cached), len(course.prompt.ids)))

    def _write(self, course: _Course, writer: Writer) -> DoneReason:
        """Sample and decode until the reply ends."""
        model, context, options = self.model, self.context, course.options
        text = TextStream(model)
        reason: DoneReason = "length"
        if course.prompt.opened:
            writer.open_thought()
        with closing(Sampler(model, sampling_of(model, options))) as sampler:
            for _ in range(options.max_tokens):
                if course.control.stop:
                    reason = "stopped"
                    break
                why = None if text.pending else self._cut_reason(course, writer)
                if why is not None and not self._close_thought(course, writer, sampler, why):
                    reason = "context"
                    break
                token = sampler.sample(context)
                course.count(self._clock())
                if model.is_eog(token):
                    reason = "stop"
                    break
                writer.take(text.feed(token) or self.tag_tokens.get(token, ""))
                if len(self.cached) >= context.n_ctx:
                    reason = "context"
                    break
                context.decode((token,), start=len(self.cached))
                self.cached.append(token)
        writer.finish(text.finish(), why=THOUGHT_LEFT[reason])
        return reason

    def _cut_reason(self, course: _Course, writer: Writer) -> ThinkEndReason | None:
        """Why the thought under way should end now, if it should."""
        if not writer.thinking:
            if writer.answered:
                course.control.answer_now = False
            return None
        if course.control.answer_now:
            course.control.answer_now = False
            return "answer_now"
        budget = course.options.think_budget
        return "budget" if budget is not None and writer.thought_tokens >= budget else None

    def _close_thought(self, course: _Course, writer: Writer, sampler: Sampler, why: ThinkEndReason) -> bool:
        """Feed the model the end of its thought; False when the context has no room for it."""
        tokens = self.model.encode(TIME_TO_ANSWER + course.prompt.tags.close)
        if len(self.cached) + len(tokens) >= self.context.n_ctx:
            return False
        self.context.decode(tokens, start=len(self.cached))
        self.cached.extend(tokens)
        for token in tokens:
            sampler.accept(token)
        writer.close_thought(TIME_TO_ANSWER, len(tokens), why)
        return True


def tag_tokens(model: Model) -> dict[int, str]:
    """Thought tags that are control tokens of the model (Magistral's), which have no text of their own."""
    tags = tags_of(model.chat_template)
    encoded = {tag: model.encode(tag) for tag in (tags.open, tags.close)}
    return {ids[0]: tag for tag, ids in encoded.items() if len(ids) == 1 and not model.piece(ids[0])}


def sampling_of(model: Model, options: ReplyOptions) -> Sampling:
    """The GGUF's recommended sampling, overridden by what the person chose."""
    chosen = {
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "repeat_penalty": options.repeat_penalty,
        "seed": options.seed,
    }
    given = {name: value for name, value in chosen.items() if value is not None}
    return replace(Sampling.from_metadata(model.metadata), **given)  # type: ignore[arg-type]


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many elements two sequences share at their beginning."""
    length = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        length += 1
    return length
