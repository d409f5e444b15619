"""The screens as they look, at two sizes, over replayed events and a clock that stands still.

`pytest tests/tui/test_chat_pictures.py --snapshot-update` accepts what they look like now; look at the SVG files first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, OptionList
from tui_stage import MODEL, Stage

from ftllm.chat import store as chats
from ftllm.chat.remote import Remote
from ftllm.chat.session import ChatMessage
from tui.models import Entry
from tui.widgets.composer import Composer

NOW = 10_000_000.0
ENTRIES = [
    Entry(MODEL, "gemma-ft", "run", "Q4_K_M", 2_490_000_000, 131_072),
    Entry(Path("a"), "runs/gemma-ft/gguf/gemma-3-4b-it-FT-Q8_0.gguf", "run", "Q8_0", 4_130_000_000, 131_072),
    Entry(Path("b"), "unsloth/gemma-3-27b-it-GGUF:Q4_K_M", "cache", "Q4_K_M", 16_500_000_000, 131_072, False),
    Entry(Path("c"), "models/千问-IQ2_XXS.gguf", "file", problem="cut short: it holds 2,000 of 9,000,000 bytes"),
    Entry(Remote("http://gpu-box:8000/v1", "Qwen/Qwen3-32B"), "Qwen/Qwen3-32B", "gpu-box:8000", context=40_960),
]

Scene = Callable[[Stage, Pilot[None]], Awaitable[None]]

QUESTION = "A shop sells 17 apples a day at 3 coins each. How many coins does it take in a week?"
THOUGHT = [
    "17 apples a day at 3 coins each.\n",
    "17 * 3 = 51 coins a day.\n",
    "A week has 7 days.\n",
    "51 * 7 = 350 + 7 = 357.\n",
]
ANSWER = """It takes in **357** coins.

| days | coins |
|-----:|------:|
| 1 | 51 |
| 7 | 357 |

