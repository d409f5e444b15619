"""What a reply under way costs on the screen: how often it is painted, and that nothing is laid out for it."""

from __future__ import annotations

from random import Random

import pytest
from textual.geometry import Region
from tui_stage import Stage

from ftllm.chat.events import Loaded
from tui.screens.talk import SHARE, rest_after
from tui.widgets.transcript import Transcript

PIECES = [
    "word ",
    "some more words ",
    "**bold** ",
    "\n\n",
    "\n- an item\n",
    "\n```python\nx = 1\n",
    "\n```\n\n",
    "\n# A\n",
]


def test_how_long_the_screen_rests_between_two_paints() -> None:
    assert rest_after(0.01) == 0.05
    assert rest_after(0.03) == 0.1
    assert rest_after(0.3) == 0.3  # half of the time, on a slow machine
    assert rest_after(0.01, 0.003) == pytest.approx(0.003 / SHARE - 0.01)  # beside an engine that waits for it
    assert rest_after(0.01, 0.03) == 0.2
    assert rest_after(0.3, 0.03) == 0.3


@pytest.mark.parametrize("shared", [False, True])
async def test_a_reply_that_grows_lays_nothing_out(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.play([Loaded(0.0, 0, "nano.gguf", "", 8192, 8192, 0, 0, 0.3, shares_cores=shared)])
        await stage.settle(pilot)
        await stage.say(pilot, "Write.")
        stage.engine.text(*(f"line {number}\n\n" for number in range(40)))
        await stage.settle(pilot)
        assert stage.transcript.show_vertical_scrollbar
        layouts, layout = 0, stage.screen._refresh_layout

        def counted(*arguments: object, **named: object) -> None:
            nonlocal layouts
            layouts += 1
            layout(*arguments, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(stage.screen, "_refresh_layout", counted)
        for number in range(40, 50):
            stage.engine.text(f"line {number}\n\n")
            await stage.settle(pilot)
        assert layouts == 0
        assert "line 49" in stage.drawn()
        assert stage.transcript.at_end
        bar = stage.transcript.vertical_scrollbar
        assert bar.window_virtual_size == stage.transcript.virtual_size.height
        assert bar.position == stage.transcript.scroll_y


@pytest.mark.parametrize("size", [(80, 24), (50, 12)])
async def test_what_has_not_changed_is_not_drawn_again(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(11)
    stage = Stage()
    async with stage.app.run_test(size=size) as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "Write.")
        transcript, rows = stage.transcript, range(stage.transcript.size.height)
        told: list[int] = []
        refresh = transcript.refresh

        def noted(*regions: Region, **named: bool) -> Transcript:
            told.extend(row for region in regions for row in region.line_range)
            told.extend(() if regions else rows)
            return refresh(*regions, **named)

        monkeypatch.setattr(transcript, "refresh", noted)
        spared = 0
        for step in range(150):
            if step % 40 == 25:
                await pilot.press("pageup" if random.random() < 0.5 else "ctrl+end")
            shown = [transcript.render_line(row).text for row in rows]
            told.clear()
            stage.engine.text(random.choice(PIECES))
            await stage.settle(pilot)
            now = [transcript.render_line(row).text for row in rows]
            assert {row for row in rows if shown[row] != now[row]} <= set(told)
            spared += len(set(rows) - set(told))
    assert spared > 75 * len(rows)
