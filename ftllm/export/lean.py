"""What torch and transformers import that an export has no use for, kept out: one to three seconds of each start."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

COMPILER = "torch._dynamo"
INDEXING = f"{COMPILER}._trace_wrapped_higher_order_op"
ALGEBRA = "sympy"
SYMBOLS = "torch.fx.experimental.symbolic_shapes"
MARKS = ("disable", "allow_in_graph", "assume_constant_result")  # what a function is to the compiler, else as it is


def skip_documentation() -> None:
    """Leave out the docstrings transformers writes for configurations: it imports all of its models for them.

    And have it look for a package's distribution by its name first: it asks for two, for which it reads what all hold.
    """
    look = importlib.metadata.packages_distributions
    importlib.metadata.packages_distributions = lambda: Distributions(look)
    try:
        writer: Any = importlib.import_module("transformers.utils.auto_docstring")
    finally:
        importlib.metadata.packages_distributions = look
    writer.auto_class_docstring = lambda described, **_: described


class Distributions(Mapping[str, list[str]]):
    """The distributions of each package; `look` tells of all, and is asked about those called otherwise alone."""

    def __init__(self, look: Callable[[], Mapping[str, list[str]]]) -> None:
        self._look = look

    @cached_property
    def _all(self) -> Mapping[str, list[str]]:
        return self._look()

    def __getitem__(self, package: str) -> list[str]:
        try:
            importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            return self._all[package]
        return [package]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Shapes of lazy tensors are computed, and models defined, by functions that are only marked for the compiler.

    They ask of every number whether it is a formula, for which a second's worth of algebra would be imported. Here all
    are numbers.
    """

    def mark(function: Any = None, *_: Any, **__: Any) -> Any:
        return function if function is not None else lambda marked: marked

    with (
        _stand_in(COMPILER, dict.fromkeys(MARKS, mark)),
        _stand_in(ALGEBRA, {"Basic": _Formula}),
        _stand_in(SYMBOLS, OF_NUMBERS),
    ):
        yield


class _Formula:
    """What nothing is an instance of."""


def _equal(one: Any, other: Any) -> bool:
    return tuple(one) == tuple(other) if isinstance(one, tuple | list) else bool(one == other)


OF_NUMBERS: dict[str, Callable[..., Any]] = {
    "expect_true": lambda value, *_, **__: bool(value),
    "guard_or_false": bool,
    "guard_or_true": bool,
    "guard_size_oblivious": bool,
    "guarding_hint_or_throw": lambda value: value,
    "has_guarding_hint": lambda _: True,
    "is_nested_int": lambda _: False,
    "statically_known_true": bool,
    "sym_and": lambda *values: all(values),
    "sym_eq": _equal,
    "sym_or": lambda *values: any(values),
}
"""What the functions of SYMBOLS come down to where nothing is symbolic."""


@contextmanager
def for_inference() -> Iterator[None]:
    """What transformers' models are imported in that run as they are, and in one place.

    For a way to make masks that few models take, the compiler's class is asked for when one is made so. What spreads a
    model over several processes is left out, as it is where torch was built without it.
    """
    skip_documentation()
    distributed: Any = importlib.import_module("torch.distributed")
    there = distributed.is_available
    with ExitStack() as stack:
        stack.callback(setattr, distributed, "is_available", there)
        distributed.is_available = lambda: False
        stack.enter_context(without_compiler())
        stack.enter_context(_stand_in(INDEXING, {"TransformGetItemToIndex": _indexing}))
        importlib.import_module("transformers.modeling_utils")
        yield


def _indexing() -> Any:
    return importlib.import_module(INDEXING).TransformGetItemToIndex()


@contextmanager
def _stand_in(name: str, values: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """A module with these values alone in place of one that is not imported yet; asked for others, it gives way."""
    if name in sys.modules:
        yield
        return
    module: Any = types.ModuleType(name)

    def give_way(wanted: str) -> Any:
        if wanted.startswith("__"):  # asked by importlib
            raise AttributeError(wanted)
        if sys.modules.get(name) is module:
            del sys.modules[name]
        return getattr(importlib.import_module(name), wanted)

    module.__dict__.update(values, __getattr__=give_way)
    sys.modules[name] = module
    try:
        yield
    finally:
        if sys.modules.get(name) is module:
            del sys.modules[name]
