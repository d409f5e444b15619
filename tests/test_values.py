"""Dataclasses that are cheap to define behave as the standard library's."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import FrozenInstanceError, asdict, field, fields, replace
from typing import Any

import pytest

from ftllm import values


class _Point:
    x: int
    y: list[int] = field(default_factory=list)
    name: str = field(default="p", repr=False)
    seen: float = field(default=0.0, compare=False)


class _Named:
    """Has a method of its own for what is shared."""

    x: int

    def __repr__(self) -> str:
        return f"<{self.x}>"


def made(define: Any, shape: type, **options: bool) -> Any:
    members = {name: value for name, value in vars(shape).items() if name not in ("__dict__", "__weakref__")}
    return define(**options)(type("Point", (), members))


@pytest.mark.parametrize("options", [{}, {"frozen": True}])
def test_as_the_standard_librarys(options: dict[str, bool]) -> None:
    ours, theirs = (made(define, _Point, **options) for define in (values.dataclass, dataclasses.dataclass))

    def told(kind: Any) -> list[object]:
        one = kind(1, [2])
        return [
            repr(one),
            one == kind(1, [2]),
            one == kind(1, [2], seen=5.0),
            one == kind(1, [3]),
            one == (1, [2], "p"),
            asdict(one),
            replace(one, name="q").name,
            [member.name for member in fields(one)],
            copy.deepcopy(one) == one,
            kind.__match_args__,
            kind.__hash__ is None,
        ]

    assert told(ours) == told(theirs)


def test_a_frozen_value_stays() -> None:
    kind = made(values.dataclass, _Point, frozen=True)
    one = kind(1)
    for change in (lambda: setattr(one, "x", 2), lambda: setattr(one, "other", 2), lambda: delattr(one, "x")):
        with pytest.raises(FrozenInstanceError):
            change()
    assert one == kind(1)
    assert hash(kind(1, ())) == hash(kind(1, ()))
    with pytest.raises(TypeError):
        kind()


def test_methods_of_its_own_stay() -> None:
    assert repr(made(values.dataclass, _Named, frozen=True)(3)) == "<3>"


@values.dataclass(frozen=True)
class Base:
    """For the next."""

    time: float


@values.dataclass(frozen=True)
class Derived(Base):
    """At the module's level, to be pickled."""

    text: str = ""


def test_inherited() -> None:
    one = Derived(1.0, "a")
    assert repr(one) == "Derived(time=1.0, text='a')"
    assert pickle.loads(pickle.dumps(one)) == one
    assert one != Base(1.0)
    assert {one: 1}[Derived(1.0, "a")] == 1
