"""From text to events, with a clock that stands still until it is moved."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ftllm.chat.events import AnyEvent, TextDelta, ThinkDelta, ThinkEnd, ThinkStart
from ftllm.chat.session import Reply, thought_title
from ftllm.chat.writer import Writer
from ftllm.thoughts import Splitter, ThoughtTags, split


class Stage:
    """A writer, its clock and what it told."""

    def __init__(self) -> None:
        self.now = 100.0
        self.told: list[AnyEvent] = []
        self.writer = Writer(self.told.append, 1, ThoughtTags(), clock=lambda: self.now)

    def say(self, text: str, *, after: float = 0.1, tokens: int = 1) -> None:
        self.now += after
        self.writer.take(text, tokens)


def test_a_thought_is_timed_to_the_hundredth() -> None:
    stage = Stage()
    for text in ("<th", "ink>", "\nDeep"):
        stage.say(text)
    stage.say(" thought.\n</think>", after=7.3, tokens=4)
    stage.say("\n\n42")
    stage.writer.finish("", why="unclosed")
    assert [type(event) for event in stage.told] == [ThinkStart, ThinkDelta, ThinkDelta, ThinkEnd, TextDelta]
    start, end = stage.told[0], stage.told[3]
    assert isinstance(end, ThinkEnd)
    assert start.time == pytest.approx(100.2)
    assert thought_title(end.seconds) == "Thought for 7.40 seconds"
    assert end.tokens == 7
    assert stage.told[4] == TextDelta(stage.now, 1, "42", tokens=1)
    assert (stage.writer.thought_tokens, stage.writer.answer_tokens) == (7, 1)


def test_deltas_are_coalesced_but_the_first_goes_out_at_once() -> None:
    stage = Stage()
    for _ in range(9):
        stage.say("a", after=1 / 128)
    stage.writer.finish("", why="unclosed")
    deltas = [(event.text, event.tokens) for event in stage.told if isinstance(event, TextDelta)]
    assert deltas == [("a", 1), ("aaa", 4), ("aaa", 7), ("aa", 9)]


def test_what_is_held_goes_out_when_it_is_asked_for_or_something_else_follows() -> None:
    stage = Stage()
    stage.writer.held = True
    stage.say("one")
    stage.say(" two")
    stage.say(" three")
    stage.writer.tell()
    stage.say(" four", after=0.01)
    stage.writer.tell()
    deltas = [event.text for event in stage.told if isinstance(event, TextDelta)]
    assert deltas == ["one", " two three"]  # the first at once; too little time has passed since the second
    stage.say("<think>Why?</think>")
    assert [type(event) for event in stage.told[2:]] == [TextDelta, ThinkStart, ThinkDelta, ThinkEnd]


def test_slow_tokens_go_out_one_by_one() -> None:
    stage = Stage()
    for text in ("one", " two", " three"):
        stage.say(text)
    assert [event.text for event in stage.told if isinstance(event, TextDelta)] == ["one", " two", " three"]


def test_a_thought_left_open_says_why() -> None:
    stage = Stage()
    stage.say("<think>")
    stage.say("so")
    stage.writer.finish("", why="stopped")
    assert stage.told[-1] == ThinkEnd(stage.now, 1, "stopped", stage.now - stage.told[0].time, 2)


def test_the_engine_can_close_a_thought() -> None:
    stage = Stage()
    stage.writer.open_thought()
    stage.say("so")
    stage.now += 1
    stage.writer.close_thought("\nEnough.\n", 5, "budget")
    stage.say("42")
    stage.writer.finish("", why="unclosed")
    kinds = [type(event) for event in stage.told]
    assert kinds == [ThinkStart, ThinkDelta, ThinkDelta, ThinkEnd, TextDelta]
    assert isinstance(stage.told[3], ThinkEnd)
    assert (stage.told[3].why, stage.told[3].tokens) == ("budget", 6)
    assert stage.writer.answered


fragments = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "</", "think>", "```\n", "\n", " ", "word", "ü"]), max_size=30
).map("".join)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example("<think>```\n</think>", [])
@given(fragments, st.lists(st.tuples(st.integers(0, 200), st.floats(0, 0.1)), max_size=20))
def test_cuts_and_times_do_not_change_what_is_said(text: str, cuts: list[tuple[int, float]]) -> None:
    stage = Stage()
    places = sorted({0, *(cut for cut, _ in cuts if cut < len(text)), len(text)})
    for (a, b), after in zip(pairwise(places), [after for _, after in cuts] + [0.01] * 40, strict=False):
        stage.say(text[a:b], after=after)
    stage.writer.finish("", why="cut")
    reply = Reply()
    for event in stage.told:
        reply.feed(event)
    starts = [event for event in stage.told if isinstance(event, ThinkStart)]
    ends = [event for event in stage.told if isinstance(event, ThinkEnd)]
    assert len(starts) == len(ends)
    assert stage.writer.thought_tokens + stage.writer.answer_tokens <= len(places)
    whole = Splitter()
    whole.feed(text)
    if not whole.thinking:  # closed beyond doubt: a tag hidden by a fence counts only at the end of a complete reply
        assert (reply.thought, reply.message.content) == split(text)[:2]
