"""The settings form, by keyboard alone, and what becomes of what is chosen there."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Static, TextArea
from tui_stage import STEPS, Stage, converse, notes, shown, titles

from ftllm.chat import store as chats
from ftllm.chat.defaults import Defaults, parse_defaults, read_defaults
from ftllm.chat.options import ChatOptions, ReplyOptions, SamplingOptions
from ftllm.errors import UserError
from tui.screens.settings import SettingsScreen
from tui.widgets.choice import Choice

FILE = """# mine
temperature = 0.6

[presets.review]
system = "Review this."
temperature = 0.2
think = "on"
"""


def stage_with(path: Path, text: str = FILE) -> Stage:
    """The application with a settings file."""
    path.write_text(text)
    defaults = parse_defaults(text, path)
    reply = ReplyOptions(temperature=0.6)
    return Stage(ChatOptions(reply=reply, defaults=defaults))


def form(stage: Stage) -> SettingsScreen:
    screen = stage.app.screen
    assert isinstance(screen, SettingsScreen)
    return screen


async def fill(pilot: Pilot[None], text: str) -> None:
    """Type into the field that has the focus, in place of what it holds."""
    await pilot.press("end", "ctrl+u", *text)


async def test_settings_go_with_the_next_message(tmp_path: Path) -> None:
    stage = stage_with(tmp_path / "chat.toml")
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await converse(stage, pilot)
        await pilot.press("f2")
        assert stage.app.focused is form(stage).query_one("#set-temperature")
        await fill(pilot, "2")
        await pilot.press("down", *".9", "tab", "tab", "4", *["down"] * 4, "7", "down")
        await fill(pilot, "5")
        await pilot.press("tab", "right", "tab", "3", "enter")
        assert stage.app.screen is stage.screen
        await stage.say(pilot, "Go on.")
        expected = ReplyOptions(temperature=2, top_p=0.9, top_k=4, seed=7, max_tokens=5, think="on", think_budget=3)
        assert stage.engine.options == [ReplyOptions(temperature=0.6), expected]
        info = chats.list_sessions(stage.store)[0]
        assert info.options == expected
    assert (tmp_path / "chat.toml").read_text() == FILE


async def test_a_wrong_value_is_told_as_it_is_typed_and_not_taken(tmp_path: Path) -> None:
    stage = stage_with(tmp_path / "chat.toml")
    async with stage.app.run_test() as pilot:
        await pilot.press("f2")
        field = form(stage).query_one("#set-temperature", Input)
        assert field.parent is not None
        note = field.parent.query_one(".note", Static)
        assert shown(note) == "0 takes the likeliest token"
        await fill(pilot, "7")
        assert shown(note) == "✗ a number from 0 to 5, or empty"
        await pilot.press("down", "enter")
        assert form(stage).focused is field
        await fill(pilot, "")
        assert shown(note) == "0 takes the likeliest token"
        await pilot.press("enter")
        assert stage.screen.conversation.options.temperature is None


async def test_escape_leaves_everything_as_it_was(tmp_path: Path) -> None:
    stage = stage_with(tmp_path / "chat.toml")
    async with stage.app.run_test() as pilot:
        await pilot.press("f2", *"3", "escape")
        assert stage.app.screen is stage.screen
        assert stage.screen.conversation.options == ReplyOptions(temperature=0.6)


async def test_a_system_prompt_of_several_lines(tmp_path: Path) -> None:
    stage = stage_with(tmp_path / "chat.toml")
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "/system")
        assert isinstance(form(stage).focused, TextArea)
        await pilot.press(*"Be", "enter", *"me", "tab", "enter")
        await stage.say(pilot, "Hello")
        assert stage.engine.asked[0][0] == {"role": "system", "content": "Be\nme"}
        assert chats.list_sessions(stage.store)[0].system == "Be\nme"
        stage.engine.done()
        await stage.settle(pilot)
        await stage.say(pilot, "/system none")
        await stage.say(pilot, "Hello")
        assert stage.engine.asked[1][0]["role"] == "user"


async def test_a_preset_fills_the_form(tmp_path: Path) -> None:
    stage = stage_with(tmp_path / "chat.toml")
    async with stage.app.run_test() as pilot:
        await pilot.press("f4")
        assert form(stage).focused is form(stage).query_one("#preset")
        await pilot.press("right")
        assert form(stage).query_one("#set-system", TextArea).text == "Review this."
        assert form(stage).query_one("#set-temperature", Input).value == "0.2"
        assert form(stage).query_one("#set-think", Choice).value == "on"
        await pilot.press("left")
        assert form(stage).query_one("#set-temperature", Input).value == "0.6"
        await pilot.press("r", "enter")
        conversation = stage.screen.conversation
        assert (conversation.system, conversation.options) == (
            "Review this.",
            ReplyOptions(temperature=0.2, think="on"),
        )


async def test_there_are_no_presets() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        await pilot.press("f4")
        assert stage.app.screen is stage.screen
        await pilot.press("f2")
        assert not form(stage).query("#preset")


async def test_keeping_a_preset_and_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "chat.toml"
    stage = stage_with(path)
    async with stage.app.run_test() as pilot:
        await pilot.press("f2")
        await fill(pilot, "")
        await pilot.press("down", *"0.5")
        form(stage).query_one("#keep-as").focus()
        await pilot.press(*"half", "ctrl+s")
        assert stage.app.screen is stage.screen
        read = read_defaults(path)
        assert read.values == {"top_p": 0.5}
        assert read.presets["half"] == {"top_p": 0.5}
        assert read.presets["review"]["system"] == "Review this."
        assert path.read_text().startswith("# mine\n")
        await stage.say(pilot, "/top-p 0.1")
        await pilot.press("f6")
        assert stage.screen.conversation.options == ReplyOptions(top_p=0.5)
        await stage.say(pilot, "/drop-preset half")
        assert list(read_defaults(path).presets) == ["review"]


async def test_a_settings_file_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "chat.toml"
    stage = stage_with(path)
    async with stage.app.run_test() as pilot:
        path.write_text("someone = is editing this\n")
        await pilot.press("f2", "ctrl+s")
        await pilot.pause()
        assert "chat.toml:1: not TOML" in notes(stage)[0]
    assert path.read_text() == "someone = is editing this\n"


async def test_sampling_changes_for_a_reply_under_way() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "/temp 0.4")
        assert stage.engine.sampling == []
        await stage.say(pilot, "Write.")
        stage.engine.text("one ")
        await stage.settle(pilot)
        await stage.say(pilot, "/temp 0.1")
        await stage.say(pilot, "/max-tokens 5")
        assert stage.engine.sampling == [SamplingOptions(temperature=0.1)]


async def test_how_thoughts_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "chat.toml"
    stage = Stage(ChatOptions(defaults=Defaults({"thoughts": "closed"}, path=path)))
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "Think.")
        stage.engine.think(*STEPS)
        await stage.settle(pilot)
        assert not stage.drawn()[stage.row("▸ Thinking") + 1].startswith("│")
        stage.engine.end_thought()
        stage.engine.done()
        await stage.settle(pilot)
        await stage.say(pilot, "/thoughts open")
        assert titles(stage) == [] or titles(stage)[0].startswith("▾")
        assert "│ " + STEPS[-1].strip() in stage.drawn()
        await stage.say(pilot, "/thoughts hidden")
        assert titles(stage) == []
    assert read_defaults(path).values == {"thoughts": "hidden"}


async def test_the_theme_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "chat.toml"
    stage = Stage(ChatOptions(defaults=Defaults({"theme": "nord"}, path=path)))
    async with stage.app.run_test() as pilot:
        assert stage.app.theme == "nord"
        await stage.say(pilot, "/theme gruvbox")
        assert stage.app.theme == "gruvbox"
        await stage.say(pilot, "/theme")
        await pilot.press("n")
        assert stage.app.theme == "nord"
        await pilot.press("escape")
        assert stage.app.theme == "gruvbox"
    assert read_defaults(path).values == {"theme": "gruvbox"}


def test_a_theme_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no theme pink") as caught:
        Stage(ChatOptions(defaults=Defaults({"theme": "pink"}, path=tmp_path / "chat.toml")))
    assert "nord" in caught.value.hint
