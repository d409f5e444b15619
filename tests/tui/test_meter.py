"""The figures of the status line, from events."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.cells import cell_len

from ftllm.chat.events import (
    Done,
    Failed,
    Loaded,
    LoadProgress,
    PromptProgress,
    Stats,
    TextDelta,
    ThinkDelta,
    ThinkEnd,
    ThinkStart,
)
from tui.meter import Figures, Meter
from tui.widgets.status import status_content

LOADED = Loaded(0.0, 0, "m.gguf", "gemma3", 4096, 32768, 1, 1, 0.1)


def test_states_in_order() -> None:
    meter = Meter("m")
    states = [meter.figures.state]
    for event in (
        LoadProgress(0.0, 0, 0.43),
        LOADED,
        None,
        PromptProgress(1.0, 1, 0, 200),
        PromptProgress(1.1, 1, 100, 200),
        ThinkStart(1.2, 1),
        TextDelta(1.4, 1, "x"),
        Done(1.5, 1, "stop"),
    ):
        if event is None:
            meter.asked()
        else:
            meter.take(event)
        states.append(meter.figures.state)
    assert states == [
        "loading",
        "loading 43%",
        "ready",
        "reading",
        "reading",
        "reading 50%",
        "thinking",
        "answering",
        "ready",
    ]


def test_speed_while_it_runs() -> None:
    meter = Meter("m")
    meter.asked()
    meter.take(PromptProgress(1.0, 1, 30, 30))
    meter.take(ThinkStart(2.0, 1))
    meter.take(ThinkDelta(2.0, 1, "a", 1))
    assert meter.figures.tokens_per_second is None
    meter.take(ThinkDelta(3.0, 1, "b", 21))
    assert meter.figures.tokens_per_second == pytest.approx(20.0)
    meter.take(ThinkEnd(3.0, 1, "closed", 1.0, 22))
    meter.take(TextDelta(4.0, 1, "c"))
    assert meter.figures.tokens_per_second == pytest.approx(11.0)
    assert meter.figures.context_tokens == 30 + 22 + 1
    meter.take(TextDelta(5.0, 1, "many", tokens=21))
    assert meter.figures.tokens_per_second == pytest.approx(14.0)
    assert meter.figures.context_tokens == 30 + 22 + 21


def test_the_engines_own_figures_are_the_last_word() -> None:
    meter = Meter("m")
    meter.asked()
    meter.take(Stats(1.0, 1, 24, 0, 10, 5, 1.0, 0.21, 52.3, 4096, 39))
    assert meter.figures == Figures("m", "reading", 52.3, 0.21, 39, 4096)


def test_an_engine_started_again_for_a_message_is_not_ready_for_another() -> None:
    meter = Meter("m")
    meter.asked()
    meter.take(LOADED)
    assert meter.figures.state == "reading"
    meter.take(Failed(1.0, 1, "gone", ""))
    assert meter.figures.state == "failed"


FULL = Figures("some-model-Q4_K_M", "thinking", 52.34, 0.21, 2048, 4096)


def test_the_line_in_full() -> None:
    line = status_content(FULL, 100).plain
    assert line.startswith("thinking   some-model-Q4_K_M   ")
    assert line.endswith("   first after 0.21 s   52.3 tok/s   context 2048/4096 50%")
    assert cell_len(line) == 100


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 200])
def test_the_line_fits(width: int) -> None:
    line = status_content(FULL, width).plain
    assert line.startswith("thinking")
    assert cell_len(line) <= width or "context" in line


@pytest.mark.parametrize(("tokens", "style"), [(2047, ""), (2048, "$text-warning"), (3277, "$text-error")])
def test_a_filling_context_shows(tokens: int, style: str) -> None:
    content = status_content(Figures("m", "ready", None, None, tokens, 4096), 80)
    start = content.plain.index("context")
    assert [str(span.style) for span in content.spans if span.start == start] == ([style] if style else [])


def test_how_thoughts_are_asked_for() -> None:
    assert "think" in status_content(replace(FULL, think="auto"), 120).plain
    assert "   think on   52.3 tok/s" in status_content(replace(FULL, think="on"), 80).plain
    assert "first after" not in status_content(replace(FULL, think="on"), 70).plain
