"""Sessions out to Markdown and JSON, and in from JSON; code out of them."""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from ftllm.chat.options import LoadSettings, ReplyOptions
from ftllm.chat.remote import is_address
from ftllm.chat.session import ChatMessage, OneThought, StopReason, ThoughtEnd, thought_title
from ftllm.chat.store.database import Store
from ftllm.chat.store.images import keep_bytes
from ftllm.chat.store.messages import Author, Node, add_message, all_nodes, show_node, shown, stats_from
from ftllm.chat.store.sessions import (
    SessionInfo,
    Settings,
    create_session,
    get_session,
    rename_session,
    settings_from_json,
    settings_to_json,
)
from ftllm.errors import UserError
from ftllm.files import read_image, write_text
from ftllm.thoughts import split

FORMAT = "ftllm-chat"
VERSION = 1
FORM = "give a file that was exported from here, or one conversation in the form ftllm trains on"
NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}


def export_session(store: Store, session: int, path: Path) -> None:
    """Write a session to a `.json` or `.md` file, whole or not at all.

    Raises:
        UserError: another suffix, or the place cannot be written.
        WorkError: the disk is full.
    """
    match path.suffix.lower():
        case ".json":
            write_text(path, json.dumps(to_json(store, session), indent=2, ensure_ascii=False) + "\n")
        case ".md" | ".markdown":
            write_text(path, to_markdown(store, session))
        case suffix:
            raise UserError(f"{path}: a session cannot be written as {suffix or 'such a file'!r}", "use .json or .md")


def save_code(path: Path, code: str) -> None:
    """Write a block of code to a file, whole or not at all; raises as `export_session`."""
    write_text(path, code.rstrip("\n") + "\n")


def to_markdown(store: Store, session: int) -> str:
    """The branch that is shown, thoughts folded; reads well where HTML's `<details>` does, and as plain text."""
    info = get_session(store, session)
    parts = [f"# {info.title or 'Untitled'}", time.strftime("%Y-%m-%d %H:%M", time.localtime(info.created))]
    if info.system:
        parts += ["## System", info.system]
    for node in shown(store, session):
        message = node.message
        parts.append(f"## {NAMES[message.role]}{_byline(node)}")
        if message.thought:
            summary = thought_title(message.thought_seconds) if message.thought_seconds else "Thought"
            parts += [f"<details>\n<summary>{summary}</summary>", message.thought, "</details>"]
        parts += [f"*(image: {Path(image).name})*" for image in message.images]
        if message.content:
            parts.append(message.content)
        if message.stop_reason not in (None, "stop"):
            parts.append(f"*({_ending(node)})*")
    return "\n\n".join(parts) + "\n"


def to_json(store: Store, session: int) -> dict[str, Any]:
    """All of a session, every branch; `from_json` reads it.

    Messages are numbered from 1, each after the one it follows (`parent`); `shown` are those of the branch shown.
    Images are in it whole, as Base64.

    Raises:
        UserError: an image that was kept is gone.
    """
    info = get_session(store, session)
    nodes = all_nodes(store, session)
    numbers = {node.id: number for number, node in enumerate(nodes, 1)}
    return {
        "format": FORMAT,
        "version": VERSION,
        "uid": info.uid,
        "title": info.title,
        "system": info.system,
        "model": info.model,
        "load": json.loads(settings_to_json(info.load)),
        "options": json.loads(settings_to_json(info.options)),
        "created": info.created,
        "updated": info.updated,
        "shown": [numbers[node.id] for node in shown(store, session)],
        "messages": [_node_to_json(node, numbers) for node in nodes],
    }


