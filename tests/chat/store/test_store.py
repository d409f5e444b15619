"""Sessions and their trees of messages: what is kept, what is shown, and what undoing brings back."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftllm.chat import store as chats
from ftllm.chat.options import LoadSettings, ReplyOptions
from ftllm.chat.session import ChatMessage, context_of
from ftllm.chat.store import Author, Node, Store, database
from ftllm.errors import UserError

HELLO = ChatMessage(
    "assistant", "Hello!", thought="A greeting.", thought_seconds=1.5, thought_tokens=4, thought_end="budget"
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with chats.open_store(tmp_path / "data" / "chats.db") as store:
        yield store


def say(store: Store, session: int, *turns: str, after: int | None = None) -> list[Node]:
    """Add turns, the person's and the model's by turns."""
    nodes = []
    for number, text in enumerate(turns):
        message = ChatMessage("assistant" if number % 2 else "user", text)
        nodes.append(chats.add_message(store, session, message, after=after))
        after = nodes[-1].id
    return nodes


def texts(store: Store, session: int) -> list[str]:
    return [node.message.content for node in chats.shown(store, session)]


def places(store: Store, session: int) -> list[tuple[int, int]]:
    return [(node.branch, node.branches) for node in chats.shown(store, session)]


def test_what_is_said_is_there_when_opened_again(store: Store, tmp_path: Path) -> None:
    options = ReplyOptions(temperature=0.0, think_budget=64)
    session = chats.create_session(store, system="Be brief.", model="nano.gguf", options=options)
    asked = chats.add_user(store, session.id, "  Hi there\nsecond line", after=None)
    chats.add_message(store, session.id, HELLO, after=asked.id, author=Author("nano.gguf", "abc", options))
    store.close()
    with chats.open_store(tmp_path / "data" / "chats.db") as again:
        (info,) = chats.list_sessions(again)
        assert (info.title, info.system, info.model, info.options) == ("Hi there", "Be brief.", "nano.gguf", options)
        assert info.messages == 2
        user, reply = chats.shown(again, info.id)
        assert (user.message.role, user.parent) == ("user", None)
        assert reply.message == HELLO
        assert (reply.parent, reply.author) == (user.id, Author("nano.gguf", "abc", options))
        assert context_of(info.system, [user.message, reply.message])[-1] == {"role": "assistant", "content": "Hello!"}


def test_chats_are_for_their_owner_only(store: Store) -> None:
    assert store.path is not None
    chats.create_session(store)
    for path in store.path.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700


def test_regenerating_makes_a_branch_and_arrows_go_round(store: Store) -> None:
    session = chats.create_session(store).id
    user, first = say(store, session, "q", "one")
    for text in ("two", "three"):
        chats.add_message(store, session, ChatMessage("assistant", text), after=first.parent)
    assert texts(store, session) == ["q", "three"]
    assert places(store, session) == [(1, 1), (3, 3)]
    here = chats.shown(store, session)[-1]
    seen = []
    for step in (1, 1, -1, -1):
        here = chats.step_branch(store, here.id, step)
        seen.append(texts(store, session)[-1])
    assert seen == ["one", "two", "one", "three"]
    assert [node.message.content for node in chats.branches_of(store, first.id)] == ["one", "two", "three"]
    assert chats.last_of(chats.shown(store, session)) == here.id
    assert user.branches == 1


def test_an_edited_message_leaves_the_old_one_and_what_followed_it(store: Store) -> None:
    session = chats.create_session(store).id
    nodes = say(store, session, "a", "b", "c", "d")
    edited = chats.edit(store, nodes[2].id, "C")
    say(store, session, "e", after=edited.id)
    assert texts(store, session) == ["a", "b", "C", "e"]
    assert places(store, session) == [(1, 1), (1, 1), (2, 2), (1, 1)]
    chats.step_branch(store, edited.id, -1)
    assert texts(store, session) == ["a", "b", "c", "d"]
    first = chats.edit(store, nodes[0].id, "A")
    assert texts(store, session) == ["A"]
    chats.step_branch(store, first.id, -1)
    assert texts(store, session) == ["a", "b", "c", "d"]  # each branch remembers what was shown below it
    chats.show_node(store, edited.id)
    assert texts(store, session) == ["a", "b", "C", "e"]


def test_deleting_a_message_takes_what_follows_and_is_undone(store: Store) -> None:
    session = chats.create_session(store).id
    nodes = say(store, session, "a", "b", "c", "d")
    other = chats.edit(store, nodes[1].id, "B")
    chats.show_node(store, nodes[3].id)
    chats.delete_message(store, nodes[3].id)
    assert texts(store, session) == ["a", "b", "c"]
    chats.delete_message(store, nodes[1].id)
    assert texts(store, session) == ["a", "B"]
    assert places(store, session)[1] == (1, 1)
    assert chats.get_session(store, session).messages == 2
    chats.restore_message(store, nodes[1].id)
    assert texts(store, session) == ["a", "b", "c"]  # "d" was deleted before, and stays so
    assert places(store, session)[1] == (1, 2)
    chats.restore_message(store, nodes[3].id)
    assert texts(store, session) == ["a", "b", "c", "d"]
    chats.delete_message(store, nodes[0].id)
    assert texts(store, session) == []
    chats.restore_message(store, nodes[0].id)
    assert texts(store, session) == ["a", "b", "c", "d"]
    assert other.branches == 2


def test_sessions_are_listed_renamed_deleted_and_restored(store: Store) -> None:
    first, second = (chats.create_session(store).id for _ in range(2))
    say(store, first, "first question " + "x" * 100)
    say(store, second, "second question")
    say(store, first, "more", after=None)
    assert [info.id for info in chats.list_sessions(store)] == [first, second]
    title = chats.list_sessions(store)[0].title
    assert title == "first question " + "x" * 44 + "…"
    assert len(title) == 60
    chats.rename_session(store, first, "Mine")
    say(store, first, "does not change the title")
    assert chats.list_sessions(store)[0].title == "Mine"
    chats.rename_session(store, second, "")
    assert chats.list_sessions(store)[1].title == "second question"
    chats.delete_session(store, first)
    assert [info.id for info in chats.list_sessions(store)] == [second]
    assert [info.id for info in chats.list_sessions(store, deleted=True)] == [first]
    chats.restore_session(store, first)
    assert [info.id for info in chats.list_sessions(store)] == [first, second]
    chats.erase_session(store, first)
    with pytest.raises(UserError, match="no session"):
        chats.get_session(store, first)
    assert chats.create_session(store).id > second  # a number is never used again


def test_a_session_is_found_by_title_number_or_uid(store: Store) -> None:
    old, new = (chats.create_session(store, title="Work") for _ in range(2))
    small = chats.create_session(store, title="work")
    numbered = chats.create_session(store, title=str(old.id))
    assert [chats.find_session(store, name) for name in ("Work", "work", "WORK", "nowhere")] == [
        new,
        small,
        small,
        None,
    ]
    assert chats.find_session(store, str(new.id)) == new
    assert chats.find_session(store, str(old.id)) == numbered
    assert chats.find_session(store, old.uid) == old
    chats.delete_session(store, new.id)
    assert chats.find_session(store, "Work") == old


def test_settings_and_scroll_place_are_kept_without_moving_the_session_up(store: Store) -> None:
    first, second = (chats.create_session(store).id for _ in range(2))
    chats.change_session(store, first, model="http://host/v1 gemma", options=ReplyOptions(top_k=3), view={"scroll": 7})
    chats.set_system(store, first, "Rhyme.")
    info = chats.get_session(store, first)
    assert (info.model, info.options.top_k, info.view, info.system) == (
        "http://host/v1 gemma",
        3,
        {"scroll": 7},
        "Rhyme.",
    )
    assert [info.id for info in chats.list_sessions(store)] == [second, first]


def test_what_was_deleted_a_month_ago_is_removed_at_opening(store: Store, tmp_path: Path) -> None:
    old, recent = (chats.create_session(store).id for _ in range(2))
    say(store, old, *map(str, range(1200)))  # deeper than SQLite's triggers may nest
    for session, days in ((old, 31), (recent, 29)):
        chats.delete_session(store, session)
        with store.writing() as db:
            db.execute("UPDATE sessions SET deleted = ? WHERE id = ?", (time.time() - days * 86400, session))
    with chats.open_store(tmp_path / "data" / "chats.db") as again:
        assert [info.id for info in chats.list_sessions(again, deleted=True)] == [recent]
        with again.reading() as db:
            assert db.execute("SELECT count(*) FROM messages").fetchone() == (0,)


def test_drafts_are_taken_once_the_last_one_first(store: Store) -> None:
    chats.keep_draft(store, "one")
    chats.keep_draft(store, "two\nlines")
    assert [chats.take_draft(store) for _ in range(3)] == ["two\nlines", "one", ""]


def test_a_draft_still_being_written_is_given_to_no_other_while_its_program_runs(store: Store) -> None:
    chats.keep_draft(store, "left before")
    chats.keep_draft(store, "on", writing=True)
    chats.keep_draft(store, "one", writing=True)  # instead of the one before
    assert [chats.take_draft(store) for _ in range(2)] == ["left before", ""]
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    with store.writing() as db:
        db.execute("UPDATE drafts SET writer = ?", (ended.pid,))
    assert [chats.take_draft(store) for _ in range(2)] == ["one", ""]
    chats.keep_draft(store, "two", writing=True)
    chats.keep_draft(store, "two, left")
    assert [chats.take_draft(store) for _ in range(2)] == ["two, left", ""]
    chats.keep_draft(store, "three", writing=True)
    chats.keep_draft(store, " \n", writing=True)
    with store.reading() as db:
        assert db.execute("SELECT count(*) FROM drafts").fetchone() == (0,)


def test_a_newer_versions_file_is_left_alone(store: Store, tmp_path: Path) -> None:
    with store.writing() as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match="newer version"):
        chats.open_store(tmp_path / "data" / "chats.db")
    assert len(list((tmp_path / "data").glob("*.db"))) == 1


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write"):
        chats.open_store(tmp_path / "data" / "chats.db")


def test_a_file_where_the_directory_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        chats.open_store(tmp_path / "data" / "chats.db")


def test_a_store_in_memory_does_all_the_same() -> None:
    with chats.memory_store() as store:
        session = chats.create_session(store).id
        say(store, session, "a", "b")
        assert texts(store, session) == ["a", "b"]
        assert len(chats.search(store, "b")) == 1


def test_an_older_versions_file_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    old = sqlite3.connect(path)
    for statement in database.statements(database.MIGRATIONS[0]):
        old.execute(statement)
    old.execute("PRAGMA user_version = 1")
    old.execute(
        "INSERT INTO sessions(uid, title, titled, model, options, view, created, updated, first_id)"
        " VALUES('u', 'old', 1, 'm', '{\"top_k\": 3, \"unheard_of\": 1}', '{}', 1.0, 2.0, 1)"
    )
    old.execute(
        "INSERT INTO messages(session_id, role, content, thought, thought_seconds, thought_tokens, answer_tokens,"
        " error, model, model_hash, created) VALUES(1, 'user', 'hello', '', 0, 0, 0, '', '', '', 1.0)"
    )
    old.commit()
    old.close()
    with chats.open_store(path) as store:
        (info,) = chats.list_sessions(store)
        assert (info.title, info.options, info.load) == ("old", ReplyOptions(top_k=3), LoadSettings())
        (node,) = chats.shown(store, info.id)
        assert (node.message.content, node.message.thought_end) == ("hello", None)
        reply = chats.add_message(store, info.id, HELLO, after=node.id)
        assert chats.get_node(store, reply.id).message == HELLO
        chats.change_session(store, info.id, load=LoadSettings(adapters=(("a.gguf", 0.5),)))
        assert chats.get_session(store, info.id).load.adapters == (("a.gguf", 0.5),)
    chats.open_store(path).close()
