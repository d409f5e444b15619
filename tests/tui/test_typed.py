"""What is typed in by itself: keys that come faster than they are looked at."""

from __future__ import annotations

import pytest
from textual import events
from textual.app import App, ComposeResult
from textual.containers import Vertical

from tui.widgets.composer import Composer
from tui.widgets.typed import Field


class Alone(App[None]):
    def __init__(self, typed_in: Composer | Field) -> None:
        super().__init__()
        self.typed_in = typed_in

    def compose(self) -> ComposeResult:
        with Vertical(), Vertical():
            yield self.typed_in


async def type_at_once(app: Alone, keys: list[str]) -> None:
    """All keys in one go, as a terminal hands on what was typed while the screen was painted."""
    async with app.run_test() as pilot:
        app.typed_in.focus()
        await pilot.pause()
        for key in keys:
            app.post_message(events.Key(key, " " if key == "space" else key if len(key) == 1 else None))
        await pilot.pause()


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
    composer = Composer()
    await type_at_once(Alone(composer), keys)
    assert composer.text == written


@pytest.mark.parametrize(
    ("keys", "written"),
    [
        (["a", "b", "ctrl+u", "c", "d"], "cd"),
        (["t", "e", "h", "backspace", "backspace", "h", "e"], "the"),
        (["b", "c", "home", "a", "end", "d"], "abcd"),
        (["a", "c", "left", "b", "delete", "d"], "abd"),
    ],
)
async def test_in_a_field_of_a_dialog_too(keys: list[str], written: str) -> None:
    field = Field()
    await type_at_once(Alone(field), keys)
    assert field.value == written
