"""The file the chats live in: opened, brought up to date, and what its errors mean to a person."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ftllm.chat.store.images import tidy
from ftllm.errors import UserError, WorkError
from ftllm.values import dataclass

FILE_NAME = "chats.db"
BUSY_SECONDS = 5.0  # how long to wait for another process's write
PURGE_SECONDS = 30 * 24 * 3600.0  # a deleted session can be restored for so long
ALWAYS_CHECKED = 64 << 20  # bytes up to which every opening checks the whole file (about 0.1 s for these)

# The low byte of SQLite's result codes, https://www.sqlite.org/rescode.html
BUSY, LOCKED, READONLY, IOERR, CORRUPT, FULL, CANTOPEN, NOTADB = 5, 6, 8, 10, 11, 13, 14, 26

# One script a version, only ever appended to. Text is indexed by trigrams, which find parts of words, code and
# languages without spaces; rows are indexed when someone searches, so that writing a reply costs no indexing.
MIGRATIONS = (
    """
    CREATE TABLE sessions(
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        uid TEXT NOT NULL UNIQUE,
        title TEXT NOT NULL,
        titled INTEGER NOT NULL,         -- 1: named by the person
        system TEXT,
        model TEXT NOT NULL,
        options TEXT NOT NULL,           -- JSON: ReplyOptions
        view TEXT NOT NULL,              -- JSON: the screen's own
        created REAL NOT NULL,
        updated REAL NOT NULL,
        deleted REAL,
        first_id INTEGER                 -- the first message shown
    );
    CREATE INDEX sessions_by_update ON sessions(updated);
    CREATE TABLE messages(
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        session_id INTEGER NOT NULL REFERENCES sessions(id) ON DELETE CASCADE,
        parent_id INTEGER REFERENCES messages(id),
        next_id INTEGER,                 -- the one of its children that is shown
        role TEXT NOT NULL,
        content TEXT NOT NULL,
        thought TEXT NOT NULL,
        thought_seconds REAL NOT NULL,
        thought_tokens INTEGER NOT NULL,
        answer_tokens INTEGER NOT NULL,
        stop_reason TEXT,
        error TEXT NOT NULL,
        stats TEXT,                      -- JSON: Stats
        model TEXT NOT NULL,
        model_hash TEXT NOT NULL,
        options TEXT,                    -- JSON: ReplyOptions
        created REAL NOT NULL,
        deleted REAL,
        indexed INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX messages_by_parent ON messages(session_id, parent_id, deleted);
    CREATE INDEX messages_unindexed ON messages(id) WHERE NOT indexed;
    CREATE VIRTUAL TABLE message_index USING fts5(
        content, thought, content='messages', content_rowid='id', tokenize='trigram', detail='none'
    );
    CREATE TRIGGER message_changed AFTER UPDATE OF content, thought ON messages WHEN OLD.indexed BEGIN
        INSERT INTO message_index(message_index, rowid, content, thought)
            VALUES('delete', OLD.id, OLD.content, OLD.thought);
        UPDATE messages SET indexed = 0 WHERE id = OLD.id;
    END;
    CREATE TRIGGER message_removed AFTER DELETE ON messages WHEN OLD.indexed BEGIN
        INSERT INTO message_index(message_index, rowid, content, thought)
            VALUES('delete', OLD.id, OLD.content, OLD.thought);
    END;
    """,
    """
    ALTER TABLE sessions ADD COLUMN load TEXT NOT NULL DEFAULT '{}';  -- JSON: LoadSettings
    """,
    """
    ALTER TABLE messages ADD COLUMN images TEXT NOT NULL DEFAULT '[]';  -- JSON: files under `images`, see images.py
    """,
    """
    ALTER TABLE messages ADD COLUMN thought_end TEXT;  -- why the last thought ended; NULL: not known
    """,
    """
    ALTER TABLE messages ADD COLUMN thoughts TEXT NOT NULL DEFAULT '[]';  -- JSON: OneThought each, of several
    """,
    """
    CREATE TABLE drafts(id INTEGER PRIMARY KEY, text TEXT NOT NULL);  -- written while there was no session
    """,
    """
    ALTER TABLE drafts ADD COLUMN writer INTEGER NOT NULL DEFAULT 0;  -- the process still writing it; 0: none
    """,
)


@dataclass(frozen=True)
class Recovery:
    """What became of a damaged database: where it was put aside, and what could be read from it."""

    aside: Path
    sessions: int
    messages: int

    def __str__(self) -> str:
        return (
            f"the chats' database was damaged and is kept as {self.aside}; "
            f"recovered from it: {self.sessions} sessions, {self.messages} messages"
        )


class DamagedError(WorkError):
    """The database is damaged; opening it again sets it aside and recovers what can be read."""


class Store:
    """An open database of chats, which the functions of this package take first.

    May be used from several threads, and by several processes at once. Close it, or use it as a context manager.

    Attributes:
        path: the file; None for a store in memory.
        recovered: what was done about a damaged file when this store was opened, to be told to the person.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path | None, recovered: Recovery | None = None) -> None:
        self.path = path
        self.recovered = recovered
        self._connection = connection
        self._lock = threading.RLock()

    @property
    def images(self) -> Path | None:
        """Where the images that were shown are kept; None for a store in memory."""
        return images_of(self.path) if self.path else None

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for queries; errors of SQLite leave as the person's lines."""
        with self._lock, self._told():
            yield self._connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The connection inside a transaction, kept when the block ends well. May be nested: the outermost counts."""
        with self._lock, self._told():
            if self._connection.in_transaction:
                yield self._connection
                return
            with transaction(self._connection):
                yield self._connection

    def close(self) -> None:
        """Close the file. Closing twice is fine."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            told = error_of(error, self.path or Path(":memory:"))
            if isinstance(told, DamagedError) and self.path is not None:
                with suppress(OSError):
                    doubt_of(self.path).touch()
            raise told from error