```python
coins = 17 * 3 * 7  # 357
```
"""


async def loading(stage: Stage, pilot: Pilot[None]) -> None:
    stage.engine.load_progress(0.43)
    await stage.say(pilot, "Are you there already?")
    await pilot.press(*"And")


async def thinking(stage: Stage, pilot: Pilot[None]) -> None:
    stage.engine.ready()
    await stage.settle(pilot)
    await stage.say(pilot, QUESTION)
    stage.engine.prompt()
    stage.engine.think(*(f"Step {number}: add {number} and carry nothing at all.\n" for number in range(30)))
    await stage.settle(pilot)
    stage.clock.now += 3.1
    await stage.until(pilot, lambda: "3.1" in stage.title())
    await stage.say(pilot, "What about 12 apples?")


async def answered(stage: Stage, pilot: Pilot[None]) -> None:
    stage.engine.ready()
    await stage.settle(pilot)
    await stage.say(pilot, QUESTION)
    stage.engine.prompt()
    stage.engine.think(*THOUGHT)
    stage.engine.end_thought()
    stage.engine.text(ANSWER)
    stage.engine.done()


async def opened(stage: Stage, pilot: Pilot[None]) -> None:
    await answered(stage, pilot)
    await stage.settle(pilot)
    await pilot.press("ctrl+t")


async def stopped(stage: Stage, pilot: Pilot[None]) -> None:
    stage.engine.ready()
    await stage.settle(pilot)
    await stage.say(pilot, "Count.")
    stage.engine.text(*(f"{number}, " for number in range(100)))
    stage.engine.done("stopped", context_tokens=5000)


async def failed(stage: Stage, pilot: Pilot[None]) -> None:
    stage.engine.ready()
    await stage.settle(pilot)
    await stage.say(pilot, QUESTION)
    stage.engine.think(*THOUGHT)
    await stage.settle(pilot)
    stage.engine.crash()


async def wide(stage: Stage, pilot: Pilot[None]) -> None:
    stage.engine.ready()
    await stage.settle(pilot)
    await stage.say(pilot, "请用中文回答：三加四等于几？ 🙂")
    stage.engine.think("三加四" * 30, "\n= 七 👍🏽 👨‍👩‍👧 \u202eabc\x1b[31m")
    await stage.settle(pilot)
    stage.engine.end_thought(0.31, 1)
    stage.engine.text("答案是 **七** 🎉\n\n| 数 | 字 |\n|---|---|\n| 7 | 七 |\n| 10 | 十 🙂 |\n")
    stage.engine.done(context_tokens=7000)
    await stage.settle(pilot)
    await pilot.press("ctrl+t")


async def scrolled(stage: Stage, pilot: Pilot[None]) -> None:
    stage.engine.ready()
    await stage.settle(pilot)
    await stage.say(pilot, "List.")
    stage.engine.text(*(f"- item {number}\n" for number in range(60)))
    await stage.settle(pilot)
    await pilot.press("pageup")


async def keys(stage: Stage, pilot: Pilot[None]) -> None:
    await answered(stage, pilot)
    await stage.settle(pilot)
    await pilot.press("f1")


async def commands(stage: Stage, pilot: Pilot[None]) -> None:
    await answered(stage, pilot)
    await stage.settle(pilot)
    await pilot.press("slash")


async def palette(stage: Stage, pilot: Pilot[None]) -> None:
    await pilot.press("ctrl+p", "t", "h", "e", "m")
    await stage.until(pilot, lambda: stage.app.screen.query_one(OptionList).option_count > 0)
    stage.app.screen.query_one(Input).cursor_blink = False


async def settings(stage: Stage, pilot: Pilot[None]) -> None:
    await pilot.press("f2", "9")
    stage.app.screen.query_one("#set-temperature", Input).cursor_blink = False


async def settings_of_an_endpoint(stage: Stage, pilot: Pilot[None]) -> None:
    stage.engine.ready()
    await stage.settle(pilot)
    stage.screen.switch(Remote("http://gpu-box:8000/v1", "Qwen/Qwen3-32B"))
    stage.engine.ready(path="http://gpu-box:8000/v1 Qwen/Qwen3-32B")
    await stage.settle(pilot)
    await settings(stage, pilot)


async def models(stage: Stage, pilot: Pilot[None]) -> None:
    await answered(stage, pilot)
    await pilot.press("f3")
    await stage.until(pilot, lambda: stage.app.screen.query_one(OptionList).option_count == len(ENTRIES))
    stage.app.screen.query_one(Input).cursor_blink = False


async def selected(stage: Stage, pilot: Pilot[None]) -> None:
    await answered(stage, pilot)
    await stage.settle(pilot)
    await pilot.press("ctrl+r")
    stage.engine.text("Seven days of 51 coins: 357.\n\n```python\n7 * 51\n```\n")
    stage.engine.done()
    await stage.settle(pilot)
    await pilot.press("up")


async def editing(stage: Stage, pilot: Pilot[None]) -> None:
    await selected(stage, pilot)
    await pilot.press("up", "e")


async def saving(stage: Stage, pilot: Pilot[None]) -> None:
    await selected(stage, pilot)
    await pilot.press("s")
    stage.app.screen.query_one(Input).cursor_blink = False


async def sessions(stage: Stage, pilot: Pilot[None]) -> None:
    for title, question in (("Apples", "How many apples are 3 and 4?"), ("请用中文回答 🙂", "三加四等于几？")):
        info = chats.create_session(stage.store, title=title)
        asked = chats.add_user(stage.store, info.id, question, after=None)
        thought = "3 apples and 4 apples: 7 apples"
        chats.add_message(stage.store, info.id, ChatMessage("assistant", "7", thought=thought), after=asked.id)
    await answered(stage, pilot)
    await stage.settle(pilot)
    with stage.store.writing() as db:
        db.execute("UPDATE sessions SET updated = ? - (4 - id) * 7000", (NOW,))
    await pilot.press("ctrl+s")
    stage.screen.query_one(Input).cursor_blink = False


async def renaming(stage: Stage, pilot: Pilot[None]) -> None:
    await sessions(stage, pilot)
    await pilot.press("down", "ctrl+e")


async def copied(stage: Stage, pilot: Pilot[None]) -> None:
    await answered(stage, pilot)
    await stage.settle(pilot)
    await pilot.press("ctrl+o")


async def searching(stage: Stage, pilot: Pilot[None]) -> None:
    await sessions(stage, pilot)
    await pilot.press(*"apples")
    await stage.until(pilot, lambda: stage.screen.query_one(OptionList).option_count > 3)


def played(stage: Stage, scene: Scene, theme: str = "") -> Callable[[Pilot[None]], Awaitable[None]]:
    """The scene, as something to run before the picture is taken."""

    async def run(pilot: Pilot[None]) -> None:
        await stage.until(pilot, lambda: isinstance(stage.app.focused, Composer))
        stage.screen.query_one(Composer).cursor_blink = False
        stage.app.theme = theme or stage.app.theme
        await scene(stage, pilot)
        await stage.settle(pilot)

    return run


CONVERSATION: list[Scene] = [loading, thinking, answered, opened, stopped, failed, wide, scrolled]
ACTIONS: list[Scene] = [selected, editing, commands, copied]
DIALOGS: list[Scene] = [keys, palette, settings, settings_of_an_endpoint, models, saving, sessions, searching, renaming]
SIZES = [(80, 24), (200, 60)]


def names(value: Any) -> str:
    """Of a scene, or of a size."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else value.__name__


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tui.widgets.sidebar.now", lambda: NOW)
    monkeypatch.setattr("tui.screens.models.local_entries", lambda _: ENTRIES)
    for variable in ("TMUX", "TERM_PROGRAM", "DISPLAY", "WAYLAND_DISPLAY"):  # where copies go to
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.mark.parametrize("size", SIZES, ids=names)
@pytest.mark.parametrize("scene", [*CONVERSATION, *ACTIONS, *DIALOGS], ids=names)
def test_picture(snap_compare: Any, scene: Scene, size: tuple[int, int]) -> None:
    stage = Stage()
    assert snap_compare(stage.app, terminal_size=size, run_before=played(stage, scene))


@pytest.mark.parametrize("size", SIZES, ids=names)
@pytest.mark.parametrize("scene", [opened, selected, *DIALOGS], ids=names)
def test_picture_light(snap_compare: Any, scene: Scene, size: tuple[int, int]) -> None:
    stage = Stage()
    assert snap_compare(stage.app, terminal_size=size, run_before=played(stage, scene, "textual-light"))


@pytest.mark.parametrize("scene", [opened, selected, commands, settings, models, searching], ids=names)
def test_picture_without_colour(snap_compare: Any, monkeypatch: pytest.MonkeyPatch, scene: Scene) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stage = Stage()
    assert snap_compare(stage.app, run_before=played(stage, scene))


def test_picture_of_the_readme(snap_compare: Any) -> None:
    stage = Stage()
    assert snap_compare(stage.app, terminal_size=(96, 26), run_before=played(stage, opened))
