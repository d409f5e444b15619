"""Checkpoints and adapters on disk: directories that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ftllm.errors import UserError, WorkError
from ftllm.files import PARTIAL, sha256_file, storage_error, sync_directory, write_json

SEAL = "sha256.json"  # hashes of a checkpoint's files, written last
NAME = re.compile(r"checkpoint-(\d+)")
# How the libraries that write weights word a full disk: safetensors, torch.
NO_SPACE = re.compile(
    r"no space left|os error 28|disk quota|os error 122|file too large|os error 27"
    r"|file write failed|failed writing|unexpected pos",
    re.IGNORECASE,
)


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Yield a partial directory to fill; sync it and give it its final name, or remove it on any failure.

    Raises:
        WorkError: no space left on the device.
        UserError: the place cannot be written.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        for file in partial.iterdir():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(partial)
        if path.exists():
            shutil.rmtree(path)
        partial.replace(path)
        sync_directory(path.parent)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, UserError):
            raise
        if isinstance(error, Exception) and NO_SPACE.search(str(error)):
            error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if isinstance(error, OSError):
            raise storage_error(error, path) from error
        raise


def save(root: Path, step: int, fill: Callable[[Path], None], *, keep: int = 2) -> Path:
    """Write the checkpoint of `step`, sealed with the hashes of its files, and remove all but the last `keep`.

    Raises:
        WorkError: no space left; the checkpoints before are untouched.
    """
    path = root / f"checkpoint-{step}"
    with whole_directory(path) as partial:
        fill(partial)
        write_json(partial / SEAL, {file.name: sha256_file(file) for file in sorted(partial.iterdir())})
    for _, older in _all(root)[:-keep]:
        shutil.rmtree(older, ignore_errors=True)
    return path


def latest(root: Path, warn: Callable[[str], None]) -> tuple[int, Path] | None:
    """The newest whole checkpoint with its step; damaged and half-written ones are skipped with a warning."""
    if not root.is_dir():
        return None
    for leftover in sorted(root.glob(f"checkpoint-*{PARTIAL}")):
        warn(f"{leftover.name.removesuffix(PARTIAL)} was not written to its end; it is left out")
        shutil.rmtree(leftover, ignore_errors=True)
    for step, path in reversed(_all(root)):
        if _whole(path):
            return step, path
        warn(f"{path.name} is damaged; it is left out")
    return None


def _all(root: Path) -> list[tuple[int, Path]]:
    named = [(NAME.fullmatch(path.name), path) for path in root.iterdir() if path.is_dir()]
    return sorted((int(match[1]), path) for match, path in named if match)


def _whole(path: Path) -> bool:
    try:
        seal = json.loads((path / SEAL).read_text(encoding="utf-8"))
        return bool(seal) and all(sha256_file(path / name) == digest for name, digest in seal.items())
    except (OSError, ValueError, AttributeError):
        return False


def free_bytes(path: Path) -> int:
    """Free space on the disk that holds `path`, or will."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def require_space(path: Path, needed: int) -> None:
    """Refuse to begin work whose outputs cannot fit.

    Raises:
        WorkError: less than `needed` bytes are free.
    """
    free = free_bytes(path)
    if free < needed:
        message = f"{path}: {free / 1e6:.1f} MB are free, and this training writes about {needed / 1e6:.1f} MB"
        raise WorkError(message, "free some space, or choose another disk with --runs DIR")
