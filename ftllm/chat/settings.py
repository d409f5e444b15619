"""What a person can set about a chat: one table, read by the settings file, the settings screen and its commands."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias, get_args

from ftllm.chat.options import LoopMode, Overflow, ReplyOptions, ThinkMode, ThoughtMode, template_kwargs_of
from ftllm.errors import UserError
from ftllm.values import dataclass

Value: TypeAlias = str | int | float | bool | Mapping[str, Any] | None
Values: TypeAlias = Mapping[str, Value]
"""Settings by name."""

UNSET_WORDS = ("", "default", "none")
ON, OFF = "on", "off"
MANY = 2**31 - 1  # tokens: what llama.cpp counts in


@dataclass(frozen=True)
class Setting:
    """One of them.

    Attributes:
        name: its key in the settings file; a field of `ReplyOptions`, but for `system`, `thoughts` and `theme`.
        label: what the screen calls it.
        command: what it is called after a slash.
        help: what it does, on one line.
        kind: of its values: str, int, float, bool or dict.
        low, high: bounds of a number, themselves allowed.
        choices: the only values allowed, where there are few.
        unset: how to say that it is left to someone else (None); empty where it cannot be.
    """

    name: str
    label: str
    command: str
    help: str
    kind: type = str
    low: float = 0
    high: float = math.inf
    choices: tuple[str, ...] = ()
    unset: str = ""

    @property
    def rule(self) -> str:
        """What its values are, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.kind in WORDS:
            return WORDS[self.kind]
        noun = "a whole number" if self.kind is int else "a number"
        return f"{noun} from {self.low:g}" + (f" to {self.high:g}" if self.high < MANY else "")

    def check(self, value: object) -> Value:
        """A value as the settings file has it.

        Raises:
            UserError: it is none.
        """
        match value:
            case bool() if self.kind is bool:
                return value
            case dict() if self.kind is dict:
                return value
            case str() if self.kind is str and (not self.choices or value in self.choices):
                return value
            case int() if self.kind is int and not isinstance(value, bool) and self.low <= value <= self.high:
                return value
            case int() | float() if self.kind is float and not isinstance(value, bool):
                if self.low <= value <= self.high:  # a NaN is not
                    return float(value)
        raise UserError(f"{self.name}: {self.rule}, not {_shown(value)}")

    def parse(self, text: str) -> Value:
        """A value as a person types it.

        Raises:
            UserError: it is none.
        """
        text = text.strip()
        rule = f"{self.rule}, or {self.unset}" if self.unset else self.rule
        if self.name == "system":
            return None if text.lower() in ("", self.unset) else text
        if self.unset and text.lower() in (*UNSET_WORDS, self.unset):
            return None
        try:
            if self.kind is dict:
                return template_kwargs_of(shlex.split("" if text in UNSET_WORDS else text))
            if self.kind is bool:
                return {ON: True, OFF: False, "true": True, "false": False}[text.lower()]
            if self.kind is str:
                return self.check(text.lower() if self.choices else text)
            return self.check(self.kind(text))
        except (ValueError, KeyError, UserError):
            raise UserError(f"{self.label}: {rule}, not {_shown(text)}") from None

    def show(self, value: Value) -> str:
        """A value as a person types it."""
        match value:
            case None:
                return self.unset
            case bool():
                return ON if value else OFF
            case float():
                return repr(value).removesuffix(".0")
            case Mapping():
                texts = {name: one if isinstance(one, str) else json.dumps(one) for name, one in value.items()}
                return shlex.join(f"{name}={text}" for name, text in texts.items())
            case _:
                return str(value)


WORDS: Mapping[type, str] = {str: "a text", bool: "true or false", dict: "variables as in reasoning_effort=high"}
SYSTEM = Setting("system", "System prompt", "system", "What the model is told first", unset="none")
REPLY_SETTINGS = (
    Setting("temperature", "Temperature", "temp", "0 takes the likeliest token", float, 0, 5, unset="model"),
    Setting("top_p", "Top-p", "top-p", "The likeliest with this share in all", float, 0, 1, unset="model"),
    Setting("min_p", "Min-p", "min-p", "Drop below this share of the likeliest", float, 0, 1, unset="model"),
    Setting("top_k", "Top-k", "top-k", "So many of the likeliest; 0 for all", int, 0, MANY, unset="model"),
    Setting(
        "repeat_penalty",
        "Repeat penalty",
        "penalty",
        "Above 1: repeats recent tokens less",
        float,
        0.1,
        5,
        unset="model",
    ),
    Setting(
        "frequency_penalty",
        "Freq. penalty",
        "frequency",
        "Above 0: the more often, the less",
        float,
        -2,
        2,
        unset="model",
    ),
    Setting(
        "presence_penalty",
        "Pres. penalty",
        "presence",
        "Above 0: words it has not used yet",
        float,
        -2,
        2,
        unset="model",
    ),
    Setting("seed", "Seed", "seed", "The same seed, the same reply", int, 0, 2**32 - 1, unset="random"),
    Setting("max_tokens", "Max tokens", "max-tokens", "Of a reply, thoughts included", int, 1, MANY),
    Setting("think", "Thinking", "think", "Let the model choose, or not", choices=get_args(ThinkMode)),
    Setting("think_budget", "Think budget", "budget", "Tokens of thought at most", int, 0, MANY, unset="none"),
    Setting("loops", "Loop guard", "loops", "When it goes in circles", choices=get_args(LoopMode)),
    Setting("overflow", "Full context", "overflow", "Drop the oldest turns, or stop", choices=get_args(Overflow)),
    Setting("speculate", "Speculate", "speculate", "Draft what was said before", bool),
    Setting("template_kwargs", "Template", "template", "Its variables: reasoning_effort=high", dict),
)
THOUGHTS = Setting("thoughts", "Thoughts are", "thoughts", "How thoughts are shown", choices=get_args(ThoughtMode))
THEME = Setting("theme", "Theme", "theme", "The colours of the screen")
SETTINGS = (SYSTEM, *REPLY_SETTINGS, THOUGHTS, THEME)
ENDPOINT_DECIDES = ("overflow", "speculate")
"""Settings of the engine on this machine, which are not sent to an endpoint."""
ENDPOINT_MAY_IGNORE = ("min_p", "top_k", "repeat_penalty", "think", "think_budget", "template_kwargs")
"""Settings that OpenAI's API does not have: an endpoint that does not know them ignores them, and does not say so."""
BY_NAME = {setting.name: setting for setting in SETTINGS}
OF_REPLIES = tuple(setting.name for setting in REPLY_SETTINGS)


def at_endpoint(setting: Setting) -> str:
    """How far a setting reaches with a model behind an endpoint; empty where it does what it says."""
    if setting.name in ENDPOINT_DECIDES:
        return "the endpoint decides that itself"
    return "the endpoint may ignore it" if setting.name in ENDPOINT_MAY_IGNORE else ""


def values_of(system: str | None, options: ReplyOptions) -> dict[str, Value]:
    """How a conversation goes on, as settings."""
    return {"system": system, **{name: getattr(options, name) for name in OF_REPLIES}}


def reply_options(values: Values, options: ReplyOptions | None = None) -> ReplyOptions:
    """`options` with the settings that `values` holds."""
    given = {name: value for name, value in values.items() if name in OF_REPLIES}
    return replace(options or ReplyOptions(), **given)  # type: ignore[arg-type]


def _shown(value: object) -> str:
    text = f'"{value}"' if isinstance(value, str) else f"{value}".lower() if isinstance(value, bool) else f"{value}"
    return text if len(text) <= 40 else text[:39] + "…"
