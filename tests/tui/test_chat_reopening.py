"""A session goes on with the model it was held with, loaded as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from textual.pilot import Pilot
from tui_stage import MODEL, Stage, answer, converse, notes, status

from ftllm.chat import store as chats
from ftllm.chat.options import ChatOptions, LoadSettings
from ftllm.chat.remote import Remote
from ftllm.chat.session import ChatMessage
from ftllm.chat.states import state_file
from ftllm.chat.store import SessionInfo
from tui.screens import sessions
from tui.widgets.composer import Composer

HERE = ChatOptions(load=LoadSettings(n_ctx=512, gpu_layers=0))
BEFORE = LoadSettings(n_ctx=1024, adapters=(("/loras/a.gguf", 0.5),))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "other-Q8_0.gguf"
    path.touch()
    return path


def held(stage: Stage, model: object, load: LoadSettings = BEFORE) -> SessionInfo:
    """A session that was held with a model."""
    info = chats.create_session(stage.store, title="Before", model=str(model), load=load)
    asked = chats.add_user(stage.store, info.id, "Hello", after=None)
    author = chats.Author(str(model))
    chats.add_message(stage.store, info.id, ChatMessage("assistant", "Hi"), after=asked.id, author=author)
    return info


async def begun(stage: Stage, pilot: Pilot[None]) -> SessionInfo:
    """A session of one exchange with the model there is."""
    stage.engine.ready()
    await converse(stage, pilot)
    info = stage.screen.conversation.info
    assert info is not None
    return info


def said(stage: Stage) -> list[str]:
    """The notifications."""
    return [notification.message for notification in stage.app._notifications]


async def open_(stage: Stage, pilot: Pilot[None], info: SessionInfo) -> None:
    stage.screen.open_session(info.id)
    await stage.settle(pilot)


async def test_a_session_brings_its_own_model(other: Path) -> None:
    stage = Stage(HERE)
    before = held(stage, other)
    async with stage.app.run_test() as pilot:
        here = await begun(stage, pilot)
        assert (here.model, here.load) == (str(MODEL), HERE.load)
        await open_(stage, pilot, before)
        assert stage.engine.loads == []  # what was read is written first
        stage.engine.saved_state()
        await stage.settle(pilot)
        assert stage.engine.loads == [(other, BEFORE)]
        assert stage.engine.restored == [state_file(before.uid)]
        assert "loading" in status(stage)
        assert "other-Q8_0" in status(stage)
        await stage.say(pilot, "Again")
        assert len(stage.engine.asked) == 1
        stage.engine.ready()
        await stage.settle(pilot)
        assert len(stage.engine.asked) == 2
        assert stage.screen.conversation.nodes[-1].author.model == str(other)


async def test_a_model_is_loaded_again_only_where_it_was_loaded_otherwise(other: Path) -> None:
    stage = Stage(HERE, model=other)
    same, longer = held(stage, other, HERE.load), held(stage, other, LoadSettings(n_ctx=2048))
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await open_(stage, pilot, same)
        assert stage.engine.loads == []
        assert stage.engine.restored == [state_file(same.uid)]
        await open_(stage, pilot, longer)
        assert stage.engine.loads == [(other, LoadSettings(n_ctx=2048))]


async def test_a_model_that_is_gone(tmp_path: Path) -> None:
    stage = Stage(HERE)
    gone = tmp_path / "gone-Q4_K_M.gguf"
    before = held(stage, gone)
    async with stage.app.run_test() as pilot:
        await begun(stage, pilot)
        await open_(stage, pilot, before)
        assert said(stage) == [f"{gone} is not there any more; it goes on with {MODEL.stem}"]
        assert stage.engine.loads == []
        assert chats.get_session(stage.store, before.id).model == str(gone)
        await stage.say(pilot, "Again")
        after = chats.get_session(stage.store, before.id)
        assert (after.model, after.load) == (str(MODEL), HERE.load)


async def test_a_model_that_cannot_be_loaded_any_more(other: Path) -> None:
    stage = Stage(HERE)
    before = held(stage, other)
    async with stage.app.run_test() as pilot:
        await begun(stage, pilot)
        await open_(stage, pilot, before)
        stage.engine.saved_state()
        await stage.settle(pilot)
        stage.engine.fail_to_load()
        await stage.settle(pilot)
        assert notes(stage)[-2:] == ["nano.gguf is cut short\nexport it again", f"Going back to {MODEL.stem}."]
        assert stage.engine.loads == [(other, BEFORE), (MODEL, HERE.load)]
        assert chats.get_session(stage.store, before.id).model == str(other)  # it may be there again tomorrow


async def test_looking_through_sessions_loads_the_last_one_only(tmp_path: Path) -> None:
    stage = Stage(HERE)
    models = [tmp_path / f"{name}.gguf" for name in "abc"]
    for model in models:
        model.touch()
    sessions = [held(stage, model) for model in models]
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        for info in sessions:
            await open_(stage, pilot, info)
        assert [path for path, _ in stage.engine.loads] == [models[0]]
        stage.engine.fail_to_load()
        await stage.settle(pilot)
        assert notes(stage) == []  # nobody wants it any more
        assert [path for path, _ in stage.engine.loads] == [models[0], models[2]]
        assert stage.engine.restored == [state_file(sessions[0].uid), state_file(sessions[2].uid)]


async def test_an_endpoint_is_remembered_by_its_models_name() -> None:
    stage = Stage(HERE)
    async with stage.app.run_test() as pilot:
        await begun(stage, pilot)
        stage.screen.switch(Remote("http://box:8000/v1"))
        stage.engine.ready(path="http://box:8000/v1 qwen")
        await stage.settle(pilot)
        assert "ready   qwen" in status(stage)
        await converse(stage, pilot)
        info = chats.list_sessions(stage.store)[0]
        assert info.model == "http://box:8000/v1 qwen"


async def test_what_is_written_waits_or_is_edited_stays_with_its_session(other: Path) -> None:
    stage = Stage(HERE)
    before = held(stage, other)
    async with stage.app.run_test() as pilot:
        here = await begun(stage, pilot)
        composer = stage.screen.query_one(Composer)
        await stage.say(pilot, "On")
        stage.engine.text("half")
        await stage.settle(pilot)
        await stage.say(pilot, "next")
        await pilot.press(*"later", "ctrl+up", "up", "e")
        assert composer.editing
        await open_(stage, pilot, before)
        assert not composer.editing
        assert composer.text == ""
        assert len(stage.engine.asked) == 2
        await open_(stage, pilot, here)
        assert composer.text == "next\n\nlater"
        await pilot.press("f6")
        assert composer.text == "next\n\nlater"  # it goes along to a new session
        assert chats.get_session(stage.store, here.id).view == {}


@pytest.mark.parametrize("keys", [("ctrl+q",), ("ctrl+c", "ctrl+c")])
async def test_what_was_written_before_there_was_a_session_is_there_next_time(keys: tuple[str, ...]) -> None:
    first = Stage(HERE)
    async with first.app.run_test() as pilot:
        await first.say(pilot, "waits for the model")
        await pilot.press(*"and more", *keys)
    assert chats.list_sessions(first.store) == []
    held(first, MODEL)
    named = Stage(replace(HERE, session="Before"), store=first.store)
    async with named.app.run_test() as pilot:
        assert named.screen.query_one(Composer).text == ""
    again = Stage(HERE, store=first.store)
    async with again.app.run_test() as pilot:
        composer = again.screen.query_one(Composer)
        assert composer.text == "waits for the model\n\nand more"
        await begun(again, pilot)
        await pilot.press(*"its own")
        await pilot.press("ctrl+q")
    last = Stage(HERE, store=first.store)
    async with last.app.run_test() as pilot:
        assert last.screen.query_one(Composer).text == ""


async def test_what_is_written_before_there_is_a_session_goes_along_to_another_one() -> None:
    stage = Stage(HERE)
    before = held(stage, MODEL)
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await pilot.press(*"hm")
        await open_(stage, pilot, before)
        assert stage.screen.query_one(Composer).text == "hm"
        assert chats.take_draft(stage.store) == ""


async def test_what_is_not_sent_is_kept_while_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "DRAFT_SECONDS", 0.02)
    stage = Stage(HERE)

    def drafts() -> list[str]:
        with stage.store.reading() as db:
            return [text for (text,) in db.execute("SELECT text FROM drafts")]

    async with stage.app.run_test() as pilot:
        await stage.say(pilot, "waits")  # for the model
        await pilot.press(*"more")
        await stage.until(pilot, lambda: drafts() == ["waits\n\nmore"])
        stage.engine.ready()
        await stage.settle(pilot)
        await answer(stage, pilot, "Hi.")
        info = stage.screen.conversation.info
        assert info is not None
        await stage.until(pilot, lambda: drafts() == [])

        def view() -> object:
            return chats.get_session(stage.store, info.id).view.get("draft")

        await stage.until(pilot, lambda: view() == "more")
        await pilot.press(*" yet")
        await stage.until(pilot, lambda: view() == "more yet")
        await pilot.press("f6")  # a new session takes it along
        await stage.until(pilot, lambda: drafts() == ["more yet"])
        assert view() is None
        await pilot.press("ctrl+u")
        await stage.until(pilot, lambda: drafts() == [])


async def test_ctrl_c_asks_before_what_is_written_is_lost() -> None:
    stage = Stage(HERE)
    async with stage.app.run_test() as pilot:
        await pilot.press(*"Hm", "ctrl+c")
        assert stage.app.is_running
        assert said(stage) == ["Ctrl+C again leaves without sending what you have written"]
        await pilot.press("m", "ctrl+c")  # it is another text now
        assert stage.app.is_running
        await pilot.press("ctrl+c")
        assert not stage.app.is_running
