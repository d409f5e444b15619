"""A module of Textual that the screen can do without at the start."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

NAME = "textual.types"


class Types(ModuleType):
    """Stands for `textual.types`, which imports trees and selections to name the types they define.

    Textual itself asks it for one type that has nothing to do with them. For any other the module itself is imported.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        light = import_module("textual._types")
        if hasattr(light, name):
            return getattr(light, name)
        if sys.modules.get(NAME) is self:
            del sys.modules[NAME]
        return getattr(import_module(NAME), name)


sys.modules.setdefault(NAME, Types(NAME))
