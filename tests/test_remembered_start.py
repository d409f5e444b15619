"""What is remembered from one start of the program to the next, and when it no longer counts."""

from __future__ import annotations

import _sre  # type: ignore[import-not-found]
import dataclasses
import gc
import marshal
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import pytest

from ftllm.start import MAGIC, Start

ROOT = Path(__file__).resolve().parent.parent
MODULE = """
import re
from collections import namedtuple
from dataclasses import dataclass
from typing import Optional, Union

@dataclass(frozen=True, order=True)
class Point:
    x: int
    y: int = 2

Pair = namedtuple("Pair", "one two", defaults=[7])
Hint = Optional["Point"]
WORD = re.compile(r"(?P<first>[a-z])(?P<rest>\\w*)", re.IGNORECASE)
BYTES = re.compile(rb"\\d+$")
ANSWER = 42
"""
SHOWS = """
import sys
sys.path.insert(0, sys.argv[2])
from ftllm.start import Start
start = Start(sys.argv[1])
start.begin()
import made.up as it
start.end(write=True)
loader = it.__spec__.loader
print(type(loader).__module__ + "!" * getattr(loader, "damaged", False),
      it.ANSWER, it.Point(1), it.Point(1) < it.Point(2), it.Pair(3),
      it.WORD.fullmatch("ABC").groupdict(), it.BYTES.findall(b"a12"), it.__doc__, it.__file__ == it.__spec__.origin,
      it.__package__, len(start._new_texts), len(start._new_patterns))
"""
AS_EVER = "42 Point(x=1, y=2) True Pair(one=3, two=7) {'first': 'A', 'rest': 'BC'} [b'12'] None True made"


