"""The values of a training's settings: how they are read where they may be written in several ways."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator


def listed(value: Any) -> Any:
    """A single word where a list is expected is a list of one."""
    return [value] if isinstance(value, str | Path) else value


def trackers(value: Any) -> Any:
    """As a list; `none` is an empty one."""
    return [] if value in (None, "none") else listed(value)


def numbers(value: Any) -> Any:
    """A single number where a range may stand."""
    return value if isinstance(value, list | tuple) else (value,)


def _percent(value: Any) -> Any:
    """`70%` as 0.7; anything else as it is."""
    share = share_of(value) if isinstance(value, str) else None
    return value if share is None else share


def _within(share: float) -> float:
    if not 0 <= share <= 1:
        raise ValueError("a share lies between 0 and 1 (0.7 or 70%)")
    return share


def share_of(value: str | float) -> float | None:
    """`5%` or `0.05` as a number; None when it is neither."""
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", value.strip())
        if match is None:
            return None
        return float(match[1]) / 100 if match[2] else float(match[1])
    return float(value)


Share = Annotated[float, BeforeValidator(_percent), AfterValidator(_within)]


class _Switch:
    """What stands for `true` and `false` where they are no values."""


class Group(BaseModel):
    """A frozen set of keys; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _a_switch_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """`true` is 1 to Python; where no switch is expected, it is made something that nothing takes."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if annotation is bool or bool in get_args(annotation):
            return value
        if isinstance(value, list):
            return [_Switch() if isinstance(item, bool) else item for item in value]
        return _Switch() if isinstance(value, bool) else value
