"""What models are measured on: graded prompts, with a right answer, and conversations, for the likelihood."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from ftllm.conversations import Conversation, Message
from ftllm.data.rows import read_rows
from ftllm.data.shapes import conversation_of, is_conversation
from ftllm.errors import UserError
from ftllm.evals.grading import GRADES, Grade, last_number

FORM = '{"id": "...", "prompt": "...", "answer": "...", "grade": "exact", "tags": ["easy"]}'
GRADED_KEYS = ("prompt", "answer", "grade")

T = TypeVar("T")


@dataclass(frozen=True)
class Prompt:
    """One graded prompt; `source` is `file.jsonl:12`."""

    id: str
    messages: tuple[Message, ...]
    answer: str
    grade: Grade
    tags: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Sample:
    """One conversation to score, with the tags its row carries."""

    conversation: Conversation
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvalData:
    """The content of data files; a row with a graded answer *and* an assistant's turn at its end is in both."""

    paths: tuple[Path, ...]
    prompts: tuple[Prompt, ...]
    samples: tuple[Sample, ...]

    def limited(self, limit: int | None) -> EvalData:
        """At most `limit` prompts and as many conversations, spread evenly over the file."""
        return EvalData(self.paths, _spread(self.prompts, limit), _spread(self.samples, limit))


def load(paths: Sequence[Path]) -> EvalData:
    """Read graded prompts, conversations, or a mixture, from data files.

    Raises:
        UserError: a file or a row is malformed, or an id is used twice; with file and line.
    """
    parts = [_load(path) for path in paths]
    prompts: dict[str, Prompt] = {}
    for prompt in (prompt for part in parts for prompt in part.prompts):
        if prompt.id in prompts:
            raise UserError(
                f"{prompt.source}: the id {prompt.id!r} is taken by {prompts[prompt.id].source}",
                "give each prompt its own id",
            )
        prompts[prompt.id] = prompt
    samples = tuple(sample for part in parts for sample in part.samples)
    return EvalData(tuple(paths), tuple(prompts.values()), samples)


def _load(path: Path) -> EvalData:
    prompts = []
    samples = []
    for line, row in read_rows(path):
        source = f"{path}:{line}"
        tags = _tags(row.get("tags"), source)
        graded = any(key in row for key in GRADED_KEYS)
        if not graded and not is_conversation(row):
            raise UserError(f"{source}: neither a graded prompt nor a conversation", f"give {FORM} or messages")
        conversation = conversation_of(row, source) if "messages" in row or not graded else None
        if conversation is not None and (not graded or conversation.messages[-1].role == "assistant"):
            _must_have_an_answer(conversation)
            samples.append(Sample(conversation, tags))
        if graded:
            prompts.append(_prompt(row, conversation, tags, source))
    return EvalData((path,), tuple(prompts), tuple(samples))


def _prompt(row: dict[str, Any], conversation: Conversation | None, tags: tuple[str, ...], source: str) -> Prompt:
    answer, grade = row.get("answer"), row.get("grade")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(answer, str) or not answer.strip():
        raise UserError(f"{source}: no 'answer' to grade by", f"give {FORM}")
    if grade not in GRADES:
        near = difflib.get_close_matches(str(grade), GRADES, n=1)
        said = "no 'grade'" if grade is None else f"unknown grade {grade!r}"
        hint = f"did you mean {near[0]!r}?" if near else f"grades are {', '.join(GRADES)}"
        raise UserError(f"{source}: {said}", hint)
    if grade == "number" and last_number(answer) is None:
        raise UserError(f"{source}: the answer {answer!r} holds no number", "give a number, or another grade")
    identifier = row.get("id", source)
    if not isinstance(identifier, str | int) or isinstance(identifier, bool):
        raise UserError(f"{source}: 'id' is not text", f"give {FORM}")
    return Prompt(str(identifier), _asked(row, conversation, source), answer, cast(Grade, grade), tags, source)


def _asked(row: dict[str, Any], conversation: Conversation | None, source: str) -> tuple[Message, ...]:
    """The turns up to the one that is to be answered."""
    if conversation is None:
        prompt = row.get("prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError(f"{source}: no text in 'prompt', and no 'messages'", f"give {FORM}")
        return (Message("user", prompt),)
    if "prompt" in row:
        raise UserError(f"{source}: both 'prompt' and 'messages'", "give one of them")
    messages = conversation.messages
    asked = messages[:-1] if messages[-1].role == "assistant" else messages
    if not asked or asked[-1].role != "user":
        raise UserError(f"{source}: no user turn to answer", "end the messages with a user's turn")
    return asked


def _tags(value: Any, source: str) -> tuple[str, ...]:
    if value is None:
        return ()
    tags = [value] if isinstance(value, str) else value
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise UserError(f"{source}: 'tags' is not a list of words", 'give "tags": ["easy", "facts"]')
    return tuple(dict.fromkeys(tags))


def _must_have_an_answer(conversation: Conversation) -> None:
    if not any(message.role == "assistant" for message in conversation.messages):
        raise UserError(
            f"{conversation.source}: no assistant turn to score, and no 'answer' to grade by",
            f"give {FORM}, or a conversation that ends with the assistant",
        )


def _spread(items: Sequence[T], limit: int | None) -> tuple[T, ...]:
    if limit is None or limit >= len(items):
        return tuple(items)
    return tuple(items[i * len(items) // limit] for i in range(limit))


def all_tags(items: Sequence[Prompt] | Sequence[Sample]) -> list[str]:
    """Every tag in the order of its first use."""
    return list(dict.fromkeys(tag for item in items for tag in item.tags))
