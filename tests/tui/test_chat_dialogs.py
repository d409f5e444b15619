"""What all dialogs share: what stands on their frame can be clicked."""

from __future__ import annotations

import pytest
from tui_stage import Stage

from tui.screens.dialog import Dialog


@pytest.mark.parametrize("key", ["f1", "f2", "f3"])
async def test_a_click_on_a_key_of_the_frame_presses_it(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tui.screens.models.local_entries", lambda _: [])
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await pilot.press(key)
        await stage.until(pilot, lambda: isinstance(stage.app.screen, Dialog))
        frame = stage.app.screen.query_one(".frame").region
        await pilot.click(offset=(frame.right - 5, frame.bottom - 1))  # Esc: back
        await stage.until(pilot, lambda: stage.app.screen is stage.screen)
