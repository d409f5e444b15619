"""Datasets on disk -> conversations, with the file and line in every complaint.

A row is `{"messages": [{"role": ..., "content": ...}, ...]}`, one a line (JSONL) or in a JSON array. Content is text,
null (taken as empty) or a list of text parts. A thought may stand inline in an assistant's content as
`<think>...</think>`, or in a field of its own, and is then put inline.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from ftllm.errors import UserError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)
THOUGHT_FIELDS = ("reasoning_content", "thinking", "reasoning")
MAX_LINE = 256 * 1024 * 1024  # bytes; a longer line is a file that is not JSONL, and would only fill the memory
FORM = 'one {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]} a line'


@dataclass(frozen=True)
class Message:
    """One turn; an assistant's thought stands inline in `content` as `<think>...</think>`."""

    role: Role
    content: str


@dataclass(frozen=True)
class Conversation:
    """The turns of one row, and where it came from (`file.jsonl:12`)."""

    messages: tuple[Message, ...]
    source: str


def load_conversations(path: Path) -> list[Conversation]:
    """All conversations of a JSONL file, or of a JSON file holding an array of them.

    Raises:
        UserError: the file is missing, unreadable, empty, not UTF-8, or a row is malformed; with file and line.
    """
    rows = _read_json(path) if path.suffix.lower() == ".json" else read_jsonl(path)
    return [conversation_of(row, f"{path}:{line}") for line, row in rows]


def conversation_of(row: dict[str, Any], source: str) -> Conversation:
    """One row as a conversation.

    Args:
        row: an object with `messages`; other keys are left alone.
        source: where the row came from, for complaints.

    Raises:
        UserError: the row is not a conversation.
    """
    if "messages" not in row:
        keys = ", ".join(map(repr, list(row)[:6])) or "none"
        raise UserError(f"{source}: no 'messages' in the row (its keys: {keys})", f"give {FORM}")
    messages = row["messages"]
    if not isinstance(messages, list):
        raise UserError(f"{source}: 'messages' is {_kind(messages)}, not a list", f"give {FORM}")
    if not messages:
        raise UserError(f"{source}: 'messages' is empty", "remove the row, or give it a user and an assistant turn")
    return Conversation(
        tuple(_message(message, f"{source}: message {number}") for number, message in enumerate(messages, 1)), source
    )


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise UserError(f"{where} is {_kind(value)}, not an object", f"give {FORM}")
    role = value.get("role")
    if role not in ROLES:
        given = "has no role" if role is None else f"has the unknown role {json.dumps(role, ensure_ascii=False)}"
        raise UserError(f"{where} {given}", "roles are 'system', 'user' and 'assistant'")
    if value.get("tool_calls"):
        raise UserError(f"{where} calls tools", "tool calls cannot be trained on; remove the row")
    content = _text(value.get("content"), where)
    if role == "assistant":
        thought = next((value[field] for field in THOUGHT_FIELDS if value.get(field)), None)
        if thought is not None:
            if not isinstance(thought, str):
                raise UserError(f"{where}: its thought is {_kind(thought)}, not text", "give the thought as a string")
            content = f"<think>\n{thought.strip()}\n</think>\n\n{content}"
    try:
        content.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            f"{where} holds half of a surrogate pair, which is no character", "write the character itself"
        ) from None
    return Message(role, content)


def _text(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UserError(f"{where}: its content is {_kind(content)}, not text", "give the content as a string")
    parts = []
    for part in content:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, str):
            kind = f"a part of type {part.get('type')!r}" if isinstance(part, dict) else _kind(part)
            raise UserError(f"{where}: its content holds {kind}", "only text can be trained on; remove the row")
        parts.append(text)
    return "".join(parts)


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each object of a JSONL file with its line number (from 1), read as a stream; blank lines are skipped.

    A UTF-8 byte order mark is accepted.

    Raises:
        UserError: the file is missing, unreadable, without rows, not UTF-8, or a line is not a JSON object.
    """
    found = False
    try:
        with path.open("rb") as file:
            for number, line in enumerate(_decoded_lines(file, path), 1):
                if line.strip():
                    found = True
                    yield number, _object(line.rstrip(), f"{path}:{number}")
    except OSError as error:
        raise _unreadable(path, error) from None
    if not found:
        raise UserError(f"{path} is empty", f"give {FORM}")


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error.msg} at column {error.colno}", _json_hint(line)) from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{where}: not usable JSON: {error}", "mend or remove the line") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: {_kind(value)} instead of an object", f"give {FORM}")
    return value


def _json_hint(line: str) -> str:
    if line.strip() in ("{", "["):
        return "JSONL wants each row whole on one line; a file that is one JSON array must be named .json"
    return "mend or remove the line; it may have been cut short"


def _read_json(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each object of a JSON array with the line it starts on; objects one after another (JSONL) work too."""
    try:
        with path.open("rb") as file:
            text = "".join(_decoded_lines(file, path))
    except OSError as error:
        raise _unreadable(path, error) from None
    decoder = json.JSONDecoder()
    position = _skip_space(text, 0)
    array = text[position : position + 1] == "["
    position = _skip_space(text, position + 1) if array else position
    found, line, counted = False, 1, 0
    while position < len(text) and not (array and text[position] == "]"):
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            where = f"{path}:{error.lineno}"
            raise UserError(f"{where}: not JSON: {error.msg} at column {error.colno}", "mend the file") from None
        except (RecursionError, ValueError) as error:
            raise UserError(f"{path}:{line}: not usable JSON: {error}", "mend or remove the row") from None
        if not isinstance(value, dict):
            raise UserError(f"{path}:{line}: {_kind(value)} instead of an object", f"give {FORM}")
        found = True
        yield line, value
        position = _skip_space(text, position)
        if array and text[position : position + 1] == ",":
            position = _skip_space(text, position + 1)
        elif array and text[position : position + 1] != "]":
            break
    if array and text[position : position + 1] != "]":
        last = 1 + text.count("\n", 0, position)
        raise UserError(f"{path}:{last}: not JSON: the array is cut short or lacks a comma", "mend the file")
    if not found:
        raise UserError(f"{path} is empty", f"give {FORM}")


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _decoded_lines(file: BinaryIO, path: Path) -> Iterator[str]:
    """Each line of an open file as text, its newline included.

    Raises:
        UserError: with the line, and the byte counted from the start of the file.
    """
    number, offset = 0, 0
    while raw := file.readline(MAX_LINE + 1):
        number += 1
        if len(raw) > MAX_LINE:
            raise UserError(f"{path}:{number}: the line is longer than {MAX_LINE >> 20} MiB", f"give {FORM}")
        if number == 1 and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise UserError(f"{path} is UTF-16, not UTF-8", f"convert it: iconv -f utf-16 -t utf-8 {path}")
        if b"\0" in raw:
            raise UserError(f"{path}:{number}: a zero byte: this is no text file", f"give a text file with {FORM}")
        try:
            yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            byte = offset + error.start
            raise UserError(
                f"{path}:{number}: not UTF-8: byte {byte} of the file is 0x{raw[error.start]:02x}",
                f"if it is Latin-1, convert it: iconv -f latin1 -t utf-8 {path}",
            ) from None
        offset += len(raw)


def _unreadable(path: Path, error: OSError) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path} does not exist", "check the path to the data")
    if isinstance(error, IsADirectoryError):
        return UserError(f"{path} is a directory", "name the .jsonl file in it")
    return UserError(f"{path} cannot be read: {error.strerror}", "check the path and its permissions")


def _kind(value: Any) -> str:
    """What JSON calls a value, with its article."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")
