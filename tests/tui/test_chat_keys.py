"""Every key, place by place: a test ends by asking whether it pressed all that its place has."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from inspect import isclass
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, OptionList
from tui_stage import STEPS, Stage, answer, answers, conversation, shown

import tui
from ftllm.chat import store as chats
from ftllm.chat.defaults import Defaults
from ftllm.chat.options import ChatOptions
from tui.app import ChatApp
from tui.models import Entry
from tui.screens.chat import ChatScreen
from tui.screens.choosing import ChoosingScreen
from tui.screens.keys import KeysScreen
from tui.screens.models import ModelsScreen
from tui.screens.path import PathScreen
from tui.screens.picking import PickScreen
from tui.screens.sessions import SessionsScreen
from tui.screens.settings import Form, SettingsScreen
from tui.widgets.choice import Choice
from tui.widgets.composer import Composer
from tui.widgets.sidebar import Sidebar
from tui.widgets.transcript import Transcript

NINE = "At <https://one.example>.\n\n" + "\n".join(f"```sh\necho {number}\n```\n" for number in range(1, 10))


class Keys:
    """Presses keys, and remembers which."""

    def __init__(self, pilot: Pilot[None]) -> None:
        self._pilot = pilot
        self._pressed: set[str] = set()

    async def __call__(self, *keys: str) -> None:
        self._pressed.update(keys)
        await self._pilot.press(*keys)
        await self._pilot.pause()

    def were_all_of(self, *kinds: type) -> bool:
        """Whether every key was pressed that these classes bind."""
        bound = {key for kind in kinds for one in vars(kind)["BINDINGS"] for key in one.key.split(",")}
        assert bound - self._pressed == set()
        return bool(bound)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


async def test_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tui.screens.models.local_entries", lambda _: [])
    presets = Defaults(presets={"brief": {"system": "Be brief."}}, path=tmp_path / "chat.toml")
    async with conversation(ChatOptions(defaults=presets), size=(120, 24)) as (stage, pilot):
        keys, screen, composer = Keys(pilot), stage.screen, stage.screen.query_one(Composer)

        for key, kind in (("f1", KeysScreen), ("f2", SettingsScreen), ("f3", ModelsScreen), ("f4", SettingsScreen)):
            await keys(key)
            assert isinstance(stage.app.screen, kind)
            assert key != "f4" or stage.app.focused is stage.app.screen.query_one("#preset")
            await keys("escape")
            assert stage.app.screen is screen
        dark = stage.app.current_theme.dark
        await keys("f9")
        assert stage.app.current_theme.dark is not dark
        for key in ("ctrl+s", "f5"):
            await keys(key)
            assert screen.in_sidebar
            await keys(key)
            assert screen.sidebar is None
            assert stage.app.focused is composer

        for key in ("up", "ctrl+up", "alt+up"):
            await keys(key)
            assert stage.app.focused is stage.transcript
            assert stage.transcript.selected is stage.transcript.turns[-1]
            await keys("escape")
            assert stage.app.focused is composer
        await keys("shift+tab")
        assert stage.app.focused is stage.transcript
        await keys("tab")
        assert stage.app.focused is composer
        await keys("ctrl+o")
        assert stage.app.clipboard == "The sum is **933**."
        thought = stage.transcript.turns[-1].thoughts[0]
        await keys("ctrl+t")
        assert thought.open
        for key, place in (("ctrl+home", 0), ("pagedown", stage.transcript.size.height - 2), ("pageup", 0)):
            await keys(key)
            assert stage.transcript.scroll_y == place
        await keys("ctrl+end")
        assert stage.transcript.at_end
        await keys("ctrl+t")
        assert not thought.open

        await keys("ctrl+r")
        assert stage.engine.asked[1] == stage.engine.asked[0]
        stage.engine.think(*STEPS)
        await stage.settle(pilot)
        await keys("ctrl+n")
        assert stage.engine.answers_now == 1
        await keys("escape")
        await stage.settle(pilot)
        assert stage.engine.stops == 1
        await keys("f6")
        assert stage.transcript.turns == []
        await keys("ctrl+q")
        assert not stage.app.is_running
    assert keys.were_all_of(ChatApp, ChatScreen, SessionsScreen, ChoosingScreen)


async def test_in_the_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    async with conversation(size=(100, 60)) as (stage, pilot):
        monkeypatch.setattr(stage.app, "open_url", lambda url, **_: opened.append(url))
        keys, transcript, engine = Keys(pilot), stage.transcript, stage.engine
        await stage.say(pilot, "Code!")
        await answer(stage, pilot, NINE)
        await pilot.press("ctrl+up")
        for number in range(1, 10):
            await keys(str(number))
            assert stage.app.clipboard == f"echo {number}"
        await keys("o")
        assert opened == ["https://one.example"]
        for key, title in (("s", "Save code"), ("x", "Export the session")):
            await keys(key)
            assert isinstance(stage.app.screen, PathScreen)
            assert str(stage.app.screen.query_one(".frame").border_title) == title
            await pilot.press("escape")

        for key, place in (("up", 2), ("k", 1), ("down", 2), ("j", 3), ("up", 2), ("up", 1)):
            await keys(key)
            assert transcript.selected is transcript.turns[place]
        thought = transcript.turns[1].thoughts[0]
        for key, is_open in (("enter", True), ("space", False)):
            await keys(key)
            assert thought.open is is_open
        await keys("c")
        assert stage.app.clipboard == "The sum is **933**."
        await keys("t")
        assert stage.app.clipboard.startswith("Step 0: write 0")

        await keys("r")
        assert engine.asked[-1] == engine.asked[0]
        await answer(stage, pilot, "Another sum.")
        for key, said in (("left", "The sum"), ("right", "Another"), ("h", "The sum"), ("l", "Another")):
            await keys(key)
            assert answers(stage)[0].startswith(said)
        await keys("m")
        assert engine.asked[-1][-1]["content"] == "Another sum."
        await answer(stage, pilot, " And more.")
        assert answers(stage) == ["Another sum. And more."]
        for key in ("d", "delete"):
            await keys(key)
            assert answers(stage)[0].startswith("The sum")  # the branch beside it
            await keys("u")
            assert answers(stage) == ["Another sum. And more."]
        await keys("e")
        assert stage.screen.query_one(Composer).text == "Another sum. And more."
        await pilot.press("escape")

        await stage.say(pilot, "Think!")
        engine.think(*STEPS)
        await stage.settle(pilot)
        await pilot.press("ctrl+up")
        await keys("a")
        assert engine.answers_now == 1
    assert keys.were_all_of(Transcript)


async def test_in_the_sessions() -> None:
    async with conversation() as (stage, pilot):
        for number in range(40):
            chats.add_user(stage.store, chats.create_session(stage.store, title=f"{number}").id, "?", after=None)
        with stage.store.writing() as db:
            db.execute("UPDATE sessions SET updated = -id")  # the first ones at the top
        keys = Keys(pilot)
        await pilot.press("ctrl+s")
        sidebar = stage.screen.query_one(Sidebar)
        listing, line = sidebar.query_one(OptionList), sidebar.query_one(Input)
        page = listing.size.height - 1
        assert listing.highlighted == 1
        for key, row in (("up", 0), ("up", 0), ("down", 1), ("pagedown", 1 + page), ("pageup", 1)):
            await keys(key)
            assert listing.highlighted == row
        await keys("ctrl+e")
        assert line.value == "What is 347 + 586?"
        await keys("escape")
        assert line.value == ""
        await keys("ctrl+d")
        assert chats.list_sessions(stage.store)[0].title == "0"
        await keys("ctrl+z")
        assert chats.list_sessions(stage.store)[0].title == "What is 347 + 586?"
        await keys("escape")
        assert stage.screen.sidebar is None
    assert keys.were_all_of(Sidebar)


async def test_in_the_help() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        keys = Keys(pilot)
        for key in ("escape", "f1", "enter", "q"):
            await pilot.press("f1")
            assert isinstance(stage.app.screen, KeysScreen)
            await keys(key)
            assert stage.app.screen is stage.screen
        await pilot.press("f1")
        frame = stage.app.screen.query_one(".frame")
        for key, place in (("pagedown", frame.size.height), ("pageup", 0), ("down", 1), ("up", 0)):
            await pilot.press(key)
            await stage.until(pilot, lambda place=place: frame.scroll_y == place)  # type: ignore[misc]
    assert keys.were_all_of(KeysScreen)


async def test_where_a_file_is_written() -> None:
    async with conversation() as (stage, pilot):
        keys = Keys(pilot)
        await pilot.press("up", "x")
        screen = stage.app.screen
        for key, name in (("up", ".json"), ("down", ".md"), ("down", ".json")):
            await keys(key)
            assert screen.query_one(Input).value == f"what-is-347-586{name}"
        await keys("escape")
        assert stage.app.screen is stage.screen
    assert keys.were_all_of(PathScreen)


async def test_where_a_model_is_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [Entry(Path(f"{number:02}-Q8_0.gguf"), f"{number:02}", "file") for number in range(60)]
    monkeypatch.setattr("tui.screens.models.local_entries", lambda _: entries)
    async with conversation() as (stage, pilot):
        keys = Keys(pilot)

        async def listing() -> OptionList:
            await pilot.press("f3")
            table = stage.app.screen.query_one(OptionList)
            await stage.until(pilot, lambda: table.option_count == len(entries) and table.size.height > 3)
            return table

        table = await listing()
        await keys("pagedown")
        page = table.highlighted
        assert page is not None
        assert page >= table.size.height - 1
        for key, row in (("down", page + 1), ("up", page), ("pageup", 0), ("ctrl+end", 59), ("ctrl+home", 0)):
            await keys(key)
            assert table.highlighted == row
        await keys("down", "enter")
        assert stage.app.screen is stage.screen
        assert [path for path, _ in stage.engine.loads] == [entries[1].target]
        stage.engine.ready()
        await stage.settle(pilot)
        await listing()
        await keys("escape")
        assert stage.app.screen is stage.screen
        await listing()
        await pilot.click(OptionList, offset=(4, 2))
        assert [path for path, _ in stage.engine.loads] == [entries[1].target, entries[2].target]
    assert keys.were_all_of(PickScreen)


async def test_in_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "chat.toml"
    stage = Stage(ChatOptions(defaults=Defaults(path=path)))
    async with stage.app.run_test(size=(100, 40)) as pilot:
        keys = Keys(pilot)
        for key in ("escape", "f2"):
            await pilot.press("f2", "1")
            await keys(key)
            assert stage.app.screen is stage.screen
            assert stage.screen.conversation.options.temperature is None
        await pilot.press("f2", "1")
        await keys("down")
        assert stage.app.focused is stage.app.screen.query_one("#set-top_p")
        await keys("up")
        assert stage.app.focused is stage.app.screen.query_one("#set-temperature")
        await keys("enter")
        assert stage.screen.conversation.options.temperature == 1
        assert not path.exists()
        await pilot.press("f2")
        await keys("ctrl+s")
        assert stage.app.screen is stage.screen
        assert path.read_text() == "temperature = 1.0\n"

        await stage.say(pilot, "/think")
        choice = stage.app.screen.query_one("#set-think", Choice)
        for key, value in (("right", "on"), ("space", "off"), ("right", "auto"), ("left", "off"), ("a", "auto")):
            await keys(key)
            assert choice.value == value
            assert shown(choice) == f"‹ {value} ›"
        await pilot.click(choice)
        assert choice.value == "on"
    assert keys.were_all_of(SettingsScreen, Form, Choice)


async def test_in_the_composer() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await pilot.press("a", "ctrl+j", "b", "shift+enter", "c", "alt+enter", "d", "enter")
        assert stage.engine.asked == [[{"role": "user", "content": "a\nb\nc\nd"}]]


def test_no_place_is_forgotten() -> None:
    modules = (import_module(module.name) for module in pkgutil.walk_packages(tui.__path__, "tui."))
    kinds = {kind for module in modules for kind in vars(module).values() if isclass(kind)}
    with_keys = {kind for kind in kinds if kind.__module__.startswith("tui.") and "BINDINGS" in vars(kind)}
    assert with_keys == {
        *(ChatApp, ChatScreen, SessionsScreen, ChoosingScreen, Transcript, Sidebar),
        *(KeysScreen, PathScreen, PickScreen, SettingsScreen, Form, Choice),
    }
