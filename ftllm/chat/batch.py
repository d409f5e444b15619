"""Many questions from a file, answered in order: `ftllm chat --batch`.

Several sequences share each batch of the local model (`ftllm.llama.generate`), several requests are under way at an
endpoint. Whatever is finished goes into a journal at once; the same question file, model and settings find it there
again after an interruption. The journal is gone when all is answered.
"""

from __future__ import annotations

import hashlib
import json
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ftllm.chat.ask import error_of, reply_values
from ftllm.chat.endpoint import Endpoint
from ftllm.chat.events import AnyEvent, DoneReason, Failed, Loaded
from ftllm.chat.options import PARALLEL, ChatOptions, ReplyOptions
from ftllm.chat.prompt import Prompt, build_prompt
from ftllm.chat.remote import Remote, Target, parse_remote
from ftllm.chat.session import Reply
from ftllm.chat.speaker import THOUGHT_LEFT, TIME_TO_ANSWER, sampling_of
from ftllm.chat.writer import Writer
from ftllm.data.rows import read_rows
from ftllm.data.shapes import conversation_of
from ftllm.errors import UserError
from ftllm.llama.adapters import fingerprint_with
from ftllm.llama.context import DEFAULT_CONTEXT
from ftllm.llama.generate import Generation, generate_batch
from ftllm.llama.header import read_header
from ftllm.llama.model import Model
from ftllm.llama.text import TextStream, control_texts
from ftllm.loops import LoopGuard
from ftllm.values import dataclass

TIMINGS = ("thought_seconds", "tokens_per_second", "time_to_first_token")  # say nothing where answers share the machine
FORM = (
    'give one {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]} a line, '
    'with an "id" if you like, and "images" for a vision model'
)
TOGETHER = 6  # images held in memory at once: a model may cut each into ten

Result = dict[str, Any]
OnResult = Callable[[int, Result], None]


@dataclass(frozen=True)
class Row:
    """One question: its `id` (None without one) and the messages that lead up to the answer, images in the last."""

    id: Any
    messages: tuple[Mapping[str, Any], ...]

    @property
    def images(self) -> tuple[str, ...]:
        """The image files that are shown with it."""
        return tuple(self.messages[-1].get("images", ()))


def read_questions(path: Path, system: str | None, images: Sequence[str] = ()) -> list[Row]:
    """The questions of a JSONL file.

    Args:
        system: put before those that have no system turn.
        images: shown with each, before its own `images`; those are relative to the file's directory.

    Raises:
        UserError: the file is missing, empty, not UTF-8, or a line is no question; with file and line.
    """
    rows = []
    images = _images(list(images), Path(), "--image")
    for number, value in read_rows(path):
        where = f"{path}:{number}"
        shown = [*images, *_images(value.get("images") or [], path.parent, where)]
        if "prompt" in value:
            value = {"messages": [{"role": "user", "content": value["prompt"]}], "id": value.get("id")}
        elif "messages" not in value:
            raise UserError(f"{where}: neither 'prompt' nor 'messages' in the row", FORM)
        turns = conversation_of(value, where).messages
        if turns[-1].role == "assistant":
            raise UserError(f"{where}: the last turn is the assistant's: there is nothing to answer", FORM)
        if not turns[-1].content.strip():
            raise UserError(f"{where}: the prompt is empty", FORM)
        messages: tuple[Mapping[str, Any], ...]
        messages = tuple({"role": turn.role, "content": turn.content} for turn in turns)
        if shown:
            messages = (*messages[:-1], {**messages[-1], "images": tuple(shown)})
        if system and turns[0].role != "system":
            messages = ({"role": "system", "content": system}, *messages)
        rows.append(Row(value.get("id"), messages))
    return rows


