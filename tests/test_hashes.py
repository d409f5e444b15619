"""Remembered hashes are those of the file as it is."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from ftllm import hashes
from ftllm.hashes import cache_path, known_sha256


@pytest.fixture(autouse=True)
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read to be hashed; small ones count as large, and new ones as settled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "LARGE", 4)
    monkeypatch.setattr(hashes, "SETTLED", 0.0)
    seen: list[Path] = []
    real = hashes.sha256_file
    monkeypatch.setattr(hashes, "sha256_file", lambda path: (seen.append(path), real(path))[1])
    return seen


def of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_file_is_read_once(tmp_path: Path, reads: list[Path]) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    link = tmp_path / "snapshot"
    link.symlink_to(file)
    assert [known_sha256(path) for path in (file, file, link)] == [of(b"weights")] * 3
    assert reads == [file]


@pytest.mark.parametrize("change", ["size", "bytes", "replaced"])
def test_a_file_that_changed_is_read_again(change: str, tmp_path: Path, reads: list[Path]) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    known_sha256(file)
    before = file.stat()
    if change == "replaced":
        (tmp_path / "other").write_bytes(b"Weights")
        (tmp_path / "other").replace(file)
    else:
        file.write_bytes(b"more weights" if change == "size" else b"Weights")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as `cp -p` and archives leave it
    assert known_sha256(file) == of(file.read_bytes()) != of(b"weights")
    assert len(reads) == 2


def test_what_was_written_just_now_is_not_remembered(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "SETTLED", 60.0)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    assert known_sha256(file) == known_sha256(file) == of(b"weights")
    assert len(reads) == 2
    assert not cache_path().exists()


def test_small_files_and_files_that_are_gone_are_not_kept(tmp_path: Path) -> None:
    small, gone, there = (tmp_path / name for name in ("small", "gone", "there"))
    for file, data in ((small, b"abc"), (gone, b"weights"), (there, b"more weights")):
        file.write_bytes(data)
        known_sha256(file)
        if file == gone:
            assert str(gone) in cache_path().read_text()
            gone.unlink()
    kept = cache_path().read_text()
    assert [str(file) in kept for file in (small, gone, there)] == [False, False, True]


@pytest.mark.parametrize("damage", [b"", b"[]", b"\xff\xfe", b'{"x', b'{"PATH": 3}', b'{"PATH": {"sha256": "1"}}'])
def test_a_damaged_cache_is_done_without(damage: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    cache_path().parent.mkdir(parents=True)
    cache_path().write_bytes(damage.replace(b"PATH", str(file).encode()))
    assert known_sha256(file) == of(b"weights")


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    (tmp_path / "cache").write_text("no directory")
    assert known_sha256(file) == of(b"weights")
