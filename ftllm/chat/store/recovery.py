"""A damaged database: set aside, and what can still be read of it copied into a new one."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from ftllm.chat.store.database import Recovery, connect, doubt_of, is_sound, transaction
from ftllm.files import PARTIAL, storage_error, sync_directory

PAGE_1 = 4096  # bytes: SQLite's default page size, which our files have
GAP = 10_000  # rows in a row that cannot be read before giving up; the largest id may be unreadable too
COMPANIONS = ("", "-wal", "-shm")


def recover(path: Path) -> Recovery | None:
    """Rename the damaged file, and make a new one at `path` of what can be read.

    The new file appears whole or not at all; the damaged one keeps its `-wal`, so that other tools can have a go.

    Returns:
        what was done; None when another process has done it meanwhile.

    Raises:
        WorkError: the disk is full.
        UserError: the directory cannot be written.
    """
    try:
        with _alone(path):
            if _sound_now(path):
                return None
            stem = f"{path.stem}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
            aside = path.with_name(f"{stem}{path.suffix}")
            partial = path.with_name(path.name + PARTIAL)
            for suffix in COMPANIONS:
                Path(f"{partial}{suffix}").unlink(missing_ok=True)
            os.close(os.open(partial, os.O_RDWR | os.O_CREAT, 0o600))
            sessions, messages = _copy(path, partial)
            for suffix in COMPANIONS:
                with suppress(FileNotFoundError):
                    Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
            partial.rename(path)
            sync_directory(path.parent)
            doubt_of(path).unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, path) from error
    return Recovery(aside, sessions, messages)


def _copy(damaged: Path, new: Path) -> tuple[int, int]:
    """Copy all readable rows; how many sessions and messages there are then."""
    with closing(connect(new)) as target, _readable(damaged) as source:
        target.execute("PRAGMA foreign_keys = OFF")
        with transaction(target):
            for table in ("sessions", "messages"):
                known = {row[1] for row in target.execute(f"PRAGMA table_info({table})")}
                for row in _rows(source, table):
                    values = {name: row[name] for name in row.keys() if name in known}  # noqa: SIM118  a Row
                    values |= {"indexed": 0} if table == "messages" else {}
                    marks = ", ".join("?" * len(values))
                    with suppress(sqlite3.IntegrityError):  # a value the damage has made NULL
                        target.execute(
                            f"INSERT INTO {table}({', '.join(values)}) VALUES({marks})", tuple(values.values())
                        )
            _mend(target)
        target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return _count(target, "sessions"), _count(target, "messages")


def _count(target: sqlite3.Connection, table: str) -> int:
    return int(target.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def _mend(target: sqlite3.Connection) -> None:
    """Make a tree again of rows whose neighbours are lost."""
    target.execute(
        "INSERT INTO sessions(id, uid, title, titled, model, options, view, created, updated)"
        " SELECT session_id, lower(hex(randomblob(16))), 'Recovered ' || session_id, 1, '', '{}', '{}',"
        " min(created), max(created) FROM messages WHERE session_id NOT IN (SELECT id FROM sessions)"
        " GROUP BY session_id"
    )
    # what answered a lost message goes on from the message before it, as far as their numbers tell
    target.execute(
        "UPDATE messages SET parent_id = (SELECT max(b.id) FROM messages b"
        "  WHERE b.session_id = messages.session_id AND b.id < messages.id)"
        " WHERE parent_id NOT IN (SELECT id FROM messages)"
    )
    target.execute(
        "UPDATE messages SET next_id = (SELECT max(c.id) FROM messages c"
        "  WHERE c.session_id = messages.session_id AND c.parent_id = messages.id AND c.deleted IS NULL)"
        " WHERE next_id IS NULL OR next_id NOT IN (SELECT id FROM messages)"
    )
    target.execute(
        "UPDATE sessions SET first_id = (SELECT max(m.id) FROM messages m"
        "  WHERE m.session_id = sessions.id AND m.parent_id IS NULL AND m.deleted IS NULL)"
        " WHERE first_id IS NULL OR first_id NOT IN (SELECT id FROM messages)"
    )


def _rows(source: sqlite3.Connection, table: str) -> Iterator[sqlite3.Row]:
    """Every row that can be read, found by its number: a damaged page costs the rows on it and no others."""
    last, gap, number = _last(source, table), 0, 0
    while number < last or gap < GAP:
        number += 1
        try:
            row = source.execute(f"SELECT * FROM {table} WHERE id = ?", (number,)).fetchone()
        except sqlite3.Error:
            row = None
        gap = 0 if row is not None else gap + 1
        if row is not None and row["id"] == number:
            yield row


def _last(source: sqlite3.Connection, table: str) -> int:
    for query in (f"SELECT seq FROM sqlite_sequence WHERE name = '{table}'", f"SELECT max(id) FROM {table}"):
        with suppress(sqlite3.Error, TypeError, ValueError):
            return int(source.execute(query).fetchone()[0])
    return 0


@contextmanager
def _readable(damaged: Path) -> Iterator[sqlite3.Connection]:
    """The damaged database, opened on a copy; with a new first page where its own does not open."""
    with tempfile.TemporaryDirectory(dir=damaged.parent, prefix="recovering-") as directory:
        copy = Path(directory) / damaged.name
        for suffix in COMPANIONS[:2]:
            with suppress(FileNotFoundError):
                shutil.copyfile(f"{damaged}{suffix}", f"{copy}{suffix}")
        connection = _open(copy)
        if connection is None:
            _renew_first_page(copy, Path(directory) / "new.db")
            connection = _open(copy)
        with closing(connection or sqlite3.connect(":memory:")) as source:
            source.row_factory = sqlite3.Row
            source.text_factory = lambda data: data.decode("utf-8", "replace").rstrip("\0")  # a page cut in two
            yield source


def _open(path: Path) -> sqlite3.Connection | None:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error:
        tables = set()
    if {"sessions", "messages"} <= tables:
        return connection
    connection.close()
    return None


def _renew_first_page(path: Path, new: Path) -> None:
    """Give a database the first page of a new one: header and table of contents.

    Tables are made in one order at one size, so their roots lie on the same pages in every file of ours.
    """
    with closing(connect(new)) as fresh:
        fresh.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file, new.open("rb") as source:
        file.write(source.read(PAGE_1))
        # of no use with a size and a change counter that are not its own: zero makes SQLite take the file's
        file.seek(28)
        file.write(bytes(4))


def _sound_now(path: Path) -> bool:
    """Whether the file is in order after all: another process has recovered it while this one waited."""
    try:
        with closing(connect(path)) as connection:
            return is_sound(connection)
    except sqlite3.Error:
        return False


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold other processes off from recovering the same file."""
    lock = path.with_name(path.name + ".recovering")
    with lock.open("a") as file:
        with suppress(ImportError):  # Windows
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    lock.unlink(missing_ok=True)
