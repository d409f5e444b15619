"""Running models over the data: replies through llama.cpp, likelihoods through llama.cpp and transformers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftllm import thoughts
from ftllm.errors import UserError
from ftllm.evals.models import Checkpoint, Target
from ftllm.evals.replies import Outcome, outcome
from ftllm.evals.tasks import EvalData, Prompt, Sample
from ftllm.likelihood import Likelihood, torch_likelihood
from ftllm.progress import Reporter
from ftllm.render import Row, prompt_ids, render
from ftllm.vocabulary import Vocabulary, from_directory

if TYPE_CHECKING:
    from ftllm.llama.generate import Generation
    from ftllm.llama.model import Model

LLAMA = "llama.cpp"
TRANSFORMERS = "transformers"


@dataclass(frozen=True)
class Settings:
    """How replies are drawn.

    Attributes:
        temperature: 0 is greedy.
        seed: of the draw, where there is one.
        max_tokens: longest reply.
        parallel: replies generated at once.
    """

    temperature: float = 0.0
    seed: int = 3407
    max_tokens: int = 2048
    parallel: int = 8


@dataclass(frozen=True)
class Graded:
    """A model's replies to all prompts, in the data's order."""

    label: str
    file: Path
    outcomes: tuple[Outcome, ...]
    seconds: float


@dataclass(frozen=True)
class Scored:
    """A model's negative log-likelihood of all conversations.

    Attributes:
        label: the model.
        through: `transformers` or `llama.cpp`.
        weights: the file, directory or repository they came from.
        samples: the data's conversations.
        nats: of each conversation's assistant tokens, in the data's order.
        tokens: how many those are.
        is_base: it is the base that a measured run was trained on.
    """

    label: str
    through: str
    weights: str
    samples: tuple[Sample, ...]
    nats: tuple[float, ...]
    tokens: tuple[int, ...]
    seconds: float
    is_base: bool = False


@dataclass(frozen=True)
class Results:
    """Everything measured, in the order of the models."""

    data: EvalData
    settings: Settings
    graded: tuple[Graded, ...]
    scored: tuple[Scored, ...]


def check(targets: Sequence[Target], data: EvalData) -> None:
    """Refuse, before any long work, what could not be measured.

    Raises:
        UserError: there is nothing to measure, or a model lacks the form that the data needs.
    """
    if not data.prompts and not data.samples:
        raise UserError("there is nothing to measure", "give --data with at least one row")
    for target in targets:
        if target.gguf is None and data.prompts:
            named = target.label if target.run or target.checkpoint is None else target.checkpoint.base
            raise UserError(
                f"{target.label} has no GGUF, and graded prompts are answered through llama.cpp",
                f"make one with `ftllm export {named}`",
            )
        if target.gguf is None and find_spec("torch") is None:
            raise UserError(f"measuring {target.label} needs torch", "pip install 'ftllm[train]', or give its GGUF")


def measure(targets: Sequence[Target], data: EvalData, settings: Settings, reporter: Reporter) -> Results:
    """Measure every target on all the data.

    A GGUF answers the graded prompts and scores the conversations; a run's conversations are also scored in
    transformers, by the base and by the base with the adapter. Templates that write the date are told the run's; a
    model that belongs to no run is told that of the first one, so that both are asked the same.

    Raises:
        UserError: see `check`; or a model or conversation is unusable.
    """
    check(targets, data)
    graded: list[Graded] = []
    scored: list[Scored] = []
    bases: set[tuple[str, str | None]] = set()
    usual = next((target.today for target in targets if target.today), date.today())
    for target in targets:
        today = target.today or usual
        if target.checkpoint is not None and data.samples:
            if find_spec("torch") is None or find_spec("transformers") is None:
                reporter.warn(f"no likelihood of {target.label} in transformers: torch is not installed")
            else:
                key = (target.checkpoint.base, target.checkpoint.revision)
                scored += _checkpoint(target.label, target.checkpoint, data.samples, key not in bases, today, reporter)
                bases.add(key)
        if target.gguf is not None:
            with _loaded(target.gguf) as model:
                model.today = today
                if data.prompts:
                    graded.append(_answer(target.label, model, data.prompts, settings, reporter))
                if data.samples:
                    scored.append(_gguf(target.label, model, data.samples, reporter))
    return Results(data, settings, tuple(graded), tuple(scored))


@contextmanager
def _loaded(path: Path) -> Iterator[Model]:
    from ftllm.llama.model import Model

    with Model.load(path) as model:
        yield model


def _answer(label: str, model: Model, prompts: Sequence[Prompt], settings: Settings, reporter: Reporter) -> Graded:
    from ftllm.llama.generate import generate_batch
    from ftllm.llama.sampling import Sampling

    started = time.monotonic()
    asked = [_asked(prompt, model) for prompt in prompts]
    sampling = Sampling(settings.temperature, seed=settings.seed)
    with reporter.task(f"{label} answers", len(prompts), "prompts") as task:

        def done(_index: int, _generation: Generation) -> None:
            task.advance()

        generations = generate_batch(
            model, asked, sampling=sampling, max_tokens=settings.max_tokens, parallel=settings.parallel, on_done=done
        )
    outcomes = [
        reply(prompt, ids, generation, model)
        for prompt, ids, generation in zip(prompts, asked, generations, strict=True)
    ]
    return Graded(label, model.path, tuple(outcomes), time.monotonic() - started)


def _asked(prompt: Prompt, vocabulary: Vocabulary) -> list[int]:
    messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
    try:
        return prompt_ids(messages, vocabulary)
    except UserError as error:
        raise UserError(f"{prompt.source}: {error.message}", error.hint) from error


def reply(prompt: Prompt, asked: Sequence[int], generation: Generation, model: Model) -> Outcome:
    """Take one reply apart.

    Args:
        prompt: what was asked.
        asked: its token ids; a template may end them inside a thought.
        generation: what came.
        model: whose tokens these are.
    """
    from ftllm.llama.text import control_texts

    tags = thoughts.tags_of(model.chat_template)
    marks = control_texts(model, tags.strings)
    tokens = [token for token in generation.tokens if not model.is_eog(token)]
    return outcome(
        prompt,
        tokens,
        [model.piece(token) or marks.get(token, "").encode() for token in tokens],
        cut=generation.stop_reason == "length",
        tags=tags,
        opened=thoughts.opens_thought(model.decode_text(asked[-32:], special=True), tags),
    )


def _gguf(label: str, model: Model, samples: Sequence[Sample], reporter: Reporter) -> Scored:
    from ftllm.llama.likelihood import llama_likelihood

    with reporter.task(f"{label} scores ({LLAMA})", len(samples), "conversations") as task:
        return _score(
            label,
            LLAMA,
            str(model.path),
            samples,
            _rows(samples, model, model.n_ctx_train, reporter),
            lambda rows, on_row: llama_likelihood(model, rows, on_row=on_row),
            task.update,
        )


def _checkpoint(
    label: str, checkpoint: Checkpoint, samples: Sequence[Sample], base_too: bool, today: date, reporter: Reporter
) -> list[Scored]:
    """The likelihood in transformers: of a model directory, or of a run and (`base_too`) its base."""
    model = load_checkpoint(checkpoint)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    rows = _rows(samples, from_directory(checkpoint.tokenizer or Path(checkpoint.base), today), limit, reporter)
    found = []

    def score(of: str, weights: str, model: Any, *, is_base: bool = False) -> None:
        with reporter.task(f"{of} scores ({TRANSFORMERS})", len(samples), "conversations") as task:
            found.append(
                _score(
                    of,
                    TRANSFORMERS,
                    weights,
                    samples,
                    rows,
                    lambda rows, on_row: torch_likelihood(model, rows, on_row=on_row),
                    task.update,
                    is_base=is_base,
                )
            )

    if checkpoint.adapter is None:
        score(label, checkpoint.base, model)
        return found
    if base_too:
        score(Path(checkpoint.base).name, checkpoint.base, model, is_base=True)
    score(label, str(checkpoint.adapter), with_adapter(model, checkpoint.adapter))
    return found


def load_checkpoint(checkpoint: Checkpoint) -> Any:
    """The base in transformers: float32 on a CPU, the checkpoint's own precision on a GPU.

    Raises:
        UserError: it cannot be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    gpu = torch.cuda.is_available()
    if Path(checkpoint.base).is_absolute() and not Path(checkpoint.base).is_dir():
        raise UserError(f"the base model is not at {checkpoint.base}", "put it back, or train again")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            checkpoint.base,
            revision=checkpoint.revision or "main",
            dtype="auto" if gpu else torch.float32,
            device_map="auto" if gpu else None,
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{checkpoint.base} cannot be loaded: {reason}", "is the model complete?") from error
    return model.eval()