def default_path() -> Path:
    """`chats.db` in the user's data directory."""
    from platformdirs import user_data_path

    return user_data_path("ftllm", appauthor=False) / FILE_NAME


def open_store(path: Path | None = None) -> Store:
    """Open the chats, making or updating the file where needed; a damaged one is set aside and recovered from.

    Args:
        path: None for the user's own, `default_path()`.

    Raises:
        UserError: the place cannot be written, or a newer version of this program wrote the file.
        WorkError: the disk is full, or another process keeps the file locked.
    """
    path = path or default_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # chats are the person's own; -wal and -shm follow it
    except OSError as error:
        from ftllm.files import storage_error

        raise storage_error(error, path) from error
    try:
        connection = connect(path)
        try:
            _check(connection, path)
            _purge(connection, images_of(path))
        except BaseException:
            connection.close()
            raise
        return Store(connection, path)
    except sqlite3.Error as error:
        told = error_of(error, path)
        if not isinstance(told, DamagedError):
            raise told from error
    from ftllm.chat.store.recovery import recover

    recovered = recover(path)
    return Store(connect(path), path, recovered)


def memory_store() -> Store:
    """A store that is gone when it is closed, for when there is no place to keep chats."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    prepare(connection)
    return Store(connection, None)


def connect(path: Path) -> sqlite3.Connection:
    """A connection to the file at `path`, its tables up to date.

    Raises:
        sqlite3.Error: see `error_of`.
        UserError: the file is of a newer version.
    """
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _patiently(lambda: connection.execute("PRAGMA journal_mode = WAL"))
        prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def prepare(connection: sqlite3.Connection, path: Path | None = None) -> None:
    """Set the connection up and bring its tables up to date."""
    connection.execute("PRAGMA synchronous = NORMAL")  # in WAL mode a killed process loses nothing by it
    connection.execute("PRAGMA foreign_keys = ON")
    connection.create_function("holds", 2, _holds, deterministic=True)
    version = _version(connection)
    if version > len(MIGRATIONS):
        raise UserError(f"the chats in {path} were written by a newer version of ftllm", "update ftllm")
    if version < len(MIGRATIONS):
        with transaction(connection):
            # another process may have done it while this one waited
            for number in range(_version(connection), len(MIGRATIONS)):
                for statement in statements(MIGRATIONS[number]):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All that is written inside, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk has rolled it back already
            connection.execute("ROLLBACK")
        raise


def statements(script: str) -> Iterator[str]:
    """The statements of an SQL script; `executescript` would commit the transaction it runs in."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""


def error_of(error: sqlite3.Error, path: Path) -> UserError:
    """What an error of SQLite is to the person."""
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case code if code in (CORRUPT, NOTADB):
            return DamagedError(
                f"the chats' database {path} is damaged: {error}",
                "start again: it is then set aside, and what can be read is recovered",
            )
        case code if code in (READONLY, CANTOPEN):
            return UserError(f"the chats' database {path} cannot be written: {error}", "check who owns it")
        case code if code in (BUSY, LOCKED):
            return WorkError(f"another program keeps the chats in {path} locked", "close it, and try again")
        case code if code == FULL:
            return WorkError(f"no space left while writing {path}", "free some space")
        case code if code == IOERR:
            return WorkError(f"{path} cannot be read or written: {error}", "check the disk, and the space left on it")
    return WorkError(f"the chats' database {path} failed: {error}", "this is a bug in ftllm")


def doubt_of(path: Path) -> Path:
    """A file beside the database that asks the next opening to check it whatever its size."""
    return path.with_name(path.name + ".check")


def is_sound(connection: sqlite3.Connection) -> bool:
    """Whether SQLite's own check finds nothing wrong with the file's structure."""
    try:
        return [row[0] for row in connection.execute("PRAGMA quick_check(1)")] == ["ok"]
    except sqlite3.DatabaseError:
        return False


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """Raise the error of a damaged database where a look at the whole file finds damage."""
    doubt = doubt_of(path)
    if (doubt.exists() or path.stat().st_size <= ALWAYS_CHECKED) and not is_sound(connection):
        error = sqlite3.DatabaseError("its check failed")
        error.sqlite_errorcode = CORRUPT
        raise error
    doubt.unlink(missing_ok=True)


def images_of(path: Path) -> Path:
    """The folder of the images shown in the chats of a database."""
    return path.with_name("images")


def _purge(connection: sqlite3.Connection, images: Path) -> None:
    """Remove for good what was deleted long ago."""
    old = "deleted < ?", (time.time() - PURGE_SECONDS,)
    if connection.execute(f"SELECT 1 FROM sessions WHERE {old[0]}", old[1]).fetchone():
        with transaction(connection):
            connection.execute(f"DELETE FROM sessions WHERE {old[0]}", old[1])
        tidy(images, connection)


def _patiently(work: Callable[[], object]) -> None:
    """Do `work`, which does not wait by itself for other processes' locks (changing the journal's mode does not)."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            work()
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (BUSY, LOCKED) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _holds(text: str, term: str) -> bool:
    """SQL's `holds(text, term)`: whether a text holds a term, whatever the case."""
    return term.casefold() in text.casefold()
