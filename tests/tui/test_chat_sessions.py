"""The sessions at the side: opened as they were left, found, renamed, deleted and brought back."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.content import Content
from textual.pilot import Pilot
from textual.widgets import Input, OptionList
from tui_stage import Stage, answers, converse, notes

from ftllm.chat import store as chats
from ftllm.chat.events import StateSaved
from ftllm.chat.session import ChatMessage
from ftllm.chat.states import state_file
from ftllm.chat.store import Recovery, SessionInfo
from tui.widgets.composer import Composer
from tui.widgets.sidebar import Sidebar, age
from tui.widgets.transcript import Transcript


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def kept(stage: Stage, title: str, question: str, answer: str, thought: str = "") -> SessionInfo:
    """A session in the store, of one exchange."""
    info = chats.create_session(stage.store, title=title)
    asked = chats.add_user(stage.store, info.id, question, after=None)
    chats.add_message(stage.store, info.id, ChatMessage("assistant", answer, thought=thought), after=asked.id)
    return info


def rows(stage: Stage) -> list[str]:
    """The list, each row on one line."""
    options = stage.screen.query_one(Sidebar).query_one(OptionList).options
    return [" ".join(str(option.prompt).split()) for option in options]


def title(stage: Stage) -> str:
    """The session's, as it stands on the composer's frame."""
    return Content.from_markup(str(stage.screen.query_one(Composer).border_subtitle)).plain


async def ready(stage: Stage, pilot: Pilot[None]) -> None:
    stage.engine.ready()
    await stage.settle(pilot)


async def typed(stage: Stage, pilot: Pilot[None], text: str) -> None:
    """Search."""
    await pilot.press(*text)
    sidebar = stage.screen.query_one(Sidebar)
    await stage.until(pilot, lambda: sidebar._query == text)


@pytest.mark.parametrize("width", [80, 120])
async def test_sessions_are_left_and_opened_again(width: int) -> None:
    stage = Stage()
    old = kept(stage, "Long ago", "Count to sixty.", "\n\n".join(map(str, range(60))))
    async with stage.app.run_test(size=(width, 24)) as pilot:
        await ready(stage, pilot)
        await converse(stage, pilot)
        here = stage.screen.conversation.info
        assert here is not None
        await pilot.press("ctrl+s")
        assert rows(stage) == ["+ New session", "What is 347 + 586? now", "Long ago now"]
        await pilot.press("down", "enter")
        await stage.settle(pilot)
        assert stage.app.focused is stage.screen.query_one(Composer)
        assert (stage.screen.sidebar is not None) == (width == 120)
        assert answers(stage)[0].startswith("0\n\n1")
        assert (stage.engine.saved, stage.engine.restored) == ([state_file(here.uid)], [state_file(old.uid)])
        await pilot.press("ctrl+home")
        place = stage.drawn()

        await pilot.press("ctrl+s", "up", "enter")
        await stage.settle(pilot)
        assert answers(stage) == ["The sum is **933**."]
        assert stage.engine.saved == [state_file(here.uid)]  # nothing was said in the other one
        assert stage.engine.restored[-1] == state_file(here.uid)
        await pilot.press("ctrl+s", "down", "enter")
        await stage.settle(pilot)
        assert stage.drawn() == place

        await stage.say(pilot, "On?")
        assert [message["content"] for message in stage.engine.asked[-1]][0::2] == ["Count to sixty.", "On?"]


async def test_a_new_session_by_key_row_and_mouse() -> None:
    stage = Stage()
    async with stage.app.run_test(size=(120, 24)) as pilot:
        await ready(stage, pilot)
        await converse(stage, pilot)
        await pilot.press("f6")
        assert stage.transcript.turns == []
        await stage.say(pilot, "Second")
        stage.engine.text("half")
        await stage.settle(pilot)
        await pilot.press("ctrl+s", "home", "up", "up", "enter")  # stops the reply first
        await stage.settle(pilot)
        assert stage.engine.stops == 1
        assert stage.transcript.turns == []
        assert rows(stage) == ["+ New session", "Second now", "What is 347 + 586? now"]
        await pilot.click(OptionList, offset=(3, 1))
        await stage.settle(pilot)
        assert answers(stage) == ["half"]
        assert notes(stage) == ["Stopped."]


async def test_searching() -> None:
    stage = Stage()
    info = kept(stage, "Sums", "Add 17 and 5.", "22", thought="carry nothing, it is twenty-two")
    second = chats.add_user(stage.store, info.id, "Another branch", after=None)
    async with stage.app.run_test(size=(80, 24)) as pilot:
        await ready(stage, pilot)
        await pilot.press("ctrl+s")
        await typed(stage, pilot, "twenty")
        assert rows(stage) == ["Sums thought carry nothing, it is twenty-two"]
        await pilot.press("enter")
        await stage.settle(pilot)
        assert answers(stage) == ["22"]  # its branch is shown, its thought open
        assert "│ carry nothing, it is twenty-two" in stage.drawn()
        assert stage.transcript.selected is stage.transcript.turns[1]
        assert second.id not in [node.id for node in stage.screen.conversation.nodes]
        await pilot.press("ctrl+s")
        await typed(stage, pilot, "nowhere")
        assert rows(stage) == ["Nothing found"]
        await pilot.press("enter", "escape")
        assert rows(stage)[0] == "+ New session"
        await pilot.press("escape")
        assert stage.screen.sidebar is None
        assert stage.app.focused is stage.screen.query_one(Composer)


async def test_renaming() -> None:
    stage = Stage()
    async with stage.app.run_test(size=(120, 24)) as pilot:
        await ready(stage, pilot)
        await converse(stage, pilot)
        assert title(stage) == "What is 347 + 586?"
        await pilot.press("ctrl+s", "ctrl+e")
        line = stage.screen.query_one(Sidebar).query_one(Input)
        assert line.value == "What is 347 + 586?"
        line.value = "[b]Sums[/b]"
        await pilot.press("enter")
        await pilot.pause()
        assert rows(stage)[1] == "[b]Sums[/b] now"
        assert title(stage) == "[b]Sums[/b]"
        await pilot.press("ctrl+e", "x", "escape")
        assert rows(stage)[1] == "[b]Sums[/b] now"


async def test_deleting_and_undoing() -> None:
    stage = Stage()
    kept(stage, "Other", "Hello", "Hi")
    async with stage.app.run_test(size=(120, 24)) as pilot:
        await ready(stage, pilot)
        await converse(stage, pilot)
        await pilot.press("ctrl+s", "ctrl+d")
        await pilot.pause()
        assert rows(stage) == ["+ New session", "Other now"]
        assert stage.transcript.turns == []
        await pilot.press("down", "ctrl+d")
        await pilot.pause()
        assert rows(stage) == ["+ New session"]
        await pilot.press("ctrl+z", "ctrl+z")
        await pilot.pause()
        assert rows(stage) == ["+ New session", "What is 347 + 586? now", "Other now"]
        assert answers(stage) == ["The sum is **933**."]


async def test_what_is_kept_when_one_leaves() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        await ready(stage, pilot)
        await stage.say(pilot, "Write.")
        stage.engine.text(*(f"line {number}\n\n" for number in range(40)))
        await stage.settle(pilot)
        await pilot.press("ctrl+home", "ctrl+q")
    info = chats.list_sessions(stage.store)[0]
    assert info.view == {"node": 1, "above": 0}
    assert stage.engine.stops == 1
    assert stage.engine.saved == [state_file(info.uid)]
    assert stage.app.conversation.saving


async def test_a_state_that_is_written_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    pruned: list[Path] = []
    monkeypatch.setattr("tui.loader.prune", pruned.append)
    stage = Stage()
    async with stage.app.run_test() as pilot:
        await ready(stage, pilot)
        stage.engine.play([StateSaved(0.0, 0, "/a.kv", 10, 100), StateSaved(0.0, 0, "/b.kv", 0, 0, "no space left")])
        await stage.settle(pilot)
    assert pruned == [Path("/a.kv")]


async def test_what_became_of_a_damaged_database_is_told() -> None:
    stage = Stage(notice="chats.db cannot be written\nWhat is said now is gone when you leave.")
    stage.store.recovered = Recovery(Path("/data/chats.db.damaged"), 3, 40)
    async with stage.app.run_test() as pilot:
        await ready(stage, pilot)
        drawn = " ".join(stage.drawn())
        assert "chats.db cannot be written" in drawn
        assert "damaged and is kept as /data/chats.db.damaged" in drawn
        assert "recovered from it: 3 sessions, 40 messages" in drawn


def test_a_store_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tui.app import _store

    (tmp_path / "ftllm").write_text("in the way")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    store, notice = _store()
    assert store.path is None
    assert str(tmp_path / "ftllm") in notice
    assert "gone when you leave" in notice


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "now"), (59, "now"), (60, "1 min"), (7200, "2 h"), (3 * 86400, "3 d"), (99 * 86400, "14 wk")],
)
def test_ages(seconds: float, text: str) -> None:
    assert age(seconds) == text


async def test_another_model_is_named_where_it_takes_over() -> None:
    stage = Stage()
    info = kept(stage, "Mixed", "Hello", "Hi")
    author = chats.Author("/models/other-Q8_0.gguf")
    asked = chats.add_user(stage.store, info.id, "Again", after=2)
    chats.add_message(stage.store, info.id, ChatMessage("assistant", "Ho"), after=asked.id, author=author)
    async with stage.app.run_test() as pilot:
        await ready(stage, pilot)
        stage.screen.open_session(info.id)
        await stage.settle(pilot)
        assert "other-Q8_0.gguf" not in stage.drawn()  # who said the first is not known
        await stage.say(pilot, "And now?")
        stage.engine.text("Ha")
        stage.engine.done()
        await stage.settle(pilot)
        assert stage.row("nano-ft-Q4_K_M.gguf") == stage.row("Ha") - 1


async def test_a_models_hash_tells_another_one_of_the_same_name() -> None:
    stage = Stage()
    info = chats.create_session(stage.store, title="Mixed")
    after = None
    for text, model, digest in (
        ("one", "/a/m.gguf", "11" * 32),
        ("moved", "/b/renamed.gguf", "11" * 32),
        ("made again", "/b/renamed.gguf", "2233445566" + "0" * 54),
        ("not known", "/b/renamed.gguf", ""),
        ("another", "/b/other.gguf", "33" * 32),
    ):
        asked = chats.add_user(stage.store, info.id, f"{text}?", after=after)
        author = chats.Author(model, digest)
        after = chats.add_message(
            stage.store, info.id, ChatMessage("assistant", text), after=asked.id, author=author
        ).id
    async with stage.app.run_test(size=(80, 40)) as pilot:
        await ready(stage, pilot)
        stage.screen.open_session(info.id)
        await stage.settle(pilot)
        drawn = [line for line in stage.drawn() if ".gguf" in line]
        assert drawn == ["renamed.gguf (22334455)", "other.gguf"]
        assert stage.row("renamed.gguf (22334455)") == stage.row("made again?") + 2


async def test_sessions_stand_beside_the_conversation_where_there_is_room() -> None:
    """And over it where there is none, whatever the window was before."""
    stage = Stage()
    async with stage.app.run_test(size=(80, 24)) as pilot:
        await ready(stage, pilot)
        await pilot.press("ctrl+s")
        for width, beside in ((80, False), (130, True), (99, False), (100, True)):
            await pilot.resize_terminal(width, 24)
            await stage.settle(pilot)
            sidebar, transcript = stage.screen.query_one(Sidebar), stage.screen.query_one(Transcript)
            assert (transcript.region.x >= sidebar.region.right) == beside, width