def with_adapter(model: Any, adapter: Path) -> Any:
    """`model` with a PEFT adapter on it (applied as trained, not merged)."""
    from peft import PeftModel

    if not (adapter / "adapter_model.safetensors").is_file():
        raise UserError(f"{adapter} has no adapter_model.safetensors", "the run is damaged; train it again")
    return PeftModel.from_pretrained(model, str(adapter)).eval()


@dataclass(frozen=True)
class _Rows:
    """The rows of all conversations, and where each conversation's begin (with the end of the last)."""

    rows: list[Row]
    starts: list[int]


def _rows(samples: Sequence[Sample], vocabulary: Vocabulary, limit: int | None, reporter: Reporter) -> _Rows:
    rendered = [render(sample.conversation, vocabulary, max_length=limit) for sample in samples]
    cut = sum(any(row.cut for row in rows) for rows in rendered)
    if cut:
        reporter.warn(f"{cut} of {len(samples)} conversations are longer than the model's {limit} tokens and were cut")
    return _Rows([row for rows in rendered for row in rows], [0, *accumulate(len(rows) for rows in rendered)])


def _score(
    label: str,
    through: str,
    weights: str,
    samples: Sequence[Sample],
    rows: _Rows,
    likelihood: Callable[[Sequence[Row], Callable[[int], None]], Likelihood],
    progress: Callable[[float], None],
    *,
    is_base: bool = False,
) -> Scored:
    started = time.monotonic()
    finished = {end: number for number, end in enumerate(rows.starts[1:], 1)}

    def on_row(index: int) -> None:
        if index + 1 in finished:
            progress(finished[index + 1])

    per_row = likelihood(rows.rows, on_row).per_row
    spans = [per_row[start:end] for start, end in zip(rows.starts, rows.starts[1:], strict=False)]
    return Scored(
        label,
        through,
        weights,
        tuple(samples),
        tuple(sum(nats for nats, _ in span) for span in spans),
        tuple(sum(tokens for _, tokens in span) for span in spans),
        time.monotonic() - started,
        is_base,
    )
