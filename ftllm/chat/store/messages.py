"""A session's tree of messages: what is shown of it, and how it grows."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ftllm.chat.events import Stats
from ftllm.chat.options import ReplyOptions
from ftllm.chat.session import ChatMessage, OneThought
from ftllm.chat.store.database import Store
from ftllm.chat.store.images import from_row, keep, to_row
from ftllm.chat.store.sessions import settings_from_json, settings_to_json, title_of
from ftllm.errors import UserError
from ftllm.values import dataclass

_SIBLINGS = (
    "SELECT count(*) FROM messages b WHERE b.session_id = m.session_id AND b.parent_id IS m.parent_id"
    " AND b.deleted IS NULL"
)
_COLUMNS = f"m.*, ({_SIBLINGS}) AS branches, ({_SIBLINGS} AND b.id <= m.id) AS branch"
_SHOWN = """
    WITH RECURSIVE shown(id, depth) AS (
        SELECT first_id, 1 FROM sessions WHERE id = ?
        UNION ALL
        SELECT m.next_id, depth + 1 FROM shown JOIN messages m ON m.id = shown.id WHERE depth < 1000000
    )
"""
_BELOW = """
    WITH RECURSIVE below(id) AS (
        SELECT ?
        UNION
        SELECT m.id FROM below JOIN messages p ON p.id = below.id
            JOIN messages m ON m.session_id = p.session_id AND m.parent_id = p.id
    )
"""


@dataclass(frozen=True)
class Author:
    """Who makes a reply, and how.

    Attributes:
        model: a path, or an endpoint and the model's name there.
        model_hash: of the file, adapters included; empty for endpoints.
        options: how it is made.
    """

    model: str = ""
    model_hash: str = ""
    options: ReplyOptions | None = None


@dataclass(frozen=True)
class Node:
    """One message of the tree.

    Attributes:
        id: its number.
        session: its session's.
        parent: the message it follows; None for a first one.
        message: what was said. A reply that never came to its end has the stop reason `interrupted`.
        author: of a reply.
        error: why a reply failed.
        branch, branches: `< 2/3 >`: its place among the messages that follow the same one, from 1, and their number.
        created: seconds since the epoch.
    """

    id: int
    session: int
    parent: int | None
    message: ChatMessage
    author: Author
    error: str
    branch: int
    branches: int
    created: float


def shown(store: Store, session: int) -> list[Node]:
    """The messages of the branch that is shown, oldest first."""
    with store.reading() as db:
        query = f"{_SHOWN} SELECT {_COLUMNS} FROM shown JOIN messages m ON m.id = shown.id ORDER BY depth"
        return _nodes(store, db.execute(query, (session,)))


def get_node(store: Store, node: int) -> Node:
    """A message by its number, a deleted one too.

    Raises:
        UserError: there is none.
    """
    with store.reading() as db:
        found = _nodes(store, db.execute(f"SELECT {_COLUMNS} FROM messages m WHERE m.id = ?", (node,)))
    if not found:
        raise UserError(f"there is no message {node}")
    return found[0]


def all_nodes(store: Store, session: int) -> list[Node]:
    """Every message of a session that is not deleted, each after the one it follows."""
    with store.reading() as db:
        query = f"SELECT {_COLUMNS} FROM messages m WHERE m.session_id = ? AND m.deleted IS NULL ORDER BY m.id"
        return _nodes(store, db.execute(query, (session,)))


def branches_of(store: Store, node: int) -> list[Node]:
    """The messages that follow the same one as `node`, itself included, oldest first."""
    with store.reading() as db:
        query = (
            f"SELECT {_COLUMNS} FROM messages m JOIN messages n ON n.id = ? AND m.session_id = n.session_id"
            " AND m.parent_id IS n.parent_id WHERE m.deleted IS NULL ORDER BY m.id"
        )
        return _nodes(store, db.execute(query, (node,)))


def add_message(
    store: Store,
    session: int,
    message: ChatMessage,
    *,
    after: int | None,
    author: Author | None = None,
    error: str = "",
    created: float | None = None,
) -> Node:
    """Add a message after another one (None: as a first one), and show it.

    Where `after` is followed by something already, this begins a branch. Say what `after` is from what the person
    saw: another process may have gone on with the session meanwhile. Its images are copied.

    Raises:
        UserError: an image cannot be read.
    """
    author = author or Author()
    now = time.time()
    with store.writing() as db:
        cursor = db.execute(
            "INSERT INTO messages(session_id, parent_id, role, content, thought, thought_seconds, thought_tokens,"
            " answer_tokens, stop_reason, thought_end, thoughts, error, stats, model, model_hash, options, created,"
            " images) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                session,
                after,
                message.role,
                *_values(message),
                error,
                _stats_to_json(message.stats),
                author.model,
                author.model_hash,
                settings_to_json(author.options) if author.options else None,
                now if created is None else created,
                to_row(store.images, keep(store.images, message.images)),
            ),
        )
        number = int(cursor.lastrowid or 0)
        _point(db, session, after, number)
        db.execute("UPDATE sessions SET updated = ? WHERE id = ?", (now, session))
        if message.role == "user":
            db.execute(
                "UPDATE sessions SET title = ? WHERE id = ? AND title = ''", (title_of(message.content), session)
            )
        return get_node(store, number)


def add_user(store: Store, session: int, text: str, *, after: int | None, images: Sequence[str] = ()) -> Node:
    """Add the person's turn, and show it; as `add_message`."""
    return add_message(store, session, ChatMessage("user", text, images=tuple(images)), after=after)


