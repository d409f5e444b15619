"""Sessions: made, listed, found, renamed, deleted and restored."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

from ftllm.chat.options import LoadSettings, ReplyOptions
from ftllm.chat.store.database import Store
from ftllm.chat.store.images import tidy
from ftllm.errors import UserError
from ftllm.values import dataclass

Settings = TypeVar("Settings", LoadSettings, ReplyOptions)
TITLE_LENGTH = 60  # characters of a title taken from the first message
_COLUMNS = (
    "s.*, (SELECT count(*) FROM messages m WHERE m.session_id = s.id AND m.deleted IS NULL) AS messages FROM sessions s"
)


@dataclass(frozen=True)
class SessionInfo:
    """One session, as the sidebar shows it.

    Attributes:
        id: its number here; never used again, a deleted session's neither.
        uid: its name everywhere: stays with it through export and import, good for file names.
        title: the person's, else the beginning of the first message; empty before there is one.
        system: the system prompt.
        model: a path or an endpoint: what was talked to last.
        load: how the model was loaded, its adapters among it.
        options: how replies were made last.
        view: what the screen wants to find again (its scroll place).
        created, updated: seconds since the epoch.
        messages: on all branches.
    """

    id: int
    uid: str
    title: str
    system: str | None
    model: str
    load: LoadSettings
    options: ReplyOptions
    view: Mapping[str, Any]
    created: float
    updated: float
    messages: int


def create_session(
    store: Store,
    *,
    title: str = "",
    system: str | None = None,
    model: str = "",
    load: LoadSettings | None = None,
    options: ReplyOptions | None = None,
) -> SessionInfo:
    """Begin a session. Without a title it takes one from its first message.

    Make it with the first message rather than before: a session without messages is listed too.
    """
    now = time.time()
    with store.writing() as db:
        row = db.execute(
            "INSERT INTO sessions(uid, title, titled, system, model, load, options, view, created, updated)"
            " VALUES(?, ?, ?, ?, ?, ?, ?, '{}', ?, ?)",
            (
                uuid.uuid4().hex,
                title,
                bool(title),
                system,
                model,
                settings_to_json(load or LoadSettings()),
                settings_to_json(options or ReplyOptions()),
                now,
                now,
            ),
        )
        return get_session(store, int(row.lastrowid or 0))


def get_session(store: Store, session: int) -> SessionInfo:
    """A session by its number, a deleted one too.

    Raises:
        UserError: there is none.
    """
    with store.reading() as db:
        row = _row(db, f"SELECT {_COLUMNS} WHERE s.id = ?", session)
    if row is None:
        raise UserError(f"there is no session {session}", "`ftllm sessions` lists them")
    return _info(row)


def list_sessions(store: Store, *, deleted: bool = False, limit: int = -1) -> list[SessionInfo]:
    """The sessions that are not deleted (or those that are), the one touched last first."""
    with store.reading() as db:
        state = "IS NOT NULL" if deleted else "IS NULL"
        cursor = db.execute(
            f"SELECT {_COLUMNS} WHERE s.deleted {state} ORDER BY s.updated DESC, s.id DESC LIMIT ?", (limit,)
        )
        return [_info(_named(cursor, row)) for row in cursor]


def find_session(store: Store, name: str, *, deleted: bool = False) -> SessionInfo | None:
    """The session of that title, the one touched last where several have it; else the one of that number, or uid.

    A title's case counts only where two differ by nothing else.
    """
    listed = list_sessions(store, deleted=deleted)
    found = [item for item in listed if item.title.casefold() == name.casefold()]
    found.sort(key=lambda item: item.title != name)
    found += [item for item in listed if name in (str(item.id), item.uid)]
    return found[0] if found else None


def rename_session(store: Store, session: int, title: str) -> None:
    """Give a session the person's title; an empty one takes the first message's again."""
    with store.writing() as db:
        db.execute("UPDATE sessions SET title = ?, titled = ? WHERE id = ?", (title, bool(title), session))
        if not title:
            first = "SELECT m.content FROM messages m JOIN sessions s ON m.id = s.first_id WHERE s.id = ?"
            row = db.execute(first, (session,)).fetchone()
            if row is not None:
                db.execute("UPDATE sessions SET title = ? WHERE id = ?", (title_of(row[0]), session))


def change_session(
    store: Store,
    session: int,
    *,
    model: str | None = None,
    load: LoadSettings | None = None,
    options: ReplyOptions | None = None,
    view: Mapping[str, Any] | None = None,
) -> None:
    """Remember how a session goes on: what is not None. None of this counts as touching it."""
    changes = {
        "model": model,
        "load": None if load is None else settings_to_json(load),
        "options": None if options is None else settings_to_json(options),
        "view": None if view is None else json.dumps(dict(view)),
    }
    with store.writing() as db:
        for column, value in changes.items():
            if value is not None:
                db.execute(f"UPDATE sessions SET {column} = ? WHERE id = ?", (value, session))


def set_system(store: Store, session: int, system: str | None) -> None:
    """Change the system prompt."""
    with store.writing() as db:
        db.execute("UPDATE sessions SET system = ? WHERE id = ?", (system or None, session))


def delete_session(store: Store, session: int) -> None:
    """Take a session out of the list; `restore_session` undoes it for 30 days."""
    with store.writing() as db:
        db.execute("UPDATE sessions SET deleted = ? WHERE id = ?", (time.time(), session))


def restore_session(store: Store, session: int) -> None:
    """Undo `delete_session`."""
    with store.writing() as db:
        db.execute("UPDATE sessions SET deleted = NULL WHERE id = ?", (session,))


def erase_session(store: Store, session: int) -> None:
    """Remove a session for good, at once, with its images."""
    with store.writing() as db:
        shown = [row[0] for row in db.execute("SELECT images FROM messages WHERE session_id = ?", (session,))]
        db.execute("DELETE FROM sessions WHERE id = ?", (session,))
    with store.reading() as db:
        if store.images is not None:
            tidy(store.images, db, shown)


def title_of(text: str) -> str:
    """A title from a message: the beginning of its first line.

    >>> title_of("What is 2 + 2?\\nBe brief.")
    'What is 2 + 2?'
    """
    line = " ".join(next((line for line in text.splitlines() if line.strip()), "").split())
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1].rstrip() + "…"


def settings_to_json(settings: LoadSettings | ReplyOptions) -> str:
    """Only what differs from the defaults, so that a changed default reaches old sessions."""
    defaults = asdict(type(settings)())
    return json.dumps({name: value for name, value in asdict(settings).items() if value != defaults[name]})


def settings_from_json(kind: type[Settings], text: str | None) -> Settings:
    """The settings of a row; what this version does not know is left out."""
    known = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in json.loads(text or "{}").items() if name in known})


def _row(db: sqlite3.Connection, query: str, *values: object) -> dict[str, Any] | None:
    cursor = db.execute(query, values)
    row = cursor.fetchone()
    return None if row is None else _named(cursor, row)


def _named(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> dict[str, Any]:
    return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}


def _info(row: dict[str, Any]) -> SessionInfo:
    return SessionInfo(
        id=row["id"],
        uid=row["uid"],
        title=row["title"],
        system=row["system"],
        model=row["model"],
        load=settings_from_json(LoadSettings, row["load"]),
        options=settings_from_json(ReplyOptions, row["options"]),
        view=json.loads(row["view"]),
        created=row["created"],
        updated=row["updated"],
        messages=row["messages"],
    )
