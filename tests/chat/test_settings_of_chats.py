"""Settings as a person types them, and as a file holds them."""

from __future__ import annotations

from dataclasses import fields

import pytest

from ftllm.chat.options import ReplyOptions
from ftllm.chat.settings import BY_NAME, OF_REPLIES, SETTINGS, Value, reply_options, values_of
from ftllm.errors import UserError


def test_every_choice_about_a_reply_can_be_set() -> None:
    unset = {"ignore_end", "delta_seconds"}  # for measuring, and for whoever draws the reply
    assert {field.name for field in fields(ReplyOptions)} - unset == set(OF_REPLIES)


def test_each_has_a_name_a_command_and_words_of_its_own() -> None:
    for names in zip(
        *((setting.name, setting.command, setting.label, setting.help) for setting in SETTINGS), strict=True
    ):
        assert len(set(names)) == len(SETTINGS)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", " 0.6 ", 0.6),
        ("temperature", "0", 0.0),
        ("temperature", "model", None),
        ("temperature", "", None),
        ("top_k", "40", 40),
        ("seed", "random", None),
        ("seed", "4294967295", 4294967295),
        ("think", "ON", "on"),
        ("think_budget", "none", None),
        ("think_budget", "0", 0),
        ("system", "  Be brief.\n", "Be brief."),
        ("system", "none", None),
        ("system", "", None),
        ("theme", "nord", "nord"),
        ("speculate", "On", True),
        ("template_kwargs", "reasoning_effort=high 'tools=[1, 2]'", {"reasoning_effort": "high", "tools": [1, 2]}),
        ("template_kwargs", "none", {}),
    ],
)
def test_what_is_typed(name: str, text: str, value: Value) -> None:
    parsed = BY_NAME[name].parse(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("temperature", "hot", 'Temperature: a number from 0 to 5, or model, not "hot"'),
        ("temperature", "5.01", 'Temperature: a number from 0 to 5, or model, not "5.01"'),
        ("temperature", "0,6", 'Temperature: a number from 0 to 5, or model, not "0,6"'),
        ("temperature", "nan", 'Temperature: a number from 0 to 5, or model, not "nan"'),
        ("top_k", "1.5", 'Top-k: a whole number from 0, or model, not "1.5"'),
        ("max_tokens", "0", 'Max tokens: a whole number from 1, not "0"'),
        ("max_tokens", "", 'Max tokens: a whole number from 1, not ""'),
        ("speculate", "yes", 'Speculate: true or false, not "yes"'),
        ("template_kwargs", "high", 'Template: variables as in reasoning_effort=high, not "high"'),
        ("template_kwargs", "a='", 'Template: variables as in reasoning_effort=high, not "a=\'"'),
        ("think", "maybe", 'Thinking: one of auto, on, off, not "maybe"'),
    ],
)
def test_what_is_typed_wrongly(name: str, text: str, complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        BY_NAME[name].parse(text)
    assert caught.value.message == complaint


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_what_is_shown_can_be_typed(setting: object) -> None:
    values = {
        **values_of(
            "Be brief.", ReplyOptions(temperature=0.71234567, template_kwargs={"a": "b c", "d": [1, {"e": None}]})
        ),
        "thoughts": "auto",
        "theme": "nord",
    }
    one = BY_NAME[setting.name]  # type: ignore[attr-defined]
    assert one.parse(one.show(values[one.name])) == values[one.name]


def test_settings_change_only_what_they_name() -> None:
    before = ReplyOptions(temperature=0.3, seed=7)
    assert reply_options({"seed": None, "top_k": 5, "system": "x"}, before) == ReplyOptions(temperature=0.3, top_k=5)
