"""Search over all sessions: what is found, and where the marks are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ftllm.chat import store as chats
from ftllm.chat.session import ChatMessage
from ftllm.chat.store import Hit, Store


@pytest.fixture
def store() -> Iterator[Store]:
    with chats.memory_store() as store:
        yield store


def marked(hit: Hit) -> list[str]:
    return [hit.snippet[start:end] for start, end in hit.marks]


def add(store: Store, *contents: str, thought: str = "", title: str = "t") -> int:
    session = chats.create_session(store, title=title).id
    after = None
    for content in contents:
        after = chats.add_message(store, session, ChatMessage("assistant", content, thought), after=after).id
    return session


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("carry", ["carry the one"]),
        ("CARR", ["carry the one"]),  # any case, a part of a word
        ("one carry", ["carry the one"]),  # any order
        ('"one carry"', []),
        ('"the one"', ["carry the one"]),
        ("nowhere", []),
        ("x_y(", ["call x_y(3)"]),  # code
        ("(", ["call x_y(3)"]),
        ("时间", ["现在的时间"]),  # two characters, no spaces
        ("在的时", ["现在的时间"]),
        ("ÜBER", ["über alles"]),
        ('a"b', ['say a"b']),
        ("100%_", ["100%_ sure"]),
        ("- * OR NOT", []),
        ("", []),
        ('"', []),
    ],
)
def test_finds(store: Store, query: str, found: list[str]) -> None:
    add(store, "carry the one", "call x_y(3)", "现在的时间", "über alles", 'say a"b', "100%_ sure", "1000 sure")
    assert [hit.snippet for hit in chats.search(store, query)] == found


def test_a_hit_says_where_it_is_in_context(store: Store) -> None:
    session = add(store, "x" * 100 + " before\nthe needle and after " + "y" * 100, title="Haystack")
    (hit,) = chats.search(store, "needle")
    assert hit.snippet == "…" + "x" * 48 + " before the needle and after " + "y" * 49 + "…"
    assert marked(hit) == ["needle"]
    assert (hit.session, hit.title, hit.role, hit.field) == (session, "Haystack", "assistant", "content")
    (node,) = chats.shown(store, session)
    assert hit.node == node.id


def test_thoughts_and_titles_are_searched_and_the_newest_comes_first(store: Store) -> None:
    old = add(store, "an answer", thought="hmm, primes")
    new = add(store, "primes", title="On primes")
    hits = chats.search(store, "prime")
    assert [(hit.session, hit.field) for hit in hits] == [(new, "title"), (new, "content"), (old, "thought")]
    assert all(marked(hit) == ["prime"] for hit in hits)
    assert hits[0].node is None
    assert len(chats.search(store, "prime", limit=1)) == 2  # one title, one message


def test_what_changes_is_found_as_it_is_now(store: Store) -> None:
    session = add(store, "first version")
    (node,) = chats.shown(store, session)
    assert chats.search(store, "first")
    chats.update_message(store, node.id, ChatMessage("assistant", "second version"))
    assert not chats.search(store, "first")
    assert chats.search(store, "second")
    chats.edit(store, node.id, "third")
    assert chats.search(store, "second")  # a branch that is not shown is still there
    chats.delete_message(store, node.id)
    assert not chats.search(store, "second")
    chats.restore_message(store, node.id)
    chats.delete_session(store, session)
    assert not chats.search(store, "second")
    chats.erase_session(store, session)
    with store.reading() as db:
        db.execute("INSERT INTO message_index(message_index) VALUES('integrity-check')")
        assert db.execute("SELECT count(*) FROM message_index WHERE message_index MATCH 'ver'").fetchone() == (0,)
