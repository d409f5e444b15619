"""What all dialogs share: what stands on their frame can be clicked."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input
from tui_stage import Stage, converse

from tui.screens.dialog import Dialog


async def click_on_frame(stage: Stage, pilot: Pilot[None], key: str) -> None:
    """Click where a dialog's frame says what a key does."""
    screen = stage.app.screen
    frame = screen.query_one(".frame").region
    row, said = frame.bottom - 1, {"@click": f"screen.press('{key}')"}
    column = next(x for x in frame.column_range if screen.get_style_at(x, row).meta == said)
    await pilot.click(offset=(column, row))
    await pilot.pause()


@pytest.mark.parametrize("key", ["f1", "f2", "f3"])
async def test_a_click_on_a_key_of_the_frame_presses_it(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tui.screens.models.local_entries", lambda _: [])
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await pilot.press(key)
        await stage.until(pilot, lambda: isinstance(stage.app.screen, Dialog))
        await click_on_frame(stage, pilot, "escape")
        await stage.until(pilot, lambda: stage.app.screen is stage.screen)


async def test_a_file_is_written_by_a_click(tmp_path: Path) -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await converse(stage, pilot)
        await pilot.press("up", "x")
        stage.app.screen.query_one(Input).value = str(tmp_path / "chat.md")
        await click_on_frame(stage, pilot, "enter")
        await stage.until(pilot, lambda: stage.app.screen is stage.screen)
        assert "**933**" in (tmp_path / "chat.md").read_text()
