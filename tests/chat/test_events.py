"""Events survive the pipe."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftllm.chat.events import (
    COMMANDS,
    KINDS,
    AnyCommand,
    AnyEvent,
    Failed,
    Generate,
    Load,
    SetSampling,
    TextDelta,
    command_from_json,
    command_to_json,
    from_json,
    to_json,
)
from ftllm.chat.options import LoadSettings, ReplyOptions, SamplingOptions

numbers = st.floats(allow_nan=False)


def strategy(kind: type[AnyEvent]) -> st.SearchStrategy[AnyEvent]:
    return st.builds(kind, **{field.name: numbers for field in fields(kind) if field.type == "float"})


events = st.one_of([strategy(kind) for kind in KINDS.values()]).filter(lambda event: "nan" not in repr(event))


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(events)
def test_round_trip(event: AnyEvent) -> None:
    line = to_json(event)
    assert "\n" not in line
    assert line.isascii()
    assert from_json(line) == event


def test_a_line_is_readable() -> None:
    line = '{"event": "text_delta", "time": 1.5, "reply": 2, "text": "\\u00e9", "tokens": 3}'
    assert to_json(TextDelta(1.5, 2, "é", 3)) == line
    assert from_json('{"event": "failed", "time": 0, "reply": 0, "message": "m", "hint": "", "log": ["a"]}') == Failed(
        0, 0, "m", "", log=("a",)
    )


@pytest.mark.parametrize(
    "line", ["", "null", "[]", "{}", '{"event": "what"}', '{"event": "done"}', '{"event": "done", "time": 0, "x": 1}']
)
def test_anything_else_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="not an event"):
        from_json(line)


messages = st.lists(st.fixed_dictionaries({"role": st.text(), "content": st.text()}), max_size=3).map(tuple)
commands = st.one_of(
    [
        st.builds(Load, settings=st.builds(LoadSettings)),
        st.builds(Generate, messages=messages, options=st.builds(ReplyOptions, temperature=st.none() | st.just(0.5))),
        st.builds(SetSampling, sampling=st.builds(SamplingOptions, top_p=st.none() | st.just(0.5))),
        *(st.builds(kind) for name, kind in COMMANDS.items() if name not in ("load", "generate", "set_sampling")),
    ]
)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(commands)
def test_commands_survive_the_pipe(command: AnyCommand) -> None:
    line = command_to_json(command)
    assert "\n" not in line
    assert line.isascii()
    assert command_from_json(line) == command


@pytest.mark.parametrize("line", ["", "[]", "{}", '{"command": "what"}', '{"command": "stop"}', '{"command": 3}'])
def test_what_is_no_command_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="not a command"):
        command_from_json(line)
