"""Scratch directories: what a killed process left goes, what belongs to a living one stays."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from ftllm.export.scratch import SETTLED, remove_stale, scratch

fcntl = pytest.importorskip("fcntl")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def aged(path: Path) -> Path:
    moment = path.stat().st_mtime - SETTLED - 1
    os.utime(path, (moment, moment))
    return path


def test_it_is_there_until_the_end(place: Path) -> None:
    with scratch() as directory:
        (directory / "weights.dat").write_bytes(b"x")
        assert directory.parent == place
        aged(directory)
        remove_stale()  # another export begins
        assert directory.is_dir()
    assert list(place.iterdir()) == []


def test_what_a_killed_process_left_goes(place: Path) -> None:
    stale, new, foreign = (place / name for name in ("ftllm-reference-a", "ftllm-reference-b", "other"))
    for path in (stale, new, foreign):
        path.mkdir()
        (path / "weights.dat").write_bytes(b"x")
    aged(stale)
    aged(foreign)
    remove_stale()
    assert not stale.exists()
    assert (new / "weights.dat").exists()  # may be about to be locked
    assert (foreign / "weights.dat").exists()
