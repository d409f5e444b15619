"""A row -> a conversation. What a row's columns mean is found by looking at them.

| columns | known as |
| --- | --- |
| `messages` or `conversations`: turns of `role` and `content`, or of `from` and `value` | messages, ShareGPT |
| `instruction`, with or without `input`, and `output` or `response` | Alpaca |
| `prompt` and `completion`, `question` and `answer`, ...: texts, or lists of messages | prompt/completion |

A `system` column stands before the turns. A thought is inline, between any of `SPELLINGS`, or in a field or column of
its own (`reasoning_content`, `thinking`, ...); it becomes `<think>...</think>` before the answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ftllm.conversations import THOUGHT_FIELDS, Conversation, Message, Role
from ftllm.data.rows import FORM, kind
from ftllm.errors import UserError
from ftllm.thoughts import KNOWN_TAGS, Splitter, ThoughtTags, retagged, split, tags_of

ROLE_NAMES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
TOOL_ROLES = ("tool", "function", "function_call", "function_response", "observation", "ipython")
TURNS = ("messages", "conversations", "conversation", "dialogue", "turns", "chat")
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "output"),
    ("prompt", "answer"),
    ("question", "answer"),
    ("question", "response"),
    ("question", "solution"),
    ("problem", "solution"),
    ("query", "response"),
    ("query", "answer"),
    ("input", "output"),
    ("user", "assistant"),
)
THOUGHTS = (*THOUGHT_FIELDS, "thought", "thoughts", "cot", "complex_cot", "chain_of_thought")
SYSTEMS = ("system", "system_prompt")
FORMATS = "messages, ShareGPT conversations, Alpaca (instruction, output) or prompt/completion"
OWN = ThoughtTags()
ALONE = f"{OWN.close} alone"  # how a thought is written that the prompt opened
# How data writes a thought: the tags models use, and those of well-known data sets.
SPELLINGS = (
    *(tags for tags in KNOWN_TAGS if tags != ThoughtTags()),
    *(
        ThoughtTags(f"<{spelled}>", f"</{spelled}>")
        for word in ("think", "thinking", "thought", "reasoning")
        for spelled in (word.title(), word.upper())
    ),
    ThoughtTags("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, OpenThoughts
)
SOLUTION = (
    "<|begin_of_solution|>",
    "<|end_of_solution|>",
)  # around the answer, where Sky-T1's tags are around the thought


class Shape(NamedTuple):
    """What the columns of a row are.

    Attributes:
        name: as people call it.
        turns: the column that holds a list of turns; else the others are set.
        ask: instruction, prompt or question.
        more: what an instruction is about (Alpaca's `input`).
        answer: the reply.
        history: earlier turns, pairs of texts.
    """

    name: str
    turns: str | None = None
    ask: str = ""
    more: str | None = None
    answer: str = ""
    history: str | None = None


@dataclass(frozen=True)
class Read:
    """A row as a conversation, and how it was found.

    Attributes:
        conversation: its turns, thoughts inline as `<think>...</think>`.
        format: the name of its shape.
        spelling: how its thoughts were written (`<thinking>`, a field's name); None where it has none.
        ignored: columns that nothing was made of.
    """

    conversation: Conversation
    format: str
    spelling: str | None
    ignored: frozenset[str]


@dataclass
class _Notes:
    """What is seen of a row on the way."""

    spelling: str | None = None
    ignored: set[str] = field(default_factory=set)


def conversation_of(row: Mapping[str, Any], source: str) -> Conversation:
    """One row as a conversation.

    Args:
        row: an object of columns.
        source: where the row came from, for complaints.

    Raises:
        UserError: the row is not a conversation.
    """
    return read_row(row, source).conversation


def is_conversation(row: Mapping[str, Any]) -> bool:
    """Whether a row has the columns of a conversation, be they right or wrong."""
    columns = {name.lower(): name for name in row if isinstance(name, str)}
    return next(_shapes(row, columns), None) is not None


def read_row(row: Mapping[str, Any], source: str) -> Read:
    """One row as a conversation, with how it was found; arguments and errors are those of `conversation_of`."""
    columns = {name.lower(): name for name in row if isinstance(name, str)}
    shape = _shape(row, columns, source)
    system = _column(columns, SYSTEMS)
    notes = _Notes()
    used = {column for column in (*shape[1:], system) if column}
    messages: list[Message] = []
    if shape.turns is not None:
        messages += _turns(row[shape.turns], shape.turns, source, notes)
    else:
        thought = _column(columns, THOUGHTS) if _text_or_none(row[shape.answer]) is not None else None
        used |= {thought} if thought else set()
        messages += _pair(row, shape, thought, source, notes)
    _put_system(messages, row.get(system) if system else None, source)
    for number, message in enumerate(messages, 1):
        _require_characters(message.content, f"{source}: message {number}")
    given = {name for name, value in row.items() if value not in (None, "", [])}
    ignored = frozenset(given - used) | notes.ignored
    return Read(Conversation(tuple(messages), source), shape.name, notes.spelling, ignored)


def _shape(row: Mapping[str, Any], columns: Mapping[str, str], source: str) -> Shape:
    """The first shape that columns with values fit; a null counts as a value where nothing else fits."""
    filled = {low: name for low, name in columns.items() if row[name] is not None}
    for there in (filled, columns):
        for shape in _shapes(row, there):
            return shape
    keys = ", ".join(map(repr, list(row)[:6])) or "none"
    if {"chosen", "rejected"} <= columns.keys():
        hint = "pairs of preferences are not trained on; write the chosen answers as messages"
    elif "text" in columns:
        hint = "a text without turns has no answer to train; give the turns as messages"
    else:
        hint = f"give {FORM}, or {FORMATS}"
    raise UserError(f"{source}: no conversation in the row (its keys: {keys})", hint)


def _shapes(row: Mapping[str, Any], there: Mapping[str, str]) -> Iterator[Shape]:
    for name in TURNS:
        if name in there:
            turns = row[there[name]]
            speaker = isinstance(turns, list) and bool(turns) and isinstance(turns[0], dict) and "from" in turns[0]
            yield Shape("ShareGPT" if speaker else "messages", there[name])
    output = _column(there, ("output", "response", "completion", "answer"))
    if "instruction" in there and output:
        more = _column(there, ("input", "context"))
        yield Shape("Alpaca", None, there["instruction"], more, output, there.get("history"))
    for ask, answer in PAIRS:
        if ask in there and answer in there:
            yield Shape(f"{ask}/{answer}", None, there[ask], None, there[answer])


def _column(columns: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((columns[name] for name in names if name in columns), None)


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _turns(turns: Any, column: str, source: str, notes: _Notes) -> list[Message]:
    if not isinstance(turns, list):
        raise UserError(f"{source}: {column!r} is {kind(turns)}, not a list", f"give {FORM}")
    if not turns:
        raise UserError(f"{source}: {column!r} is empty", "remove the row, or give it a user and an assistant turn")
    return [_message(turn, f"{source}: message {number}", notes) for number, turn in enumerate(turns, 1)]


def _message(value: Any, where: str, notes: _Notes) -> Message:
    if not isinstance(value, dict):
        raise UserError(f"{where} is {kind(value)}, not an object", f"give {FORM}")
    speaker, text = ("from", "value") if "from" in value and "role" not in value else ("role", "content")
    given = value.get(speaker)
    role = ROLE_NAMES.get(given.lower()) if isinstance(given, str) else None
    if role is None:
        if isinstance(given, str) and given.lower() in TOOL_ROLES:
            raise UserError(f"{where} is a tool's ({given!r})", "tool calls cannot be trained on; remove the row")
        said = "has no role" if given is None else f"has the unknown role {json.dumps(given, ensure_ascii=False)}"
        raise UserError(f"{where} {said}", "roles are 'system', 'user' ('human') and 'assistant' ('gpt', 'model')")
    if value.get("tool_calls"):
        raise UserError(f"{where} calls tools", "tool calls cannot be trained on; remove the row")
    if value.get("weight") == 0 and role == "assistant":
        raise UserError(f"{where} has weight 0", "single turns cannot be left out of training; end the row before it")
    content, parts = _content(value.get(text), where)
    known = {speaker, text, "tool_calls", "weight", *(THOUGHTS if role == "assistant" else ())}
    notes.ignored |= {f"{name} of a turn" for name, other in value.items() if other and name not in known}
    if role != "assistant":
        if parts is not None:
            raise UserError(f"{where} holds a thought, but is not the assistant's", "only the assistant thinks")
        return Message(role, content)
    place, thought = next(((name, value[name]) for name in THOUGHTS if value.get(name)), ("", None))
    if parts is not None:
        place, thought = "thinking parts", parts
    return Message(role, _thoughtful(content, thought, place, where, notes))


def _content(content: Any, where: str) -> tuple[str, str | None]:
    """A message's text, and the thought where its parts hold one."""
    if content is None or isinstance(content, str):
        return content or "", None
    if not isinstance(content, list):
        raise UserError(f"{where}: its content is {kind(content)}, not text", "give the content as a string")
    texts: list[str] = []
    thoughts: list[str] = []
    for part in content:
        of_thought = isinstance(part, dict) and part.get("type") in ("thinking", "reasoning", "thought")
        text = _part(part)
        if text is None:
            what = f"a part of type {part.get('type')!r}" if isinstance(part, dict) else kind(part)
            raise UserError(f"{where}: its content holds {what}", "only text can be trained on; remove the row")
        (thoughts if of_thought else texts).append(text)
    return "".join(texts), "\n\n".join(thoughts) if thoughts else None


def _part(part: Any) -> str | None:
    """The text of a part: a text itself, `{"type": "text", "text": ...}`, or a thinking part."""
    if not isinstance(part, dict):
        return _text_or_none(part)
    if part.get("type") in ("thinking", "reasoning", "thought"):
        inner = next((part[name] for name in ("thinking", "reasoning", "thought", "text") if part.get(name)), "")
        if isinstance(inner, list):  # Mistral: a thought is a list of text parts
            pieces = [_part(piece) for piece in inner]
            return None if None in pieces else "".join(piece or "" for piece in pieces)
        return _text_or_none(inner)
    return _text_or_none(part.get("text")) if part.get("type") in (None, "text", "input_text", "output_text") else None


def _pair(row: Mapping[str, Any], shape: Shape, thought: str | None, source: str, notes: _Notes) -> list[Message]:
    messages: list[Message] = []
    for earlier in row.get(shape.history) or () if shape.history else ():
        if not isinstance(earlier, list) or len(earlier) != 2 or not all(isinstance(text, str) for text in earlier):
            raise UserError(f"{source}: its history is not pairs of texts", 'give [["question", "answer"], ...]')
        messages.append(Message("user", earlier[0]))
        messages.append(Message("assistant", _thoughtful(earlier[1], None, "", source, notes)))
    for column in (shape.ask, shape.answer):
        value = row[column]
        if isinstance(value, list) and value and isinstance(value[0], dict):
            messages += _turns(value, column, source, notes)
        elif not isinstance(value, str):
            raise UserError(f"{source}: {column!r} is {kind(value)}, not text", "give a text, or a list of messages")
        elif column == shape.ask:
            more = row.get(shape.more) if shape.more else None
            if more is not None and not isinstance(more, str):
                raise UserError(f"{source}: {shape.more!r} is {kind(more)}, not text", "give a text")
            messages.append(Message("user", f"{value}\n\n{more}" if more and more.strip() else value))
        else:
            given = row[thought] if thought else None
            messages.append(Message("assistant", _thoughtful(value, given, thought or "", source, notes)))
    return messages


def _thoughtful(content: str, thought: Any, place: str, where: str, notes: _Notes) -> str:
    """An answer with its thought inline, in our own tags; notes how it was spelled."""
    inline, spelling = canonical(content)
    notes.spelling = spelling or notes.spelling
    if thought is None or thought == "":
        return inline
    if not isinstance(thought, str):
        raise UserError(f"{where}: its thought is {kind(thought)}, not text", "give the thought as a string")
    if spelling:
        if "".join(split(inline).thought.split()) == "".join(thought.split()):
            return inline
        raise UserError(
            f"{where} has one thought in its text and another in {place!r}", "keep one of them, or remove the row"
        )
    notes.spelling = place
    return f"{OWN.open}\n{thought.strip()}\n{OWN.close}\n\n{content}"


def canonical(content: str) -> tuple[str, str | None]:
    """An assistant's text with its thoughts in `<think>...</think>`, and how they were written.

    A text that closes a thought which it does not open is one that a prompt with the opening tag made (DeepSeek-R1):
    it gets the tag. Tags that are code, and other tags than `<think>` further on in a text, stay as they are.
    """
    stripped = content.lstrip()
    if stripped.startswith(OWN.open):
        return content, OWN.open
    for tags in SPELLINGS:
        # Words that open a thought with some model (Apriel's) are plain words without what closes it.
        if stripped.startswith(tags.open) and (tags.close in stripped or not tags.open[0].isalpha()):
            text = retagged(stripped, tags, OWN)
            if tags.open == "<|begin_of_thought|>":
                for mark in SOLUTION:
                    text = text.replace(mark, "", 1)
                text = text.rstrip()
            return text, tags.open
    if OWN.open not in content and OWN.close in content and _closes(content):
        return retagged(content, OWN, OWN, opened=True), ALONE
    return content, OWN.open if OWN.open in content and split(content).thought else None


def respelling(spellings: Mapping[str, int], template: str | None) -> str | None:
    """What a person should know where data writes thoughts between other tags than the model: a line, or None.

    Args:
        spellings: rows by the way their thoughts are written (`Read.spelling`).
        template: the model's chat template.
    """
    model = tags_of(template)
    known = {tags.open: tags.open for tags in (OWN, *SPELLINGS)} | {ALONE: OWN.open}
    other = {spelling: rows for spelling, rows in spellings.items() if known.get(spelling, model.open) != model.open}
    if not other:
        return None
    counted = ((spelling.strip(), f"{rows} row{'s' * (rows > 1)}") for spelling, rows in sorted(other.items()))
    written = " and ".join(f"{spelling} ({rows})" for spelling, rows in counted)
    tags = f"{model.open.strip()} and {model.close}"
    return f"the data writes thoughts with {written}; they are trained between the model's own tags, {tags}"


def _closes(content: str) -> bool:
    """Whether a text that begins inside a thought ends it, with a tag that is not code."""
    splitter = Splitter(OWN, opened=True)
    splitter.feed(content)
    return not splitter.thinking


def _put_system(messages: list[Message], system: Any, source: str) -> None:
    if system is None or system == "":
        return
    if not isinstance(system, str):
        raise UserError(f"{source}: its system text is {kind(system)}, not text", "give it as a string")
    if messages and messages[0].role == "system":
        if messages[0].content.strip() != system.strip():
            raise UserError(f"{source}: one system text in a column and another in the turns", "keep one of them")
        return
    messages.insert(0, Message("system", system))


def _require_characters(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            f"{where} holds half of a surrogate pair, which is no character", "write the character itself"
        ) from None
