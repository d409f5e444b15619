"""Every command by its word, with and without what may follow it."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input
from tui_stage import STEPS, Stage, answer, answers, conversation, told

from ftllm.chat import store as chats
from ftllm.chat.defaults import Defaults, read_defaults
from ftllm.chat.options import ChatOptions
from ftllm.chat.settings import SETTINGS, Value
from tui.screens.keys import KeysScreen
from tui.screens.models import ModelsScreen
from tui.screens.path import PathScreen
from tui.screens.settings import SettingsScreen
from tui.widgets.composer import Composer
from tui.widgets.sidebar import Sidebar

GIVEN: dict[str, tuple[str, Value]] = {
    "system": ("Be brief.", "Be brief."),
    "temp": ("0.5", 0.5),
    "top-p": ("0.9", 0.9),
    "min-p": ("0.1", 0.1),
    "top-k": ("7", 7),
    "penalty": ("1.5", 1.5),
    "frequency": ("0.5", 0.5),
    "presence": ("-1", -1.0),
    "seed": ("3", 3),
    "max-tokens": ("9", 9),
    "think": ("on", "on"),
    "budget": ("40", 40),
    "loops": ("off", "off"),
    "overflow": ("stop", "stop"),
    "speculate": ("on", True),
    "template": ("reasoning_effort=high", {"reasoning_effort": "high"}),
    "thoughts": ("hidden", "hidden"),
    "theme": ("nord", "nord"),
}
OTHERS = {
    *("answer", "again", "code", "continue", "copy", "dark", "drop-preset", "edit", "export", "help", "keep-defaults"),
    *("keep-preset", "model", "new", "open", "preset", "quit", "rename", "save", "sessions", "settings", "undo"),
}


async def test_every_word_is_tried_here() -> None:
    stage = Stage()
    async with stage.app.run_test():
        assert {command.name for command in stage.screen.commands if command.name} == {*GIVEN, *OTHERS}


async def test_every_setting(tmp_path: Path) -> None:
    stage = Stage(ChatOptions(defaults=Defaults(path=tmp_path / "chat.toml")))
    async with stage.app.run_test() as pilot:
        for setting in SETTINGS:
            text, value = GIVEN[setting.command]
            assert stage.screen.values[setting.name] != value
            await stage.say(pilot, f"/{setting.command} {text}")
            assert stage.screen.values[setting.name] == value
            await stage.say(pilot, f"/{setting.command}")
            assert isinstance(stage.app.screen, SettingsScreen)
            field = stage.app.screen.query_one(f"#set-{setting.name}")
            assert stage.app.focused is field
            assert (getattr(field, "text", None) or getattr(field, "value", None)) == setting.show(value)
            await pilot.press("escape")


async def test_presets_and_defaults(tmp_path: Path) -> None:
    path = tmp_path / "chat.toml"
    stage = Stage(ChatOptions(defaults=Defaults(path=path)))
    async with stage.app.run_test() as pilot:
        await stage.say(pilot, "/temp 0.5")
        await stage.say(pilot, "/keep-preset calm")
        assert read_defaults(path).presets == {"calm": {"temperature": 0.5}}
        await stage.say(pilot, "/temp 2")
        await stage.say(pilot, "/preset calm")
        assert stage.screen.conversation.options.temperature == 0.5
        await stage.say(pilot, "/preset")
        assert stage.app.focused is stage.app.screen.query_one("#preset")
        await pilot.press("escape")
        await stage.say(pilot, "/keep-defaults")
        assert read_defaults(path).values == {"temperature": 0.5}
        await stage.say(pilot, "/drop-preset calm")
        assert read_defaults(path).presets == {}


async def test_screens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tui.screens.models.local_entries", lambda _: [])
    stage = Stage()
    async with stage.app.run_test() as pilot:
        for word, kind in (("help", KeysScreen), ("settings", SettingsScreen), ("model", ModelsScreen)):
            await stage.say(pilot, f"/{word}")
            assert isinstance(stage.app.screen, kind)
            await pilot.press("escape")
        dark = stage.app.current_theme.dark
        await stage.say(pilot, "/dark")
        assert stage.app.current_theme.dark is not dark
        await stage.say(pilot, "/quit")
        assert not stage.app.is_running


async def test_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    async with conversation(size=(100, 40)) as (stage, pilot):
        monkeypatch.setattr(stage.app, "open_url", lambda url, **_: opened.append(url))
        await stage.say(pilot, "/copy")
        assert stage.app.clipboard == "The sum is **933**."
        await stage.say(pilot, "/again")
        assert stage.engine.asked[1] == stage.engine.asked[0]
        stage.engine.think(*STEPS)
        await stage.settle(pilot)
        await stage.say(pilot, "/answer")
        assert stage.engine.answers_now == 1
        stage.engine.end_thought()
        await answer(stage, pilot, "See <https://one.example>.\n\n```sh\none\n```\n\n```sh\ntwo\n```")
        for line, code in (("/code", "two"), ("/code 1", "one")):
            await stage.say(pilot, line)
            assert stage.app.clipboard == code
        for line, name in (("/save", "code-2.sh"), ("/save 1", "code-1.sh")):
            await stage.say(pilot, line)
            assert isinstance(stage.app.screen, PathScreen)
            assert stage.app.screen.query_one(Input).value == name
            await pilot.press("escape")
        for line in ("/code 3", "/save 3"):
            await stage.say(pilot, line)
            assert told(stage)[-1] == "There is no block of code 3 here"
        await stage.say(pilot, "/open")
        assert opened == ["https://one.example"]
        await stage.say(pilot, "/edit")
        composer = stage.screen.query_one(Composer)
        assert composer.text == "What is 347 + 586?"
        await pilot.press("escape")
        await stage.say(pilot, "/continue")
        assert stage.engine.asked[-1][-1]["content"].startswith("See <https://one.example>")
        await answer(stage, pilot, "\n\nMore.")
        assert answers(stage)[0].endswith("More.")
        await pilot.press("up", "d", "escape")
        await stage.say(pilot, "/undo")
        assert answers(stage)[0].endswith("More.")


async def test_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with conversation(size=(120, 24)) as (stage, pilot):
        await stage.say(pilot, "/rename Sums of two")
        assert chats.list_sessions(stage.store)[0].title == "Sums of two"
        await stage.say(pilot, "/rename")
        line = stage.screen.query_one(Sidebar).query_one(Input)
        assert (stage.app.focused, line.value) == (line, "Sums of two")
        await pilot.press("escape", "escape")
        await stage.say(pilot, "/sessions")
        assert stage.screen.in_sidebar
        await pilot.press("escape")
        await stage.say(pilot, "/export")
        assert isinstance(stage.app.screen, PathScreen)
        assert stage.app.screen.query_one(Input).value == "sums-of-two.md"
        await pilot.press("escape")
        await stage.say(pilot, "/export sums.md")
        assert "**933**" in Path("sums.md").read_text()
        await stage.say(pilot, "/export sums.md")  # it is there now
        assert isinstance(stage.app.screen, PathScreen)
        await enter_twice_over(stage, pilot)
        await stage.say(pilot, "/new")
        assert stage.transcript.turns == []
        await stage.say(pilot, "/export")
        assert told(stage)[-1] == "There is nothing to export yet"


async def enter_twice_over(stage: Stage, pilot: Pilot[None]) -> None:
    """Only the second Enter after the same name replaces the file."""
    screen = stage.app.screen
    complaint = screen.query_one("#complaint")
    assert not complaint.display
    Path("sums.md").write_text("mine")
    await pilot.press("enter")
    assert complaint.display
    await pilot.press("end", "x", "backspace")
    assert not complaint.display
    await pilot.press("enter")
    assert complaint.display
    assert Path("sums.md").read_text() == "mine"
    await pilot.press("enter")
    await pilot.pause()
    assert stage.app.screen is stage.screen
    assert "**933**" in Path("sums.md").read_text()
