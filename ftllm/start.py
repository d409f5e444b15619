"""What Python works out anew at every start, remembered from the last one.

Two thirds of the wait for the chat's screen is importing: for each of some 450 modules folders are looked through and a
file of bytecode is opened; methods of dataclasses and named tuples are written as text and compiled; a hundred regular
expressions are compiled, in Python. All of that comes out as it did the last time, and is a third of the importing. So
it is put into one file, which lies where Python keeps bytecode (`__pycache__`) and is trusted as that is: a module's
bytecode counts for as long as its source has the size and the time of change it had.

Nothing depends on that file. Where it is missing, damaged, or made by another Python or with another `sys.path`,
everything is worked out as ever, and written anew. This module imports only what Python itself has imported by then.
"""

from __future__ import annotations

import _sre  # type: ignore[import-not-found]
import gc
import marshal
import mmap
import os
import sys
from _thread import RLock
from importlib.machinery import ModuleSpec, SourceFileLoader

TYPE_CHECKING = False  # `typing` is among what is to be quick
if TYPE_CHECKING:
    import re
    from collections.abc import Iterable, Iterator, Sequence
    from types import CodeType, ModuleType
    from typing import Any

MAGIC = b"ftstart1"
HEAD = 24  # bytes: MAGIC, the size of the index, the size of the file
PYC_HEAD = 16  # bytes: the magic number, flags, time and size of the source
DAMAGED = (ValueError, EOFError, TypeError)
if TYPE_CHECKING:
    Place = tuple[int, int]  # where it begins after the index, and its bytes
    Module = tuple[str, list[str] | None, str, int, int]  # source, a package's folders, bytecode's file, ns, bytes


class Loader(SourceFileLoader):
    """Loads a module from the bytecode that is remembered, once; after that it is any module's loader."""

    code: memoryview | None = None
    damaged = False

    def get_code(self, fullname: str) -> CodeType | None:
        """The module's code."""
        held, self.code = self.code, None
        if held is not None:
            try:
                code: CodeType = marshal.loads(held)
            except DAMAGED:
                self.damaged = True
            else:
                return code
        return super().get_code(fullname)


