"""What is done with messages, by key and by mouse: branches, copies, files, edits, more of a reply, deletions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from textual.widgets import Input, Static
from tui_stage import Stage, answer, answers, click, conversation, converse, notes, shown, told

from tui.screens.path import PathScreen
from tui.widgets.composer import Composer

CODE = "First:\n\n```python\nprint(1)\n```\n\nthen\n\n```sh\nls\nls -l\n```\n"


def composer(stage: Stage) -> Composer:
    return stage.screen.query_one(Composer)


async def test_branches_by_key_and_mouse() -> None:
    async with conversation() as (stage, pilot):
        await pilot.press("ctrl+r")
        await answer(stage, pilot, "Another sum.")
        assert stage.engine.asked[1] == stage.engine.asked[0]
        assert answers(stage) == ["Another sum."]
        assert "< 2/2 >" in stage.drawn()
        await pilot.press("ctrl+up", "left")
        assert answers(stage) == ["The sum is **933**."]
        assert "< 1/2 >" in stage.drawn()
        await pilot.press("right")
        assert answers(stage) == ["Another sum."]
        await pilot.press("escape")
        assert stage.app.focused is composer(stage)
        await click(stage, pilot, "< 2/2 >")
        assert answers(stage) == ["The sum is **933**."]
        row = stage.row("< 1/2 >")
        await pilot.click(stage.transcript, offset=(stage.transcript.render_line(row).text.index(">"), row))
        await stage.settle(pilot)
        assert answers(stage) == ["Another sum."]
        assert [node.message.content for node in stage.screen.conversation.nodes][1:] == ["Another sum."]


async def test_no_branch_is_left_while_a_reply_runs() -> None:
    async with conversation() as (stage, pilot):
        await pilot.press("ctrl+r")
        stage.engine.text("half")
        await stage.settle(pilot)
        await pilot.press("ctrl+up", "left")
        assert answers(stage) == ["half"]
        assert "Esc stops it" in told(stage)[-1]
        await pilot.press("r")  # stops it, and asks once more
        await stage.settle(pilot)
        assert stage.engine.stops == 1
        await answer(stage, pilot, "third")
        assert answers(stage) == ["third"]
        assert "< 3/3 >" in stage.drawn()


async def test_an_open_thought_stays_open_when_others_change() -> None:
    async with conversation() as (stage, pilot):
        await pilot.press("ctrl+up", "enter", "escape")
        await converse(stage, pilot, "And now?")
        await pilot.press("ctrl+r")
        await answer(stage, pilot, "Once more.")
        thoughts = [thought.open for turn in stage.transcript.turns for thought in turn.thoughts]
        assert thoughts == [True]


async def test_up_from_an_empty_composer_and_down_again() -> None:
    async with conversation() as (stage, pilot):
        await pilot.press("up")
        assert stage.app.focused is stage.transcript
        assert stage.transcript.selected is stage.transcript.turns[-1]
        assert "c copy   r again   m more   e edit   d delete" in stage.drawn()
        await pilot.press("up")
        assert stage.transcript.selected is stage.transcript.turns[0]
        assert "c copy   e edit   r again   d delete" in stage.drawn()
        await pilot.press("down", "down")
        assert stage.app.focused is composer(stage)
        await pilot.press("x", "up")
        assert stage.app.focused is composer(stage)


async def test_copying() -> None:
    async with conversation() as (stage, pilot):
        await pilot.press("up", "c")
        assert stage.app.clipboard == "The sum is **933**."
        await pilot.press("t")
        assert stage.app.clipboard.startswith("Step 0: write 0 and carry one.")
        await pilot.press("1")
        assert told(stage)[-1] == "There is no block of code 1 here"
        await pilot.press("escape")
        await stage.say(pilot, "Code!")
        await answer(stage, pilot, CODE)
        await pilot.press("up", "2")
        assert stage.app.clipboard == "ls\nls -l"
        await pilot.press("1")
        assert stage.app.clipboard == "print(1)"
        await pilot.press("up", "c")
        assert stage.app.clipboard == "Code!"
        await click(stage, pilot, "copy 2")
        assert stage.app.clipboard == "ls\nls -l"


async def test_the_tools_of_the_message_under_the_mouse() -> None:
    async with conversation() as (stage, pilot):
        await pilot.hover(stage.transcript, offset=(6, stage.row("The sum")))
        assert "copy   again   more   edit   delete" in stage.drawn()
        await click(stage, pilot, "copy   again")
        assert stage.app.clipboard == "The sum is **933**."
        assert stage.app.focused is composer(stage)
        await pilot.hover(composer(stage))
        assert "copy   again   more   edit   delete" not in stage.drawn()


async def test_a_terminal_without_a_clipboard_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TMUX", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "linux")
    async with conversation() as (stage, pilot):
        await pilot.press("ctrl+o")
        assert "this terminal has no clipboard" in told(stage)[-1]


async def test_saving_a_block_of_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with conversation() as (stage, pilot):
        await stage.say(pilot, "Code!")
        await answer(stage, pilot, CODE)
        await click(stage, pilot, "save")
        screen = stage.app.screen
        assert isinstance(screen, PathScreen)
        assert screen.query_one(Input).value == "code-1.py"
        await pilot.press("down")
        assert screen.query_one(Input).value == "code-2.sh"
        await pilot.press("enter")
        assert (tmp_path / "code-2.sh").read_text() == "ls\nls -l\n"
        assert told(stage)[-1] == f"Written: {tmp_path / 'code-2.sh'}"

        (tmp_path / "code-2.sh").write_text("mine")
        await pilot.press("up", "s", "enter")
        assert isinstance(stage.app.screen, PathScreen)
        assert "exists: Enter again replaces it" in shown(stage.app.screen.query_one("#complaint", Static))
        assert (tmp_path / "code-2.sh").read_text() == "mine"
        await pilot.press("enter")
        assert (tmp_path / "code-2.sh").read_text() == "ls\nls -l\n"

        await pilot.press("s")
        stage.app.screen.query_one(Input).value = str(tmp_path)
        await pilot.press("enter")
        assert "is a directory" in shown(stage.app.screen.query_one("#complaint", Static))
        stage.app.screen.query_one(Input).value = str(tmp_path / "code-2.sh" / "below.sh")
        await pilot.press("enter")
        assert "choose another" in shown(stage.app.screen.query_one("#complaint", Static))
        await pilot.press("escape")
        assert stage.app.screen is stage.screen


async def test_exporting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with conversation() as (stage, pilot):
        await pilot.press("up", "x", "enter")
        assert "**933**" in (tmp_path / "what-is-347-586.md").read_text()
        await pilot.press("x", "down", "enter")
        exported = json.loads((tmp_path / "what-is-347-586.json").read_text())
        assert [message["role"] for message in exported["messages"]] == ["user", "assistant"]
        await pilot.press("x")
        stage.app.screen.query_one(Input).value = "notes.doc"
        await pilot.press("enter")
        assert "use .json or .md" in shown(stage.app.screen.query_one("#complaint", Static))


async def test_editing_and_asking_again() -> None:
    async with conversation() as (stage, pilot):
        await pilot.press(*"draft", "ctrl+up", "up", "e")
        assert composer(stage).text == "What is 347 + 586?"
        await pilot.press("escape")
        assert composer(stage).text == "draft"
        assert len(stage.engine.asked) == 1
        await pilot.press("ctrl+up", "up", "e")
        composer(stage).load_text("What is 1 + 1?")
        await pilot.press("enter")
        assert stage.engine.asked[1] == [{"role": "user", "content": "What is 1 + 1?"}]
        assert composer(stage).text == "draft"
        await answer(stage, pilot, "2")
        assert answers(stage) == ["2"]
        assert "▌ What is 1 + 1?" in stage.drawn()
        await click(stage, pilot, "< 2/2 >")
        assert "▌ What is 347 + 586?" in stage.drawn()
        assert answers(stage) == ["The sum is **933**."]


async def test_editing_the_question_under_way_stops_its_reply() -> None:
    async with conversation() as (stage, pilot):
        await stage.say(pilot, "Wrong")
        stage.engine.text("half")
        await stage.settle(pilot)
        await pilot.press("up", "up", "e")
        composer(stage).load_text("Right")
        await pilot.press("enter")
        await stage.settle(pilot)
        assert stage.engine.stops == 1
        assert stage.engine.asked[-1][-1] == {"role": "user", "content": "Right"}
        await answer(stage, pilot, "whole")
        assert answers(stage) == ["The sum is **933**.", "whole"]


async def test_editing_a_reply() -> None:
    async with conversation() as (stage, pilot):
        await pilot.press("up", "e")
        composer(stage).load_text("It is 933.")
        await pilot.press("enter")
        await stage.settle(pilot)
        assert len(stage.engine.asked) == 1
        assert answers(stage) == ["It is 933."]
        assert "< 2/2 >" in stage.drawn()
        await stage.say(pilot, "Sure?")
        assert stage.engine.asked[1][1] == {"role": "assistant", "content": "It is 933."}


async def test_a_stopped_reply_goes_on() -> None:
    async with conversation() as (stage, pilot):
        await stage.say(pilot, "Count.")
        stage.engine.text("one, ")
        await stage.settle(pilot)
        await pilot.press("escape")
        await stage.settle(pilot)
        assert notes(stage) == ["Stopped."]
        await pilot.press("up", "m")
        assert stage.engine.asked[-1][-1] == {"role": "assistant", "content": "one,", "reasoning_content": ""}
        await answer(stage, pilot, " two")
        assert answers(stage)[-1] == "one, two"
        assert notes(stage) == []
        assert stage.screen.conversation.nodes[-1].message.content == "one, two"
        await pilot.press("up", "up", "m")
        assert told(stage)[-1] == "Only the last reply can go on"


async def test_deleting_and_undoing() -> None:
    async with conversation() as (stage, pilot):
        await stage.say(pilot, "Two")
        await answer(stage, pilot, "second")
        await pilot.press("up", "up", "up", "up", "d")
        assert answers(stage) == []
        assert told(stage)[-1] == "Deleted with 3 messages after it; u brings it back"
        await pilot.press("u")
        assert answers(stage) == ["The sum is **933**.", "second"]
        await pilot.press("ctrl+up", "u")
        assert told(stage)[-1] == "Nothing was deleted"


async def test_opening_a_link_by_key(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    async with conversation() as (stage, pilot):
        monkeypatch.setattr(stage.app, "open_url", lambda url, **_: opened.append(url))
        await pilot.press("ctrl+up", "o")
        assert told(stage)[-1] == "There is no link here"
        await pilot.press("escape")
        await stage.say(pilot, "Where?")
        await answer(stage, pilot, "At <https://one.example/a>, not [there](file:///etc/passwd).")
        await pilot.press("ctrl+up", "o")
        assert opened == ["https://one.example/a"]
        await pilot.press("escape")
        await stage.say(pilot, "Where else?")
        await answer(stage, pilot, "[Here](https://two.example), [here](https://two.example) or https://three.example.")
        await stage.say(pilot, "/open")
        await pilot.pause()
        await pilot.press(*"three", "enter")
        assert opened == ["https://one.example/a", "https://three.example"]
