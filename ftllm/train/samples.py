"""A few answers before and after training: the same prompts, greedy, thoughts included."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ftllm.conversations import Conversation
from ftllm.errors import UserError
from ftllm.files import write_json
from ftllm.render import prompt_ids
from ftllm.runs import Run
from ftllm.train.prepare import Prepared
from ftllm.train.processes import Processes
from ftllm.vocabulary import DirectoryVocabulary

MAX_SECONDS = 60.0  # for one answer, so that a big model on a slow machine does not hold its own training up


@dataclass(frozen=True)
class Prompt:
    """What is asked.

    Attributes:
        source: of the conversation, `file:line`.
        held_out: whether it was left out of training.
        messages: up to the last answer.
        expected: the answer in the data.
        ids: as the model reads it.
    """

    source: str
    held_out: bool
    messages: tuple[dict[str, str], ...]
    expected: str
    ids: tuple[int, ...]


def choose(
    held_out: Sequence[Conversation],
    training: Sequence[Conversation],
    vocabulary: DirectoryVocabulary,
    count: int,
    max_length: int,
) -> list[Prompt]:
    """`count` prompts from all over the held-out conversations, else from all over the training data.

    Those whose prompt is longer than `max_length` tokens are passed over, and those that cannot be trained on either.
    """
    found: list[Prompt] = []
    conversations = held_out or training
    for index in _spread(len(conversations)) if count else ():
        conversation = conversations[index]
        last = max((i for i, message in enumerate(conversation.messages) if message.role == "assistant"), default=0)
        messages = tuple({"role": m.role, "content": m.content} for m in conversation.messages[:last])
        try:
            ids = prompt_ids(messages, vocabulary) if messages else []
        except UserError:  # the template refuses the turns
            continue
        if 0 < len(ids) <= max_length:
            expected = conversation.messages[last].content
            found.append(Prompt(conversation.source, bool(held_out), messages, expected, tuple(ids)))
        if len(found) == count:
            break
    return found


def _spread(total: int) -> list[int]:
    """0 to total - 1, each next one as far from those before as may be (van der Corput's sequence, base 2)."""
    bits = max(1, (total - 1).bit_length())
    order = (int(format(i, f"0{bits}b")[::-1], 2) for i in range(2**bits))
    return [index for index in order if index < total]


def answer(
    model: Any,
    prompts: Sequence[Prompt],
    vocabulary: DirectoryVocabulary,
    max_tokens: int,
    advance: Callable[[int], None],
    max_seconds: float | None = MAX_SECONDS,
) -> list[str]:
    """The model's greedy answers; an unfinished one ends in ` [...]`.

    Args:
        model: a causal language model; its training mode is left as it was.
        prompts: from `choose`.
        vocabulary: of the model.
        max_tokens: longest answer.
        advance: called with each prompt's index before it is answered.
        max_seconds: longest time for one; None where several processes must end after the same token.
    """
    import torch
    from transformers import GenerationConfig

    ends = sorted(vocabulary.end_ids)
    pad = vocabulary.tokenizer.pad_token_id
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_tokens,
        max_time=max_seconds,
        eos_token_id=ends or None,
        pad_token_id=pad if pad is not None else ends[0] if ends else 0,
    )
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    answers = []
    try:
        for index, prompt in enumerate(prompts):
            advance(index)
            ids = torch.tensor([prompt.ids], device=device)
            output = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings, use_cache=True
            )
            answers.append(_text(output[0, ids.shape[1] :].tolist(), vocabulary))
    finally:
        model.train(was_training)
    return answers


def _text(ids: Sequence[int], vocabulary: DirectoryVocabulary) -> str:
    """Generated ids as text, without what ends a turn; thought tags that are control tokens stay."""
    ended = bool(ids) and ids[-1] in vocabulary.end_ids
    text: str = vocabulary.tokenizer.decode([token for token in ids if token not in vocabulary.end_ids])
    return text if ended else text + " [...]"


class Answers:
    """The answers of a run, kept in its `samples.json`, so that a resumed run still knows those before training.

    Args:
        run: whose they are.
        prepared: its data and settings.
        note: tells a person how far it is.

    Attributes:
        samples: `source`, `held_out`, `messages`, `expected`, and when they are taken `before` and `after`.
    """

    def __init__(self, run: Run, prepared: Prepared, note: Callable[[str], None]) -> None:
        config, corpus = prepared.config, prepared.corpus
        self.path = run.path / "samples.json"
        self.max_tokens = config.sample_tokens
        self.vocabulary = prepared.vocabulary
        self.note = note
        training = [item.conversation for item in corpus.training]
        self.prompts = choose(corpus.held_out, training, self.vocabulary, config.samples, config.max_length)
        self.samples: list[dict[str, Any]] = _read(self.path) or [
            {name: value for name, value in asdict(prompt).items() if name != "ids"} for prompt in self.prompts
        ]

    def take(self, when: str, model: Any, processes: Processes) -> None:
        """Let the model answer, and keep it as `before` or `after`; what was taken already stays.

        Where the model is split over processes, all of them let it answer, and the first keeps it.

        Raises:
            WorkError: no space left.
        """
        if not self.prompts or all(when in sample for sample in self.samples):
            return
        seconds = None if processes.sharded else MAX_SECONDS
        answers = answer(model, self.prompts, self.vocabulary, self.max_tokens, self._advance, seconds)
        for sample, text in zip(self.samples, answers, strict=True):
            sample[when] = text
        if processes.first:
            write_json(self.path, self.samples)

    def _advance(self, index: int) -> None:
        self.note(f"answering prompt {index + 1}/{len(self.prompts)}")


def _read(path: Path) -> list[dict[str, Any]] | None:
    try:
        return list(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