def _images(names: Any, directory: Path, where: str) -> list[str]:
    """The image files that a row names, from a directory."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: 'images' is not a list of file names", FORM)
    files = [(directory / Path(name).expanduser()).resolve() for name in names]
    for file in files:
        if not file.is_file():
            raise UserError(f"{where}: there is no image {file}", "give its path, from the directory of the questions")
    return [str(file) for file in files]


class Journal:
    """What is answered so far of one batch: a file in the user's state directory, one JSON line an answer.

    Args:
        directory: where journals are; None for the user's state directory.
    """

    def __init__(
        self, rows: Sequence[Row], target: Target, options: ChatOptions, directory: Path | None = None
    ) -> None:
        self.path = (directory or _directory()) / f"{_key(rows, target, options)}.jsonl"
        self.results: dict[int, Result] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    number, result = json.loads(line)
                    self.results[int(number)] = dict(result)
                except (ValueError, TypeError):
                    continue  # the line that was being written when the program was killed
        self._file = self.path.open("a", encoding="utf-8")
        self.path.chmod(0o600)
        self._file.write("\n")  # ends such a line

    def add(self, number: int, result: Result) -> None:
        """Keep one answer; in the file when this returns, so that a killed program has it."""
        self.results[number] = result
        self._file.write(json.dumps([number, result]) + "\n")
        self._file.flush()

    def close(self, *, remove: bool) -> None:
        """Close the file, and remove it when it is of no more use."""
        self._file.close()
        if remove or not self.results:
            self.path.unlink(missing_ok=True)


def answer_all(
    rows: Sequence[Row],
    target: Target,
    options: ChatOptions,
    journal: Journal,
    on_result: OnResult,
    *,
    parallel: int = PARALLEL,
) -> None:
    """Answer every row that the journal has no answer to; one that cannot be answered has an `error` instead.

    Args:
        on_result: called in order of the rows with each result, as soon as it and all before it are there; with those
            of the journal first.
        parallel: rows answered together.

    Raises:
        UserError: the model cannot be loaded, the endpoint refuses the key, ...
        WorkError: it failed on the way; what was answered is in the journal.
    """
    told = 0

    def tell() -> None:
        nonlocal told
        while told in journal.results:
            on_result(told, journal.results[told])
            told += 1

    def take(number: int, result: Result) -> None:
        journal.add(number, result)
        tell()

    tell()
    todo = [number for number in range(len(rows)) if number not in journal.results]
    if todo:
        if isinstance(target, Remote):
            _answer_remote(rows, todo, target, options.reply, parallel, take)
        else:
            _answer_local(rows, todo, target, options, parallel, take)


def _answer_local(
    rows: Sequence[Row], todo: Sequence[int], path: Path, options: ChatOptions, parallel: int, take: OnResult
) -> None:
    load = options.load
    with Model.load(path, gpu_layers=load.gpu_layers, n_ctx=load.n_ctx, adapters=load.adapter_paths) as model:
        if load.mmproj:
            model.add_projector(Path(load.mmproj))
        for numbers in _groups(rows, todo):
            _answer_group(rows, numbers, model, options, parallel, take)


def _groups(rows: Sequence[Row], todo: Sequence[int]) -> Iterator[list[int]]:
    """All of `todo` at once; where images are shown, as many at a time as memory holds images."""
    group: list[int] = []
    images = 0
    for number in todo:
        images += len(rows[number].images)
        if group and images > TOGETHER:
            yield group
            group, images = [], len(rows[number].images)
        group.append(number)
    yield group


def _answer_group(
    rows: Sequence[Row], todo: Sequence[int], model: Model, options: ChatOptions, parallel: int, take: OnResult
) -> None:
    reply = options.reply
    n_ctx = options.load.n_ctx or min(model.n_ctx_train or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    prompts: dict[int, Prompt] = {}
    for number in todo:
        try:
            prompts[number] = _prompt(rows[number], model, reply, n_ctx)
        except UserError as error:
            take(number, {"error": error.message})
    numbers = list(prompts)
    guides = [_Guide(model, prompts[number], reply) for number in numbers]

    def done(index: int, generation: Generation) -> None:
        take(numbers[index], guides[index].result(generation, str(model.path)))

    generate_batch(
        model,
        [prompts[number].ids for number in numbers],
        sampling=sampling_of(model, reply),
        max_tokens=reply.max_tokens,
        parallel=parallel,
        on_done=done,
        n_ctx=n_ctx,
        seeds=None if reply.seed is None else [reply.seed + number for number in numbers],
        steer=lambda index, token: guides[index].steer(token),
    )


def _prompt(row: Row, model: Model, options: ReplyOptions, n_ctx: int) -> Prompt:
    prompt = build_prompt(row.messages, model, options.think, options.template_kwargs)
    if len(prompt.ids) >= n_ctx:
        raise UserError(f"the conversation is {len(prompt.ids)} tokens long, but the context holds {n_ctx}")
    return prompt


class _Guide:
    """One answer while it is generated: its thought told from the answer, held to the budget, watched for loops."""

    def __init__(self, model: Model, prompt: Prompt, options: ReplyOptions) -> None:
        self._model, self._prompt, self._options = model, prompt, options
        self._reply = Reply()
        self._writer = Writer(self._reply.feed, 0, prompt.tags)
        self._text, self._loops = TextStream(model), LoopGuard()
        self._tags = control_texts(model, prompt.tags.strings)
        self._looping = False
        if prompt.opened:
            self._writer.open_thought()

    def steer(self, token: int) -> list[int] | None:
        """Take a token; what is to follow it, or None to end the answer."""
        writer, mark = self._writer, self._tags.get(token)
        writer.take(self._text.feed(token) if mark is None else mark, control=mark is not None)
        self._looping |= self._options.loops == "stop" and self._loops.look(token) is not None
        if self._looping and not writer.thinking:
            return None
        budget = self._options.think_budget
        spent = budget is not None and writer.thinking and writer.thought_tokens >= budget
        if not (spent or self._looping) or self._text.pending:
            return []
        tags = self._prompt.tags
        tokens = self._model.encode(TIME_TO_ANSWER + tags.close + tags.answer)
        writer.close_thought(TIME_TO_ANSWER, len(tokens), "budget" if spent else "loop")
        self._loops.forget()
        self._looping = False
        return tokens

    def result(self, generation: Generation, model: str) -> Result:
        """What is printed of the finished answer."""
        full = len(generation.tokens) < self._options.max_tokens
        reasons: dict[str, DoneReason] = {
            "stop": "stop",
            "steered": "loop",
            "length": "context" if full else "length",
        }
        reason = reasons[generation.stop_reason]
        self._writer.finish(self._text.finish(), why=THOUGHT_LEFT[reason])
        message = self._reply.message
        return {
            "answer": message.content,
            "thought": message.thought,
            "thought_tokens": self._writer.thought_tokens,
            "answer_tokens": self._writer.answer_tokens,
            "prompt_tokens": len(self._prompt.ids),
            "stop_reason": reason,
            "model": model,
        }


def _answer_remote(
    rows: Sequence[Row], todo: Sequence[int], remote: Remote, options: ReplyOptions, parallel: int, take: OnResult
) -> None:
    """Ask for several at once, each on a connection of its own; a server with a queue fills its batches with them."""
    lines = [_Line(remote) for _ in range(min(parallel, len(todo)))]
    free: queue.SimpleQueue[_Line] = queue.SimpleQueue()
    try:
        for line in lines:
            line.load()
            free.put(line)

        def ask(number: int) -> tuple[int, Result]:
            line = free.get()
            try:
                return number, line.ask(rows[number].messages, options)
            finally:
                free.put(line)

        with ThreadPoolExecutor(len(lines), thread_name_prefix="batch") as pool:
            asked = [pool.submit(ask, number) for number in todo]
            try:
                for future in as_completed(asked):
                    take(*future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for line in lines:
                    line.endpoint.stop()
                raise
    finally:
        for line in lines:
            line.endpoint.close()


class _Line:
    """A connection to an endpoint, for callers that wait."""

    def __init__(self, remote: Remote) -> None:
        self._events: queue.SimpleQueue[AnyEvent] = queue.SimpleQueue()
        self._remote = remote
        self.endpoint = Endpoint(self._events.put)

    def load(self) -> None:
        """Take the model.

        Raises:
            UserError: it is not to be had.
        """
        self.endpoint.load(self._remote)
        event = self._events.get()
        if isinstance(event, Failed):
            raise error_of(event)
        if isinstance(event, Loaded):
            self._remote = parse_remote(event.path)

    def ask(self, messages: Sequence[Mapping[str, Any]], options: ReplyOptions) -> Result:
        """One answer; an `error` where the endpoint refuses this one.

        Raises:
            WorkError: the endpoint fails.
        """
        number = self.endpoint.generate(messages, options)
        reply = Reply()
        while reply.end is None:
            event = self._events.get()
            if event.reply == number:
                reply.feed(event)
        if isinstance(reply.end, Failed):
            if reply.end.exit_code != UserError.exit_code:
                raise error_of(reply.end)
            return {"error": reply.end.message}
        return {key: value for key, value in reply_values(reply, str(self._remote)).items() if key not in TIMINGS}


def _directory() -> Path:
    from platformdirs import user_state_path

    return user_state_path("ftllm", appauthor=False) / "batches"


def _key(rows: Sequence[Row], target: Target, options: ChatOptions) -> str:
    """The same for the same questions put to the same model in the same way."""
    model = (
        str(target) if isinstance(target, Remote) else fingerprint_with(read_header(target), options.load.adapter_paths)
    )
    questions = [[row.id, row.messages] for row in rows]
    states = [Path(image).stat() for row in rows for image in row.images]
    seen = [options.load.mmproj, *((state.st_size, state.st_mtime_ns) for state in states)]
    asked = json.dumps([model, asdict(options.reply), options.load.n_ctx, questions, *(seen if states else [])])
    return hashlib.sha256(asked.encode()).hexdigest()[:32]
