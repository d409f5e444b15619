"""Sessions out to Markdown and JSON, and in from JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ftllm.chat import store as chats
from ftllm.chat.events import Stats
from ftllm.chat.options import LoadSettings, ReplyOptions
from ftllm.chat.session import ChatMessage, OneThought
from ftllm.chat.store import Author, Node, Store
from ftllm.errors import UserError

STATS = Stats(9.0, 1, 12, 0, 7, 4, 7.4, 0.1, 50.0, 256, 23)


@pytest.fixture
def store() -> Iterator[Store]:
    with chats.memory_store() as store:
        yield store


@pytest.fixture
def session(store: Store) -> int:
    """Two answers to one question, the first of them shown."""
    load = LoadSettings(n_ctx=512, gpu_layers=4, adapters=(("a.gguf", 0.5), ("b.gguf", 1.0)), mmproj="eyes.gguf")
    options = ReplyOptions(top_k=3)
    info = chats.create_session(store, system="Be brief.", model="nano.gguf", load=load, options=options)
    asked = chats.add_user(store, info.id, "What is 6 * 7?", after=None)
    author = Author("models/nano.gguf", "abc", ReplyOptions(seed=1))
    thoughts = (OneThought("6 * 7", 7.0, 4, "budget", 0), OneThought("= 42", 0.4, 3, "closed", 1))
    reply = ChatMessage("assistant", "`42`", "6 * 7\n= 42", 7.4, 7, 4, "stop", STATS, "closed", thoughts)
    first = chats.add_message(store, info.id, reply, after=asked.id, author=author)
    failed = ChatMessage("assistant", "4", stop_reason="failed")
    chats.add_message(store, info.id, failed, after=asked.id, author=author, error="the engine was ended by SIGKILL")
    chats.show_node(store, first.id)
    return info.id


def test_markdown_is_the_branch_shown(store: Store, session: int, tmp_path: Path) -> None:
    chats.export_session(store, session, tmp_path / "chat.md")
    lines = (tmp_path / "chat.md").read_text().splitlines()
    assert lines[0] == "# What is 6 * 7?"
    assert lines[4:] == [
        *("## System", "", "Be brief.", ""),
        *("## User", "", "What is 6 * 7?", ""),
        *("## Assistant (nano.gguf)", "", "<details>", "<summary>Thought for 7.40 seconds</summary>", ""),
        *("6 * 7", "= 42", "", "</details>", "", "`42`"),
    ]
    chats.step_branch(store, chats.shown(store, session)[-1].id, 1)
    assert chats.to_markdown(store, session).endswith("4\n\n*(failed: the engine was ended by SIGKILL)*\n")


def bare(nodes: list[Node]) -> list[tuple[Any, ...]]:
    """All of the messages but their numbers."""
    first = nodes[0].id
    return [
        (node.parent and node.parent - first, node.message, node.author, node.error, node.branch, node.created)
        for node in nodes
    ]


def test_json_comes_back_as_it_was(store: Store, session: int, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    chats.export_session(store, session, path)
    with chats.memory_store() as other:
        chats.create_session(other)
        chats.add_user(other, 1, "in the way of the same numbers", after=None)
        info = chats.import_session(other, path)
        old = chats.get_session(store, session)
        assert (info.uid, info.title, info.system, info.model) == (old.uid, old.title, old.system, old.model)
        assert (info.load, info.options) == (old.load, old.options)
        assert (info.created, info.updated) == (old.created, old.updated)
        assert bare(chats.all_nodes(other, info.id)) == bare(chats.all_nodes(store, session))
        assert bare(chats.shown(other, info.id)) == bare(chats.shown(store, session))
        assert chats.to_json(other, info.id) == chats.to_json(store, session)
        copy = chats.import_session(other, path)
        assert copy.uid != info.uid
        assert len(chats.list_sessions(other)) == 3


def test_images_go_along(tmp_path: Path) -> None:
    store = chats.open_store(tmp_path / "data" / "chats.db")
    (tmp_path / "a.png").write_bytes(b"pixels")
    info = chats.create_session(store)
    asked = chats.add_user(store, info.id, "what", after=None, images=[str(tmp_path / "a.png")])
    (tmp_path / "a.png").unlink()
    value = chats.to_json(store, info.id)
    assert value["messages"][0]["images"] == [{"name": "a.png", "data": "cGl4ZWxz"}]
    value["messages"][0]["images"][0]["name"] = "../../../b\0.png"
    with chats.open_store(tmp_path / "other" / "chats.db") as other:
        (node,) = chats.shown(other, chats.from_json(other, value).id)
        (path,) = map(Path, node.message.images)
        assert (path.name, path.read_bytes()) == ("b.png", b"pixels")
        assert path.is_relative_to(tmp_path / "other" / "images")
        chats.erase_session(other, node.session)
        assert not path.exists()
    assert "*(image: a.png)*" in chats.to_markdown(store, info.id)
    edited = chats.edit(store, asked.id, "what?")
    assert edited.message.images == asked.message.images
    with store.writing() as db:  # as damage may leave it
        db.execute('UPDATE messages SET images = \'["..", "../../x", "/etc/passwd"]\' WHERE id = ?', (asked.id,))
    assert chats.get_node(store, asked.id).message.images == ()
    chats.erase_session(store, info.id)
    assert (tmp_path / "data" / "chats.db").is_file()
    value["messages"][0]["images"][0]["data"] = "?"
    with pytest.raises(UserError, match="not a whole session"):
        chats.from_json(store, value)


def test_a_conversation_to_train_on_can_be_read(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "row.json"
    turns = [("system", "Be kind."), ("user", "Hi"), ("assistant", "<think>\nA greeting.\n</think>\n\nHello!")]
    path.write_text(json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}))
    info = chats.import_session(store, path)
    assert (info.title, info.system) == ("Hi", "Be kind.")
    user, reply = chats.shown(store, info.id)
    assert user.message.content == "Hi"
    assert (reply.message.thought, reply.message.content) == ("A greeting.", "Hello!")


def whole(store: Store, session: int) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(json.dumps(chats.to_json(store, session)))
    return value


def test_a_file_does_not_choose_an_endpoint(store: Store, session: int) -> None:
    value = whole(store, session) | {"model": "https://elsewhere.example/v1 model"}
    value["messages"][1]["model"] = value["model"]
    info = chats.from_json(store, value)
    assert info.model == ""
    assert chats.shown(store, info.id)[1].author.model == "https://elsewhere.example/v1 model"  # as it was said


def test_a_file_from_before_says_nothing_of_loading(store: Store, session: int) -> None:
    value = whole(store, session)
    assert value.pop("load") == {
        "n_ctx": 512,
        "gpu_layers": 4,
        "adapters": [["a.gguf", 0.5], ["b.gguf", 1.0]],
        "mmproj": "eyes.gguf",
    }
    assert chats.from_json(store, value).load == LoadSettings()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"version": 2}, "version 2"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "wizard"),
        ({"messages": [{"role": "user", "content": "x", "parent": 1}]}, "not a whole session"),  # of itself
        ({"messages": [{"role": "user", "content": ["x"]}]}, "content is not text"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "not a whole session"),
        ({"messages": [{"role": "assistant", "content": "x", "stop_reason": "bored"}]}, "bored"),
        ({"messages": [{"role": "assistant", "content": "x", "thought_end": "tired"}]}, "tired"),
        ({"messages": [{"role": "assistant", "content": "x", "thoughts": [{"text": "hm"}]}]}, "thoughts"),
        ({"messages": 3}, "not a whole session"),
        ({"title": 3}, "title is not text"),
        ({"system": {"a": 1}}, "system"),
        ({"options": {"top_k": "many"}}, "top_k"),
        ({"load": {"n_ctx": "long"}}, "n_ctx"),
        ({"load": {"adapters": ["a.gguf"]}}, "not a whole session"),
        ({"load": 3}, "not a whole session"),
        ({"created": "yesterday"}, "yesterday"),
        ({"shown": [9]}, "not a whole session"),
        ({"format": "something else", "messages": []}, "'messages' is empty"),
    ],
)
def test_what_is_no_session_is_refused_whole(
    store: Store, session: int, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        chats.from_json(store, whole(store, session) | changes)
    assert len(chats.list_sessions(store)) == 1


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[]", b"3", b"[" * 100_000])
def test_a_bad_file_is_one_line(store: Store, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.json").write_bytes(data)
    with pytest.raises(UserError, match=r"bad\.json"):
        chats.import_session(store, tmp_path / "bad.json")
    with pytest.raises(UserError, match="cannot be read"):
        chats.import_session(store, tmp_path / "nowhere.json")


def test_another_suffix_is_refused(store: Store, session: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.pdf"):
        chats.export_session(store, session, tmp_path / "chat.pdf")
