"""What a model writes is shown as text and Markdown, and nothing else."""

from __future__ import annotations

import pytest
from textual.widgets import Static
from textual.widgets.markdown import MarkdownFence
from tui_stage import Stage, shown

from tui.widgets.prose import Prose
from tui.widgets.thought import ThoughtTail
from tui.widgets.transcript import Transcript
from tui.widgets.turns import UserTurn


async def test_what_a_model_writes_is_only_text() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "[red]hello[/red] \x1b[31m")
        stage.engine.think("[bold]x[/bold] ", "\x1b]0;owned\x07 [@click=app.quit]y[/]")
        await stage.settle(pilot)
        assert shown(stage.screen.query_one(UserTurn)) == "[red]hello[/red] ␛[31m"
        assert shown(stage.screen.query_one(ThoughtTail)) == "[bold]x[/bold] ␛]0;owned␇ [@click=app.quit]y[/]"
        stage.engine.end_thought()
        stage.engine.text("[b]a[/b] \x1b[2J\n", "<div>\nkept\n</div>\n")
        stage.engine.done()
        await stage.settle(pilot)
        drawn = " ".join(shown(block) for block in stage.screen.query("MarkdownBlock").results(Static))
        assert "[b]a[/b] ␛[2J" in drawn
        assert "<div>\nkept\n</div>" in drawn


async def test_a_streamed_document_ends_as_if_read_at_once() -> None:
    document = "# Sum\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
    document += "- one\n  ```python\n  print(1)\n  ```\n- [two][ref]\n\n[ref]: https://x.org\n"
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "Write.")
        for start in range(0, len(document), 7):
            stage.engine.text(document[start : start + 7])
            await pilot.pause(0.06)
        stage.engine.done()
        await stage.settle(pilot)
        streamed = stage.screen.query_one(Prose)
        whole = Prose(document)
        await stage.screen.query_one(Transcript).add(whole)
        await stage.settle(pilot)
        assert streamed.source == document
        assert outline(streamed) == outline(whole)
        assert len(streamed.query(MarkdownFence)) == 1


def outline(prose: Prose) -> list[str]:
    return [type(widget).__name__ for widget in prose.walk_children()]


async def test_links_of_other_kinds_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    stage = Stage()
    async with stage.app.run_test() as pilot:
        monkeypatch.setattr(stage.app, "open_url", lambda url, **_: opened.append(url))
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "Links.")
        stage.engine.text("[safe](https://example.org/)\n\n[file](file:///etc/passwd)\n")
        stage.engine.done()
        await stage.settle(pilot)
        safe, file = stage.screen.query("MarkdownParagraph")
        await pilot.click(safe, offset=(1, 0))
        await pilot.click(file, offset=(1, 0))
        await stage.settle(pilot)
        assert opened == ["https://example.org/"]
