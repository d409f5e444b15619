"""What torch and transformers import that a conversion has no use for, kept out: a second of the worker's start."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

COMPILER = "torch._dynamo"


def skip_documentation() -> None:
    """Leave out the docstrings transformers writes for configurations: it imports all of its models for them."""
    writer: Any = importlib.import_module("transformers.utils.auto_docstring")
    writer.auto_class_docstring = lambda described, **_: described


@contextmanager
def without_compiler() -> Iterator[None]:
    """Shapes of lazy tensors are computed by functions that load torch's compiler only to be left alone by it."""
    if COMPILER in sys.modules:
        yield
        return
    stand_in: Any = types.ModuleType(COMPILER)
    stand_in.disable = lambda function, *_, **__: function
    sys.modules[COMPILER] = stand_in
    try:
        yield
    finally:
        del sys.modules[COMPILER]
