"""`ftllm sessions` as a person runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ftllm.chat import store as chats
from ftllm.chat.session import ChatMessage
from ftllm.cli.sessions import sessions
from ftllm.errors import UserError


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data directory with two sessions."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with chats.open_store() as store:
        for title, text in (("sums", "carry the one"), ("\x1b[31mred", "a plain answer")):
            info = chats.create_session(store, title=title)
            chats.add_message(store, info.id, ChatMessage("assistant", text), after=None)


def titles(capsys: pytest.CaptureFixture[str], *, deleted: bool = False) -> list[str]:
    capsys.readouterr()
    sessions("list", deleted=deleted, json_output=True)
    return [info["title"] for info in json.loads(capsys.readouterr().out)]


def test_list_and_search_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    sessions()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == ["␛[31mred", "sums"]  # made harmless
    sessions("search", ["the", "carry"])
    assert capsys.readouterr().out == "   1  sums (assistant): carry the one\n"
    sessions("search", ["plain"], json_output=True)
    (hit,) = json.loads(capsys.readouterr().out)
    assert (hit["session"], hit["marks"]) == (2, [[2, 7]])
    sessions("show", ["sums"])
    assert capsys.readouterr().out.endswith("## Assistant\n\ncarry the one\n")


def test_out_in_renamed_removed_and_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sessions("export", ["sums", str(tmp_path / "sums.json")])
    sessions("rm", ["sums"])
    assert titles(capsys) == ["\x1b[31mred"]
    assert titles(capsys, deleted=True) == ["sums"]
    sessions("restore", ["sums"])
    sessions("rm", ["sums"], erase=True)
    assert titles(capsys, deleted=True) == []
    sessions("import", [str(tmp_path / "sums.json")])
    sessions("rename", ["sums", "Sums again"])
    assert sorted(titles(capsys)) == ["\x1b[31mred", "Sums again"]


@pytest.mark.parametrize(
    ("action", "words", "complaint"),
    [
        ("show", ["nowhere"], "no session 'nowhere'"),
        ("restore", ["sums"], "no removed session"),
        ("export", ["sums"], "export takes NAME and FILE"),
        ("search", [], "search takes TEXT"),
        ("import", ["nowhere.json"], "cannot be read"),
    ],
)
def test_bad_input(action: str, words: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        sessions(action, words)  # type: ignore[arg-type]
