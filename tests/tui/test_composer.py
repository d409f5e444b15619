"""The composer by itself: keys that come faster than they are looked at."""

from __future__ import annotations

import pytest
from textual import events
from textual.app import App, ComposeResult
from textual.containers import Vertical

from tui.widgets.composer import Composer


class Alone(App[None]):
    def compose(self) -> ComposeResult:
        with Vertical(), Vertical():
            yield Composer()


@pytest.mark.parametrize(
    ("keys", "written"),
    [
        (["a", "b", "ctrl+u", "c", "d"], "cd"),
        (["t", "e", "h", "backspace", "backspace", "h", "e"], "the"),
        (["b", "c", "home", "a"], "abc"),
        (["o", "n", "e", "space", "t", "w", "o", "ctrl+w", "2"], "one 2"),
        (["a", "c", "left", "b", "ctrl+j", "d"], "ab\ndc"),
    ],
)
async def test_keys_work_in_the_order_they_were_pressed_in(keys: list[str], written: str) -> None:
    app = Alone()
    async with app.run_test() as pilot:
        composer = app.query_one(Composer)
        composer.focus()
        await pilot.pause()
        for key in keys:  # all at once, as a terminal hands on what was typed while the screen was painted
            app.post_message(events.Key(key, " " if key == "space" else key if len(key) == 1 else None))
        await pilot.pause()
        assert composer.text == written