class Start:
    """One start of the program, with what is remembered of earlier ones.

    Args:
        path: the file; what it holds is used if it fits this Python.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._modules: dict[str, tuple[Module, Place]] = {}
        self._texts: dict[tuple[str, str], Place] = {}
        self._patterns: dict[tuple[Any, int], Place] = {}
        self._blobs = memoryview(b"")
        self._new_texts: dict[tuple[str, str], bytes] = {}
        self._new_patterns: dict[tuple[Any, int], bytes] = {}
        self._before: set[str] = set()
        self._lock = RLock()  # of what patterns are compiled by
        try:
            self._read()
        except (OSError, *DAMAGED):
            pass

    def _read(self) -> None:
        with open(self.path, "rb") as file:
            held = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        index, size = (int.from_bytes(held[at : at + 8], "little") for at in (8, 16))
        if held[:8] != MAGIC or size != len(held):
            return
        made_by, modules, texts, patterns = marshal.loads(held[HEAD : HEAD + index])
        if made_by == _this_python():
            self._modules, self._texts, self._patterns = modules, texts, patterns
            self._blobs = held[HEAD + index :]

    @property
    def begun(self) -> bool:
        """Whether it has begun, and not ended."""
        return self in sys.meta_path

    def begin(self) -> None:
        """From now on, take what is remembered, remember the rest, and do not look for garbage, for there is none."""
        gc.disable()
        self._before = set(sys.modules)
        sys.meta_path.insert(0, self)
        from re import _compiler  # type: ignore[attr-defined]

        self._compiler: Any = _compiler
        self._as_ever = _compiler.compile
        _compiler.compile = self._pattern
        import collections
        import dataclasses
        import typing

        # These modules compile text. A name that they have themselves comes before the builtin one.
        self._readers = [(dataclasses, "exec"), (collections, "eval"), (typing, "compile")]
        for module, name in self._readers:
            setattr(module, name, getattr(self, f"_{name}"))

    def end(self, write: bool) -> None:
        """From now on, work out everything as ever, and look for garbage among what comes; `write` what is new.

        What cannot be written is not remembered, and nobody is told.
        """
        if not self.begun:
            return
        with self._lock:
            sys.meta_path.remove(self)
            self._compiler.compile = self._as_ever
        gc.freeze()
        gc.enable()
        for module, name in self._readers:
            delattr(module, name)
        if write and not sys.dont_write_bytecode:
            try:
                self._write()
            except Exception:
                pass

    # What is taken.

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        """Where the module lies, if it is remembered and its source is as it was; a finder of `sys.meta_path`."""
        if name not in self._modules:
            return None
        (source, folders, cached, *stamp), place = self._modules[name]
        if _stamp(source) != tuple(stamp):
            return None
        loader = Loader(name, source)
        loader.code = self._blob(place)
        spec = ModuleSpec(name, loader, origin=source)
        spec.submodule_search_locations = folders
        spec.has_location, spec.cached = True, cached
        return spec

    def _blob(self, place: Place) -> memoryview:
        return self._blobs[place[0] : place[0] + place[1]]

    def _taken(self, place: Place | None) -> Any:
        if place is None:
            return None
        try:
            return marshal.loads(self._blob(place))
        except DAMAGED:
            return None

    def _code(self, text: str, mode: str) -> CodeType:
        if type(text) is not str:
            return compile(text, "<string>", mode, dont_inherit=True)
        key = (text, mode)
        code: CodeType | None = self._taken(self._texts.get(key))
        if code is None:
            code = compile(text, "<string>", mode, dont_inherit=True)
            self._new_texts[key] = marshal.dumps(code)
        return code

    def _exec(self, text: str, *names: Any) -> None:
        exec(self._code(text, "exec"), *names)

    def _eval(self, text: str, *names: Any) -> Any:
        return eval(self._code(text, "eval"), *names)

    def _compile(self, text: str, filename: str, mode: str) -> CodeType:
        return self._code(text, mode)

    def _pattern(self, pattern: Any, flags: int = 0) -> re.Pattern[Any]:
        compiled: re.Pattern[Any]
        plain = type(pattern) in (str, bytes)
        if plain and (made := self._taken(self._patterns.get((pattern, int(flags))))) is not None:
            compiled = _sre.compile(pattern, *made)
            return compiled
        with self._lock:
            if not plain or not self.begun:  # it may have ended while another thread had the lock
                compiled = self._as_ever(pattern, flags)
                return compiled
            engine = self._compiler._sre = _Engine()
            try:
                compiled = self._as_ever(pattern, flags)
            finally:
                self._compiler._sre = _sre
            self._new_patterns[pattern, int(flags)] = marshal.dumps(engine.made)
        return compiled

    # What is written.

    def _write(self) -> None:
        if not (new := dict(self._imported())):
            return  # new texts and patterns alone are no reason: one of Markdown's has its letters in random order
        modules = {
            name: (module, self._blob(place))
            for name, (module, place) in self._modules.items()
            if _stamp(module[0]) == module[3:]
        } | new
        texts = {key: self._blob(place) for key, place in self._texts.items()} | self._new_texts
        patterns = {key: self._blob(place) for key, place in self._patterns.items()} | self._new_patterns
        blobs = [*(blob for _, blob in modules.values()), *texts.values(), *patterns.values()]
        places = _places(blobs)
        index = marshal.dumps(
            (
                _this_python(),
                {name: (module, next(places)) for name, (module, _) in modules.items()},
                {key: next(places) for key in texts},
                {key: next(places) for key in patterns},
            )
        )
        size = HEAD + len(index) + sum(map(len, blobs))
        partial = f"{self.path}.{os.getpid()}.partial"  # others may be at the same
        try:
            with open(partial, "wb") as file:
                file.write(MAGIC + len(index).to_bytes(8, "little") + size.to_bytes(8, "little") + index)
                file.writelines(blobs)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.path)
        except OSError:
            os.unlink(partial)
            raise

    def _imported(self) -> Iterator[tuple[str, tuple[Module, bytes]]]:
        """The modules that came from elsewhere since this start began, with their bytecode."""
        for name, module in list(sys.modules.items()):
            spec = getattr(module, "__spec__", None)
            if name in self._before or spec is None or spec.name != name:
                continue
            if type(spec.loader) is not SourceFileLoader and not getattr(spec.loader, "damaged", False):
                continue
            stamp = _stamp(spec.origin)
            try:
                with open(spec.cached, "rb") as file:
                    bytecode = file.read()
            except OSError:
                continue
            flags, seconds, size = (int.from_bytes(bytecode[at : at + 4], "little") for at in (4, 8, 12))
            if stamp and (flags, seconds, size) == (0, stamp[0] // 10**9 & 0xFFFFFFFF, stamp[1] & 0xFFFFFFFF):
                folders = spec.submodule_search_locations
                if all(type(folder) is str for folder in folders or ()):
                    here = (spec.origin, None if folders is None else list(folders), spec.cached, *stamp)
                    yield name, (here, bytecode[PYC_HEAD:])


class _Engine:
    """Stands for `_sre` while one pattern is compiled, to see what of."""

    made: tuple[Any, ...]

    def __getattr__(self, name: str) -> Any:
        return getattr(_sre, name)

    def compile(self, pattern: Any, flags: int, code: list[int], groups: int, index: Any, order: Any) -> Any:
        self.made = (int(flags), [int(item) for item in code], groups, dict(index), tuple(order))
        return _sre.compile(pattern, *self.made)


def _this_python() -> tuple[Any, ...]:
    return (sys.version, tuple(sys.path), sys.flags.optimize, _sre.MAGIC)


def _stamp(source: str) -> tuple[int, int] | None:
    """When it was changed, in nanoseconds, and its bytes; None where it is not."""
    try:
        found = os.stat(source)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _places(blobs: Iterable[bytes | memoryview]) -> Iterator[Place]:
    at = 0
    for blob in blobs:
        yield at, len(blob)
        at += len(blob)


START = Start(f"{__spec__.cached or __file__}.start")
"""The program's own, whose file lies beside this module's bytecode."""