def edit(store: Store, node: int, text: str) -> Node:
    """Another version of a message, as a branch beside it, and shown; what followed the old one stays with it."""
    old = get_node(store, node)
    changed = ChatMessage(old.message.role, text, thought=old.message.thought, images=old.message.images)
    return add_message(store, old.session, changed, after=old.parent)


def update_message(store: Store, node: int, message: ChatMessage, error: str = "") -> None:
    """Write what a reply has come to; its place in the tree stays."""
    with store.writing() as db:
        db.execute(
            "UPDATE messages SET content = ?, thought = ?, thought_seconds = ?, thought_tokens = ?, answer_tokens = ?,"
            " stop_reason = ?, thought_end = ?, thoughts = ?, error = ?, stats = ? WHERE id = ?",
            (*_values(message), error, _stats_to_json(message.stats), node),
        )
        db.execute(
            "UPDATE sessions SET updated = ? WHERE id = (SELECT session_id FROM messages WHERE id = ?)",
            (time.time(), node),
        )


def show_node(store: Store, node: int) -> None:
    """Show the branch that a message is on, and below it what was shown there last."""
    with store.writing() as db:
        number: int | None = node
        while number is not None:
            session, parent = db.execute(
                "SELECT session_id, parent_id FROM messages WHERE id = ?", (number,)
            ).fetchone() or (None, None)
            if session is None:
                raise UserError(f"there is no message {number}")
            _point(db, session, parent, number)
            number = parent


def step_branch(store: Store, node: int, step: int) -> Node:
    """Show the branch `step` further, going round at the ends: `>` is 1, `<` is -1. Its message there."""
    with store.writing():
        siblings = branches_of(store, node)
        here = next((index for index, item in enumerate(siblings) if item.id == node), 0)
        there = siblings[(here + step) % len(siblings)] if siblings else get_node(store, node)
        show_node(store, there.id)
        return there


def delete_message(store: Store, node: int) -> None:
    """Take a message out, with all that follows it; a branch beside it is shown. `restore_message` undoes it."""
    with store.writing() as db:
        item = get_node(store, node)
        beside = [other.id for other in branches_of(store, node) if other.id != node]
        before = [other for other in beside if other < node]
        db.execute(
            f"{_BELOW} UPDATE messages SET deleted = ? WHERE id IN below AND deleted IS NULL", (node, time.time())
        )
        _point(db, item.session, item.parent, before[-1] if before else beside[0] if beside else None)


def restore_message(store: Store, node: int) -> None:
    """Undo `delete_message`, and show the message again; what had been deleted before it stays so."""
    with store.writing() as db:
        same = "deleted = (SELECT deleted FROM messages WHERE id = ?)"
        db.execute(f"{_BELOW} UPDATE messages SET deleted = NULL WHERE id IN below AND {same}", (node, node))
        show_node(store, node)


def _point(db: sqlite3.Connection, session: int, parent: int | None, child: int | None) -> None:
    """Make `child` the one that is shown of those that follow `parent`."""
    if parent is None:
        db.execute("UPDATE sessions SET first_id = ? WHERE id = ?", (child, session))
    else:
        db.execute("UPDATE messages SET next_id = ? WHERE id = ? AND session_id = ?", (child, parent, session))


def _values(message: ChatMessage) -> tuple[object, ...]:
    return (
        message.content,
        message.thought,
        message.thought_seconds,
        message.thought_tokens,
        message.answer_tokens,
        message.stop_reason,
        message.thought_end,
        json.dumps([asdict(thought) for thought in message.thoughts]),
    )


def _stats_to_json(stats: Stats | None) -> str | None:
    return None if stats is None else json.dumps(asdict(stats))


def _nodes(store: Store, cursor: sqlite3.Cursor) -> list[Node]:
    names = [column[0] for column in cursor.description]
    return [_node(dict(zip(names, row, strict=True)), store.images) for row in cursor]


def _node(row: dict[str, Any], images: Path | None) -> Node:
    return Node(
        id=row["id"],
        session=row["session_id"],
        parent=row["parent_id"],
        message=ChatMessage(
            role=row["role"],
            content=row["content"],
            images=from_row(images, row["images"]),
            thought=row["thought"],
            thought_seconds=row["thought_seconds"],
            thought_tokens=row["thought_tokens"],
            answer_tokens=row["answer_tokens"],
            stop_reason=row["stop_reason"],
            stats=stats_from(row["stats"]),
            thought_end=row["thought_end"],
            thoughts=_thoughts_from(row["thoughts"]),
        ),
        author=Author(
            row["model"],
            row["model_hash"],
            settings_from_json(ReplyOptions, row["options"]) if row["options"] else None,
        ),
        error=row["error"],
        branch=row["branch"],
        branches=row["branches"],
        created=row["created"],
    )


def _thoughts_from(text: str) -> tuple[OneThought, ...]:
    """The thoughts of a row; none where damage has cut them off: the message has them all in one too."""
    try:
        return tuple(OneThought(**thought) for thought in json.loads(text))
    except (TypeError, ValueError):
        return ()


def stats_from(text: str | None) -> Stats | None:
    """The figures of a row, None where another version wrote other ones."""
    try:
        return None if text is None else Stats(**json.loads(text))
    except TypeError:
        return None


def last_of(nodes: Sequence[Node]) -> int | None:
    """The number of the last of the messages shown, to add another `after` it; None when there is none."""
    return nodes[-1].id if nodes else None
