"""Scrolling away from a reply under way, and coming back to its end."""

from __future__ import annotations

from textual import events
from tui_stage import Stage

from tui.widgets.marker import EndMarker
from tui.widgets.transcript import Transcript


async def test_scrolling_away_holds_and_coming_back_follows() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        transcript, marker = stage.screen.query_one(Transcript), stage.screen.query_one(EndMarker)
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "Write.")
        stage.engine.text(*(f"line {number}\n\n" for number in range(40)))
        await stage.settle(pilot)
        assert transcript.at_end
        assert not marker.display
        await pilot.press("pageup")
        await stage.settle(pilot)
        place = transcript.scroll_y
        assert 0 < place < transcript.max_scroll_y
        assert marker.display
        stage.engine.text(*(f"line {number}\n\n" for number in range(40, 80)))
        await stage.settle(pilot)
        assert transcript.scroll_y == place
        await pilot.click(marker)
        await stage.settle(pilot)
        assert transcript.at_end
        assert not marker.display
        stage.engine.text(*(f"line {number}\n\n" for number in range(80, 120)))
        await stage.settle(pilot)
        assert transcript.at_end


async def test_scrolling_by_wheel_and_keys() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        transcript = stage.screen.query_one(Transcript)
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "Write.")
        stage.engine.text(*(f"line {number}\n\n" for number in range(40)))
        await stage.settle(pilot)
        end = transcript.scroll_y
        await pilot._post_mouse_events([events.MouseScrollUp], transcript, (10, 5), button=0)
        await stage.settle(pilot)
        assert transcript.scroll_y < end
        await pilot.press("ctrl+home")
        await stage.settle(pilot)
        assert transcript.scroll_y == 0
        await pilot.press("pagedown")
        await stage.settle(pilot)
        assert transcript.scroll_y == transcript.size.height - 2
        await pilot.press("ctrl+end")
        stage.engine.text("more\n\n")
        await stage.settle(pilot)
        assert transcript.scroll_y > end


async def test_sending_goes_to_the_end() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        transcript = stage.screen.query_one(Transcript)
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "Write.")
        stage.engine.text(*(f"line {number}\n\n" for number in range(40)))
        stage.engine.done()
        await stage.settle(pilot)
        await pilot.press("ctrl+home")
        await stage.say(pilot, "More.")
        await stage.settle(pilot)
        assert transcript.at_end