def import_session(store: Store, path: Path) -> SessionInfo:
    """Read a session from a JSON file.

    Raises:
        UserError: the file cannot be read, or is not a session; nothing is imported then.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", FORM) from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8", FORM) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}", FORM) from None
    return from_json(store, value, str(path))


def from_json(store: Store, value: object, source: str = "the session") -> SessionInfo:
    """Add a session that `to_json` wrote, or a conversation `{"messages": [{"role", "content"}, ...]}`.

    A session that is here already is added once more, as a copy. An endpoint it was held with is forgotten: opening a
    session connects to its endpoint, with the person's key, which is not for the author of a file to bring about.

    Args:
        source: where it comes from, for complaints.

    Raises:
        UserError: it is neither; nothing is added then.
    """
    if not isinstance(value, dict):
        raise UserError(f"{source} is not a session", FORM)
    if value.get("format") != FORMAT:
        return _from_conversation(store, value, source)
    if value.get("version") != VERSION:
        raise UserError(f"{source} has version {value.get('version')!r} of the format", "update ftllm")
    try:
        with store.writing() as db:
            info = create_session(
                store,
                title=_text(value, "title"),
                system=_text(value, "system") or None,
                model="" if is_address(model := _text(value, "model")) else model,
                load=_settings(LoadSettings, value.get("load") or {}),
                options=_settings(ReplyOptions, value.get("options") or {}),
            )
            free = db.execute("SELECT 1 FROM sessions WHERE uid = ?", (_text(value, "uid"),)).fetchone() is None
            ids: dict[int, int] = {}
            for number, message in enumerate(value["messages"], 1):
                parent = message.get("parent")
                node = add_message(
                    store,
                    info.id,
                    _message_from_json(message, store),
                    after=None if parent is None else ids[parent],
                    author=_author_from_json(message),
                    error=_text(message, "error"),
                    created=float(message.get("created") or time.time()),
                )
                ids[number] = node.id
            for number in value.get("shown") or []:
                show_node(store, ids[number])
            db.execute(
                "UPDATE sessions SET uid = ?, created = ?, updated = ? WHERE id = ?",
                (
                    (free and _text(value, "uid")) or uuid.uuid4().hex,
                    float(value.get("created") or time.time()),
                    float(value.get("updated") or time.time()),
                    info.id,
                ),
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{source} is not a whole session: {type(error).__name__} {error}", FORM) from error
    return get_session(store, info.id)


def _from_conversation(store: Store, value: dict[str, Any], source: str) -> SessionInfo:
    from ftllm.data.shapes import conversation_of

    messages = list(conversation_of(value, source).messages)
    system = messages.pop(0).content if messages[0].role == "system" else None
    with store.writing():
        info = create_session(store, system=system)
        last = None
        for message in messages:
            parts = split(message.content)
            is_reply = message.role == "assistant"
            turn = (
                ChatMessage(message.role, parts.answer, thought=parts.thought)
                if is_reply
                else ChatMessage(message.role, message.content)
            )
            last = add_message(store, info.id, turn, after=last).id
        if not get_session(store, info.id).title:
            rename_session(store, info.id, Path(source).stem)
    return get_session(store, info.id)


def _node_to_json(node: Node, numbers: Mapping[int, int]) -> dict[str, Any]:
    message, author = node.message, node.author
    value: dict[str, Any] = {
        "parent": None if node.parent is None else numbers.get(node.parent),
        "role": message.role,
        "content": message.content,
        "created": node.created,
    }
    if message.images:
        value["images"] = [
            {"name": path.name, "data": base64.b64encode(read_image(path)).decode("ascii")}
            for path in map(Path, message.images)
        ]
    if message.role == "assistant":
        value |= {
            "thought": message.thought,
            "thought_seconds": message.thought_seconds,
            "thought_tokens": message.thought_tokens,
            "answer_tokens": message.answer_tokens,
            "stop_reason": message.stop_reason,
            "thought_end": message.thought_end,
            "thoughts": [asdict(thought) for thought in message.thoughts],
            "error": node.error,
            "stats": None if message.stats is None else asdict(message.stats),
            "model": author.model,
            "model_hash": author.model_hash,
            "options": None if author.options is None else json.loads(settings_to_json(author.options)),
        }
    return value


def _message_from_json(value: Mapping[str, Any], store: Store) -> ChatMessage:
    if value["role"] not in NAMES:
        raise ValueError(f"the role {value['role']!r}")
    reason, end = value.get("stop_reason"), value.get("thought_end")
    if reason is not None and reason not in STOP_REASONS:
        raise ValueError(f"the stop reason {reason!r}")
    if end is not None and end not in THOUGHT_ENDS:
        raise ValueError(f"the end of a thought {end!r}")
    stats = value.get("stats")
    return ChatMessage(
        role=value["role"],
        content=_text(value, "content"),
        images=tuple(
            keep_bytes(store.images, _text(image, "name"), base64.b64decode(_text(image, "data"), validate=True))
            for image in value.get("images") or ()
        ),
        thought=_text(value, "thought"),
        thought_seconds=float(value.get("thought_seconds") or 0),
        thought_tokens=int(value.get("thought_tokens") or 0),
        answer_tokens=int(value.get("answer_tokens") or 0),
        stop_reason=reason,
        stats=None if stats is None else stats_from(json.dumps(stats)),
        thought_end=end,
        thoughts=_thoughts_from_json(value.get("thoughts") or []),
    )


def _thoughts_from_json(value: object) -> tuple[OneThought, ...]:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(tuple[OneThought, ...]).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"thoughts: {error.errors()[0]['msg']}") from None


def _author_from_json(value: Mapping[str, Any]) -> Author:
    options = value.get("options")
    return Author(
        _text(value, "model"),
        _text(value, "model_hash"),
        None if options is None else _settings(ReplyOptions, options),
    )


def _settings(kind: type[Settings], value: Mapping[str, Any]) -> Settings:
    """Settings from another's file: each of its type, unknown ones left out."""
    from pydantic import TypeAdapter

    given = json.dumps(asdict(settings_from_json(kind, json.dumps(value))))
    return TypeAdapter(kind).validate_json(given, strict=True)


def _text(value: Mapping[str, Any], key: str) -> str:
    text = value.get(key) or ""
    if not isinstance(text, str):
        raise ValueError(f"{key} is not text")
    text.encode("utf-8")  # half of a surrogate pair is no text
    return text


def _byline(node: Node) -> str:
    return f" ({Path(node.author.model).name})" if node.author.model else ""


def _ending(node: Node) -> str:
    return f"failed: {node.error}" if node.error else str(node.message.stop_reason)


def _reasons(kind: Any) -> frozenset[str]:
    """The reasons there are, out of the nested `Literal`s of a union."""
    return frozenset(reason for part in get_args(kind) for reason in get_args(part) or (part,))


STOP_REASONS, THOUGHT_ENDS = _reasons(StopReason), _reasons(ThoughtEnd)
