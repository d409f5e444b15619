"""Which class of transformers lies in which of its files, remembered from one start to the next.

Importing transformers reads its 2,500 sources to find that out, twice: 1.4 seconds. Here it is read once, and kept in
the user's cache until the installation changes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType

from ftllm.errors import UserError

MODULE = "transformers.utils.import_utils"
Structure = dict[frozenset[str], dict[str, set[str]]]  # by the packages they need, the classes of each module
Define = Callable[..., Structure]


def remember() -> None:
    """From now on an import of transformers takes what is remembered; it does nothing once it is imported."""
    if MODULE not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds one module as Python does, and loads it with another way to list classes."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != MODULE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        define: Define | None = getattr(module, "define_import_structure", None)
        if define is not None:
            models = Path(self.path).parent.parent / "models"
            module.define_import_structure = Listing(models, define)  # type: ignore[attr-defined]


class Listing:
    """Transformers' `define_import_structure`, which reads a directory's files; that of all models is remembered."""

    def __init__(self, models: Path, define: Define) -> None:
        self._models = models
        self._define = define
        self._known: Structure | None = None

    def __call__(self, module_path: str | Path, prefix: str | None = None) -> Structure:
        """The classes of the modules in `module_path`, a directory or a file in it, under `prefix`."""
        if Path(module_path) not in (self._models, self._models / "__init__.py"):
            return self._define(module_path, prefix)
        if self._known is None:
            self._known = self._read()
        start = "" if prefix is None else prefix + "."
        return {
            needed: {start + module: set(names) for module, names in modules.items()}
            for needed, modules in self._known.items()
        }

    def _read(self) -> Structure:
        mark = _mark(self._models)
        if mark is not None:
            with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or damaged
                kept = json.loads(_path().read_text(encoding="utf-8"))
                if kept["mark"] == mark:
                    return {
                        frozenset(needed): {module: set(names) for module, names in modules.items()}
                        for needed, modules in kept["structure"]
                    }
        found = self._define(str(self._models))
        if mark is not None:
            from ftllm.files import write_json

            lists = [
                [sorted(needed), {module: sorted(names) for module, names in modules.items()}]
                for needed, modules in found.items()
            ]
            with suppress(UserError, OSError):  # a cache that cannot be written is done without
                write_json(_path(), {"mark": mark, "structure": lists})
        return found


def _path() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("ftllm", appauthor=False) / "transformers.json"


def _mark(models: Path) -> dict[str, int | str] | None:
    """What another installation would change; None for one whose files may change by themselves."""
    records = list(models.parent.parent.glob("transformers-*.dist-info/RECORD"))
    if len(records) != 1:
        return None
    stat = records[0].stat()
    return {
        "record": str(records[0]),
        "size": stat.st_size,
        "written": stat.st_mtime_ns,
        "changed": stat.st_ctime_ns,
        "models": models.stat().st_mtime_ns,
    }
