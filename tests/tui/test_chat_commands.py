"""Commands: one list behind the slash, the palette and the help screen."""

from __future__ import annotations

from textual.command import CommandPalette
from textual.widgets import Static
from tui_stage import Stage, shown

from ftllm.chat.options import ReplyOptions
from tui.commands import is_command, key_name
from tui.screens.keys import KeysScreen
from tui.screens.settings import SettingsScreen
from tui.widgets.completions import Completions
from tui.widgets.composer import Composer


def offered(stage: Stage) -> list[str]:
    """The labels of the completions that are shown."""
    menu = stage.screen.query_one(Completions)
    return [line.split("  ")[0].strip() for line in shown(menu).splitlines()] if menu.display else []


def test_what_is_a_command() -> None:
    assert all(map(is_command, ["/temp 0.5", "/keep-preset my name", "/nonsense"]))
    assert not any(map(is_command, ["/usr/bin is full", "/", "/ temp", "/temp\nand more", "temp", "// comment", "/2"]))


def test_key_names() -> None:
    assert key_name("ctrl+end") == "Ctrl+End"
    assert key_name("up,k") == "Up, K"
    assert key_name("escape") == "Esc"


async def test_a_word_is_completed_and_its_values_too() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        await pilot.press(*"/thin")
        assert offered(stage) == ["/think [VALUE]"]
        await pilot.press("tab")
        assert stage.screen.query_one(Composer).text == "/think"
        await pilot.press("space")
        assert offered(stage) == ["auto", "on", "off"]
        await pilot.press("o")
        assert offered(stage) == ["on", "off", "auto"]
        await pilot.press("down", "enter")
        assert stage.screen.conversation.options == ReplyOptions(think="off")
        assert stage.screen.query_one(Composer).text == ""
        assert offered(stage) == []


async def test_up_wraps_and_escape_puts_the_list_away() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        await pilot.press(*"/loops ", "up", "escape")
        assert offered(stage) == []
        assert stage.screen.query_one(Composer).text == "/loops "
        await pilot.press("backspace", "space", "up", "enter")
        assert stage.screen.conversation.options.loops == "off"


async def test_what_is_wrong_comes_back_to_be_mended() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        for line in ("/temp warm", "/nonsense", "/keep-preset", "/theme pink", "/preset none"):
            stage.screen.query_one(Composer).load_text(line)
            await pilot.press("escape", "enter")
            await pilot.pause()
            assert stage.screen.query_one(Composer).text == line
        said = [notification.message for notification in stage.app._notifications]
        assert 'Temperature: a number from 0 to 5, or model, not "warm"' in said[0]
        assert "no command /nonsense" in said[1]
        assert "/keep-preset NAME" in said[2]
        assert "no theme pink" in said[3]
        assert "no preset none" in said[4]
        assert stage.engine.asked == []


async def test_ctrl_u_deletes_a_folded_line() -> None:
    stage = Stage()
    async with stage.app.run_test(size=(40, 20)) as pilot:
        composer = stage.screen.query_one(Composer)
        composer.load_text("first\n" + "words that are folded " * 5)
        composer.move_cursor(composer.document.end)
        await pilot.press("ctrl+u")
        assert composer.text == "first\n"


async def test_messages_that_begin_with_a_slash() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        for text, sent in (("/usr/bin is full", "/usr/bin is full"), ("//temp?", "/temp?")):
            await stage.say(pilot, text)
            assert stage.engine.asked[-1][-1]["content"] == sent
            stage.engine.text("Yes.")
            stage.engine.done()
            await stage.settle(pilot)


async def test_the_help_screen_lists_every_key_and_command() -> None:
    stage = Stage()
    async with stage.app.run_test(size=(100, 40)) as pilot:
        await pilot.press("f1")
        assert isinstance(stage.app.screen, KeysScreen)
        text = " ".join(shown(row) for row in stage.app.screen.query(Static))
        for kind in type(stage.screen).__mro__:
            for binding in vars(kind).get("BINDINGS", ()) if kind.__module__.startswith("tui.") else ():
                assert (binding.tooltip or binding.description) in text
                assert key_name(binding.key) in text
        assert "/temp [VALUE]" in text
        assert "Ctrl+T" in text
        await pilot.press("escape")
        assert stage.app.screen is stage.screen
        await stage.say(pilot, "/help")
        assert isinstance(stage.app.screen, KeysScreen)


async def test_the_palette_does_the_same() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        await pilot.press("ctrl+p")
        assert isinstance(stage.app.screen, CommandPalette)
        await pilot.press(*"budg")
        await stage.until(pilot, lambda: bool(stage.app.screen.query("CommandList").first().option_count))  # type: ignore[attr-defined]
        await pilot.press("enter")
        await stage.until(pilot, lambda: isinstance(stage.app.screen, SettingsScreen))
        assert stage.app.focused is stage.app.screen.query_one("#set-think_budget")
        await pilot.press("ctrl+p")
        assert isinstance(stage.app.screen, SettingsScreen)
        await pilot.press("escape", "ctrl+p", *"keep as")
        await stage.until(pilot, lambda: bool(stage.app.screen.query("CommandList").first().option_count))  # type: ignore[attr-defined]
        await pilot.press("enter")
        await stage.until(pilot, lambda: stage.screen.query_one(Composer).text == "/keep-preset ")


async def test_every_command_is_done_by_something() -> None:
    stage = Stage()
    async with stage.app.run_test():
        names = [command.name for command in stage.screen.commands if command.name]
        assert len(set(names)) == len(names)
        assert {"help", "settings", "preset", "temp", "system", "theme", "quit"} <= set(names)


async def test_a_completion_is_clicked() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        await pilot.press(*"/keep")
        assert offered(stage) == ["/keep-preset NAME", "/keep-defaults"]
        await pilot.click(Completions, offset=(4, 0))
        assert stage.screen.query_one(Composer).text == "/keep-preset "
        await pilot.press("ctrl+u", *"/loops ")
        assert offered(stage) == ["warn", "stop", "off"]
        await pilot.click(Completions, offset=(4, 2))
        await pilot.pause()
        assert stage.screen.conversation.options.loops == "off"
        assert stage.app.focused is stage.screen.query_one(Composer)
        await pilot.press("slash")
        await pilot.click(Completions, offset=(4, 8))  # how many there are
        assert stage.screen.query_one(Composer).text == "/"