class Program:
    """A program of one package, whose starts are remembered in a file."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "it.start"
        self.source = folder / "made" / "up.py"
        self.source.parent.mkdir()
        (self.source.parent / "__init__.py").touch()
        self.write(MODULE)

    def write(self, text: str) -> None:
        self.source.write_text(text)

    def start(self, **environment: str) -> list[str]:
        """Where the module came from (a ! if that was damaged), what it does, and the texts and patterns compiled."""
        done = subprocess.run(
            [sys.executable, "-c", SHOWS, self.file, self.source.parent.parent],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | environment,
        )
        loader, shown = done.stdout.strip().split(" ", 1)
        shown, texts, patterns = shown.rsplit(" ", 2)
        return [loader, shown, texts, patterns]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def test_the_second_start_takes_what_the_first_found(program: Program) -> None:
    first, second = program.start(), program.start()
    assert first[:2] == ["_frozen_importlib_external", AS_EVER]
    assert int(first[2]) > 3
    assert int(first[3]) > 1
    assert second == ["ftllm.start", AS_EVER, "0", "0"]


def test_a_source_that_was_changed_is_read_again(program: Program) -> None:
    program.start()
    program.write(MODULE.replace("42", "43"))
    os.utime(program.source, (time.time() + 5, time.time() + 5))
    changed = program.start()
    assert changed[:2] == ["_frozen_importlib_external", AS_EVER.replace("42", "43")]
    assert program.start()[:2] == ["ftllm.start", AS_EVER.replace("42", "43")]


def test_a_module_that_is_gone_is_not_found(program: Program) -> None:
    program.start()
    program.source.unlink()
    with pytest.raises(subprocess.CalledProcessError) as failed:
        program.start()
    assert "ModuleNotFoundError" in failed.value.stderr


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "longer", "missing", "zeros"])
def test_a_damaged_file_is_none(program: Program, damage: str) -> None:
    program.start()
    whole = program.file.read_bytes()
    assert whole.startswith(MAGIC)
    match damage:
        case "missing":
            program.file.unlink()
        case "zeros":  # after the index, as a machine that lost its power can leave a file
            index = int.from_bytes(whole[8:16], "little")
            program.file.write_bytes(whole[: 24 + index] + bytes(len(whole) - 24 - index))
        case _:
            damaged = {"empty": b"", "cut": whole[:-1], "text": b"hello" * 100, "longer": whole + b"\0"}[damage]
            program.file.write_bytes(damaged)
    assert program.start()[1] == AS_EVER
    assert program.start() == ["ftllm.start", AS_EVER, "0", "0"]


def test_another_path_of_modules_has_its_own(program: Program, tmp_path: Path) -> None:
    program.start()
    other = tmp_path / "other"
    other.mkdir()
    elsewhere = program.start(PYTHONPATH=str(other))
    assert elsewhere[:2] == ["_frozen_importlib_external", AS_EVER]


def test_nothing_is_written_where_python_is_not_to_write(program: Program) -> None:
    program.start(PYTHONDONTWRITEBYTECODE="1")
    assert not program.file.exists()
    assert list(program.file.parent.glob("*.partial")) == []


def test_a_place_that_cannot_be_written_is_no_failure(program: Program) -> None:
    program.file.mkdir()
    assert program.start()[1] == AS_EVER
    assert list(program.file.parent.glob("*.partial")) == []


def test_everything_is_as_ever_after_the_end(tmp_path: Path) -> None:
    finders, compiler = list(sys.meta_path), re._compiler.compile  # type: ignore[attr-defined]
    start = Start(str(tmp_path / "it.start"))
    start.begin()
    assert not gc.isenabled()
    pattern = re.compile("(?x) new [0-9]{3} | other")
    start.end(write=False)
    gc.unfreeze()
    assert gc.isenabled()
    assert (sys.meta_path, re._compiler.compile) == (finders, compiler)  # type: ignore[attr-defined]
    assert "exec" not in vars(dataclasses)
    re.purge()
    assert pattern == re.compile("(?x) new [0-9]{3} | other")
    assert not (tmp_path / "it.start").exists()
    start.end(write=True)  # a second end does nothing
    assert not (tmp_path / "it.start").exists()


class Text(str):
    """A string of a class of its own, which cannot be remembered."""


def test_what_is_no_plain_string_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    start = Start(str(tmp_path / "it.start"))
    start.begin()
    pattern = re.compile(Text("no plain [s]tring"))
    import_module("colorsys")  # for it is modules that are written anew for
    start.end(write=True)
    gc.unfreeze()
    assert pattern.match("no plain string")
    kept = Start(str(tmp_path / "it.start"))
    assert (list(kept._modules), kept._patterns) == (["colorsys"], {})


def test_remembered_patterns_are_those_that_would_be_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = [("a|bc*", 0), (r"^(?P<x>\d+)\s(?P=x)", re.MULTILINE), ("[äöü]+?", re.IGNORECASE), (b"\xff(.)", re.DOTALL)]
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    first = Start(str(tmp_path / "it.start"))
    first.begin()
    re.purge()
    for pattern, flags in known:
        re.compile(pattern, flags)
    import_module("colorsys")  # for it is modules that are written anew for
    first.end(write=True)
    second = Start(str(tmp_path / "it.start"))
    second.begin()
    re.purge()
    taken = [re.compile(pattern, flags) for pattern, flags in known]
    assert second._new_patterns == {}
    second.end(write=False)
    gc.unfreeze()
    re.purge()
    made = [re.compile(pattern, flags) for pattern, flags in known]
    assert taken == made  # patterns are equal if their code is
    assert [dict(pattern.groupindex) for pattern in taken] == [dict(pattern.groupindex) for pattern in made]


def test_threads_that_compile_at_once_do_not_mix_their_patterns(tmp_path: Path) -> None:
    patterns = [f"(?P<a{number}>x{{{number}}}|[{number % 9}-9]+)" for number in range(120)]
    start = Start(str(tmp_path / "it.start"))
    start.begin()
    re.purge()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(re.compile, patterns))
            ending = pool.submit(start.end, write=False)  # while others compile
            made += pool.map(re.compile, [f"{pattern}+" for pattern in patterns])
            ending.result()
    finally:
        sys.setswitchinterval(interval)
        gc.unfreeze()
    found = {pattern: marshal.loads(blob) for (pattern, _), blob in start._new_patterns.items()}
    assert set(patterns) <= set(found)
    re.purge()
    for pattern, compiled in zip([*patterns, *(f"{pattern}+" for pattern in patterns)], made, strict=True):
        assert compiled == re.compile(pattern)
        if pattern in found:
            assert _sre.compile(pattern, *found[pattern]) == compiled
