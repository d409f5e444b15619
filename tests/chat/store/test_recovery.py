"""A damaged database is set aside, told, and read as far as it can be."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from ftllm.chat import store as chats
from ftllm.chat.session import ChatMessage
from ftllm.chat.store import Store
from ftllm.errors import WorkError

PAGE = 4096
SESSIONS, TURNS = 20, 30
ALL = [f"message {turn} of {number} " + "x" * 100 for number in range(SESSIONS) for turn in range(TURNS)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty sessions of thirty messages, some 20 of them a page, indexed."""
    path = tmp_path_factory.mktemp("whole") / "chats.db"
    with chats.open_store(path) as store:
        for number in range(SESSIONS):
            session = chats.create_session(store, title=f"session {number}").id
            after = None
            for turn in range(TURNS):
                message = ChatMessage("assistant" if turn % 2 else "user", ALL[number * TURNS + turn])
                after = chats.add_message(store, session, message, after=after).id
        assert len(chats.search(store, "message", limit=1000)) == SESSIONS * TURNS
    return path


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(whole, tmp_path / "chats.db"))


def overwrite(path: Path, start: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(data)


def leaf_of_messages(path: Path) -> int:
    """The number of a page that holds messages' rows, from 0, and none of the others."""
    data = path.read_bytes()
    return next(
        page
        for page in range(len(data) // PAGE)
        if data[page * PAGE] == 13 and data[page * PAGE :][:PAGE].count(b"message 1 of 1") == 1
    )  # 13: a table's leaf, https://www.sqlite.org/fileformat.html


def damage_a_page_of_messages(path: Path) -> None:
    overwrite(path, leaf_of_messages(path) * PAGE, b"\xa5" * PAGE)


def damage_the_header(path: Path) -> None:
    overwrite(path, 0, b"\0" * 100)


def damage_the_first_page(path: Path) -> None:
    overwrite(path, 0, b"garbage!" * (PAGE // 8))


def cut_off_the_end(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size * 2 // 3)


def texts(store: Store) -> list[str]:
    return [node.message.content for info in chats.list_sessions(store) for node in chats.shown(store, info.id)]


@pytest.mark.parametrize(
    ("damage", "sessions", "messages"),
    [
        (damage_a_page_of_messages, SESSIONS, SESSIONS * TURNS - 40),
        (damage_the_header, SESSIONS, SESSIONS * TURNS),
        (damage_the_first_page, SESSIONS, SESSIONS * TURNS),
        (cut_off_the_end, SESSIONS, 1),
    ],
)
def test_a_damaged_database_is_set_aside_and_read_as_far_as_it_can_be(
    path: Path, damage: Callable[[Path], None], sessions: int, messages: int
) -> None:
    damage(path)
    damaged = path.read_bytes()
    with chats.open_store(path) as store:
        recovered = store.recovered
        assert recovered is not None
        assert recovered.aside.read_bytes() == damaged
        assert recovered.aside.name.startswith("chats.damaged-")
        assert str(recovered.aside) in str(recovered)
        assert recovered.sessions == sessions
        assert recovered.messages >= messages
        said = texts(store)
        assert len(said) == recovered.messages  # whatever is there is shown: no row hangs in the air
        cut = set(said) - set(ALL)
        assert len(cut) <= 1  # the one across the place where a file was cut off
        assert all(any(whole.startswith(text) for whole in ALL) for text in cut)
        assert len(chats.search(store, "message", limit=1000)) == recovered.messages
        chats.add_user(store, 1, "it goes on", after=None)
    with chats.open_store(path) as again:
        assert again.recovered is None
        assert len(chats.search(again, "it goes on")) == 1
    assert {item.name for item in path.parent.iterdir()} == {"chats.db", recovered.aside.name}


@pytest.mark.parametrize("data", [b"not a database, but a letter\n" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_what_never_was_a_database_is_kept_too(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "chats.db"
    path.write_bytes(data)
    with chats.open_store(path) as store:
        assert store.recovered is not None
        assert (store.recovered.sessions, store.recovered.messages) == (0, 0)
        assert store.recovered.aside.read_bytes() == data
        chats.create_session(store)


def test_what_was_not_moved_into_the_file_yet_is_recovered_too(path: Path, tmp_path: Path) -> None:
    """The write-ahead log of a killed process, beside a damaged file."""
    copy = tmp_path / "killed" / "chats.db"
    copy.parent.mkdir()
    with chats.open_store(path) as store:
        chats.create_session(store, title="only in the log")
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    damage_a_page_of_messages(copy)
    with chats.open_store(copy) as store:
        assert store.recovered is not None
        assert chats.find_session(store, "only in the log") is not None


def test_damage_met_while_talking_is_told_and_mended_at_the_next_opening(path: Path) -> None:
    with chats.open_store(path) as store:
        damage_a_page_of_messages(path)
        with store.reading() as db:
            db.execute("PRAGMA shrink_memory")
        with pytest.raises(WorkError, match="is damaged"):
            texts(store)
    with chats.open_store(path) as again:
        assert again.recovered is not None
        assert again.recovered.messages > SESSIONS * TURNS - 40


def test_a_full_disk_is_told_and_loses_nothing(path: Path) -> None:
    with chats.open_store(path) as store:
        with store.reading() as db:
            (pages,) = db.execute("PRAGMA page_count").fetchone()
            db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(WorkError, match="no space left"):
            chats.add_user(store, 1, "x" * 10_000, after=None)
        assert len(texts(store)) == SESSIONS * TURNS
        with store.reading() as db:
            db.execute(f"PRAGMA max_page_count = {pages + 100}")
        chats.add_user(store, 1, "x" * 10_000, after=None)
    with chats.open_store(path) as again:
        assert again.recovered is None


def test_a_file_another_program_keeps_locked_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftllm.chat.store.database.BUSY_SECONDS", 0.1)
    with chats.open_store(path) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(WorkError, match="another program keeps the chats"):
            chats.create_session(store)
        other.execute("ROLLBACK")
        other.close()
        chats.create_session(store)


def test_no_room_to_recover_leaves_the_damaged_file_where_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage_a_page_of_messages(path)
    damaged = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(WorkError, match="no space left"):
        chats.open_store(path)
    assert path.read_bytes() == damaged
