"""Full-text search over all sessions, with the hits in their context."""

from __future__ import annotations

import re
import sqlite3
from typing import Literal

from ftllm.chat.store.database import Store
from ftllm.values import dataclass

AROUND = 60  # characters of context on each side of a hit
TRIGRAM = 3  # characters of what the index holds
TERM = re.compile(r'"([^"]+)"?|(\S+)')


@dataclass(frozen=True)
class Hit:
    """A message, or a session's title, that holds every term.

    Attributes:
        session, title: where it is.
        node: the message, to be shown by `show_node`; None for a title.
        role: of the message, empty for a title.
        field: where in it the terms are, or the first of them.
        snippet: one line around the first term.
        marks: the terms' places in the snippet, (start, end) in characters.
        created: seconds since the epoch.
    """

    session: int
    title: str
    node: int | None
    role: str
    field: Literal["title", "content", "thought"]
    snippet: str
    marks: tuple[tuple[int, int], ...]
    created: float


def search(store: Store, query: str, *, limit: int = 50) -> list[Hit]:
    """Messages that hold every word of `query` anywhere in them, parts of words too; titles first, then the newest.

    Case does not matter. Words in double quotes stand together. Deleted sessions and messages are left out, branches
    that are not shown are not.
    """
    terms = terms_of(query)
    if not terms:
        return []
    pattern = re.compile("|".join(re.escape(term) for term in terms), re.IGNORECASE)
    _index_rest(store)
    with store.reading() as db:
        return _titles(db, terms, pattern, limit) + _messages(db, terms, pattern, limit)


def terms_of(query: str) -> list[str]:
    """The words and quoted phrases of a query.

    >>> terms_of('carry "two digits" 7')
    ['carry', 'two digits', '7']
    """
    return [
        term for quoted, word in TERM.findall(query.replace("\0", " ")) if (term := (quoted or word.strip('"')).strip())
    ]


def _index_rest(store: Store) -> None:
    """Index what was written since the last search."""
    with store.reading() as db:
        if db.execute("SELECT 1 FROM messages WHERE NOT indexed LIMIT 1").fetchone() is None:
            return
    with store.writing() as db:
        db.execute(
            "INSERT INTO message_index(rowid, content, thought)"
            " SELECT id, content, thought FROM messages WHERE NOT indexed"
        )
        db.execute("UPDATE messages SET indexed = 1 WHERE NOT indexed")


def _titles(db: sqlite3.Connection, terms: list[str], pattern: re.Pattern[str], limit: int) -> list[Hit]:
    where = " AND ".join(["deleted IS NULL", *["holds(title, ?)"] * len(terms)])
    rows = db.execute(
        f"SELECT id, title, created FROM sessions WHERE {where} ORDER BY updated DESC LIMIT ?", (*terms, limit)
    )
    hits = []
    for session, title, created in rows:
        snippet, marks = excerpt(title, pattern)
        hits.append(Hit(session, title, None, "", "title", snippet, marks, created))
    return hits


def _messages(db: sqlite3.Connection, terms: list[str], pattern: re.Pattern[str], limit: int) -> list[Hit]:
    conditions, values = ["m.deleted IS NULL", "s.deleted IS NULL"], list[object]()
    trigrams = {term[start : start + TRIGRAM] for term in terms for start in range(len(term) - TRIGRAM + 1)}
    if trigrams:
        conditions.append("m.id IN (SELECT rowid FROM message_index WHERE message_index MATCH ?)")
        values.append(" AND ".join('"' + trigram.replace('"', '""') + '"' for trigram in sorted(trigrams)))
    for term in terms:  # the index knows which trigrams a message has, not in which order
        conditions.append("(holds(m.content, ?) OR holds(m.thought, ?))")
        values += [term, term]
    rows = db.execute(
        "SELECT m.session_id, s.title, m.id, m.role, m.content, m.thought, m.created"
        f" FROM messages m JOIN sessions s ON s.id = m.session_id WHERE {' AND '.join(conditions)}"
        " ORDER BY m.id DESC LIMIT ?",
        (*values, limit),
    )
    hits = []
    for session, title, node, role, content, thought, created in rows:
        field: Literal["content", "thought"] = "thought" if not pattern.search(content) and thought else "content"
        snippet, marks = excerpt(thought if field == "thought" else content, pattern)
        hits.append(Hit(session, title, node, role, field, snippet, marks, created))
    return hits


def excerpt(text: str, pattern: re.Pattern[str]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """One line around the first match in a text, and the places of all matches in it."""
    found = pattern.search(text)
    start, end = (found.start(), found.end()) if found else (0, 0)
    first, last = max(0, start - AROUND), end + AROUND
    line = " ".join(text[first:last].split())
    snippet = f"{'…' if first else ''}{line}{'…' if last < len(text) else ''}"
    return snippet, tuple((match.start(), match.end()) for match in pattern.finditer(snippet))
