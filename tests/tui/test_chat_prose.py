"""What a model writes is shown as text and Markdown, and nothing else."""

from __future__ import annotations

import pytest
from tui_stage import Stage


async def test_what_a_model_writes_is_only_text() -> None:
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.engine.ready()
        await stage.settle(pilot)
        await stage.say(pilot, "[red]hello[/red] \x1b[31m")
        stage.engine.think("[bold]x[/bold] ", "\x1b]0;owned\x07 [@click=app.quit]y[/]")
        await stage.settle(pilot)
        assert "▌ [red]hello[/red] ␛[31m" in stage.drawn()
        assert "│ [bold]x[/bold] ␛]0;owned␇ [@click=app.quit]y[/]" in stage.drawn()
        stage.engine.end_thought()
        stage.engine.text("[b]a[/b] \x1b[2J\n", "<div>\nkept\n</div>\n")
        stage.engine.done()
        await stage.settle(pilot)
        start = stage.row("[b]a[/b] ␛[2J")
        assert stage.drawn()[start + 1 : start + 4] == ["<div>", "kept", "</div>"]


async def test_links_lead_to_web_pages_only(monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert "[file](file:///etc/passwd)" in stage.drawn()
        for text in ("safe", "[file]"):
            await pilot.click(stage.transcript, offset=(4, stage.row(text)))
        await stage.settle(pilot)
        assert opened == ["https://example.org/"]
