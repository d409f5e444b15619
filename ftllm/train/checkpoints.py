"""Checkpoints and adapters on disk: directories that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ftllm.errors import UserError, WorkError
from ftllm.files import PARTIAL, sha256_file, storage_error, sync_directory, write_json
from ftllm.train.metrics import read_state

SEAL = "sha256.json"  # hashes of a checkpoint's files, written last
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
BEST = re.compile(r"best-(\d+)")
KEPT = 2  # whole checkpoints, should the newest turn out damaged
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


def save(root: Path, step: int, fill: Callable[[Path], None]) -> Path:
    """Write the checkpoint of `step`, sealed with the hashes of its files, and remove all but the last `KEPT`.

    Args:
        root: where the run's checkpoints are.
        step: after which it is taken.
        fill: writes its files into a directory; `metrics.json` must be among them.

    Raises:
        WorkError: no space left; the checkpoints before are untouched.
    """
    path = root / f"checkpoint-{step}"
    _save_sealed(path, fill)
    for _, older in _numbered(root, CHECKPOINT)[:-KEPT]:
        shutil.rmtree(older, ignore_errors=True)
    _drop_outdone(root)
    return path


def save_best(root: Path, step: int, fill: Callable[[Path], None]) -> Path:
    """Write the best adapter so far, that of `step`; earlier ones go, but for those a checkpoint still refers to.

    Raises:
        WorkError: no space left; what was there before is untouched.
    """
    path = root / f"best-{step}"
    _save_sealed(path, fill)
    _drop_outdone(root, step)
    return path


def _save_sealed(path: Path, fill: Callable[[Path], None]) -> None:
    with whole_directory(path) as partial:
        fill(partial)
        write_json(partial / SEAL, {file.name: sha256_file(file) for file in sorted(partial.iterdir())})


def _drop_outdone(root: Path, current: int | None = None) -> None:
    """Remove the best adapters of which neither a checkpoint nor the run itself (`current`) says that they are best."""
    needed = {current}
    for _, checkpoint in _numbered(root, CHECKPOINT):
        with suppress(UserError):
            needed.add(read_state(checkpoint)["best"])
    for step, path in _numbered(root, BEST):
        if step not in needed:
            shutil.rmtree(path, ignore_errors=True)


def latest(root: Path, warn: Callable[[str], None]) -> tuple[int, Path] | None:
    """The newest whole checkpoint with its step; damaged and half-written ones are skipped with a warning.

    A checkpoint is whole when its files, and those of the adapter it calls the best so far, are as they were written.
    """
    if not root.is_dir():
        return None
    for leftover in sorted(root.glob(f"*{PARTIAL}")):
        warn(f"{leftover.name.removesuffix(PARTIAL)} was not written to its end; it is left out")
        shutil.rmtree(leftover, ignore_errors=True)
    for step, path in reversed(_numbered(root, CHECKPOINT)):
        damaged = _damaged(root, path)
        if damaged is None:
            return step, path
        warn(f"{damaged} is damaged; {'it' if damaged == path.name else path.name} is left out")
    return None


def _damaged(root: Path, checkpoint: Path) -> str | None:
    """What of a checkpoint is not as it was written: itself, or the best adapter it refers to; None when all is."""
    if not _whole(checkpoint):
        return checkpoint.name
    try:
        best = read_state(checkpoint)["best"]
    except UserError:
        return checkpoint.name
    return None if best is None or _whole(root / f"best-{best}") else f"best-{best}"


def _numbered(root: Path, name: re.Pattern[str]) -> list[tuple[int, Path]]:
    """The directories in `root` of that kind of name with their steps, oldest first."""
    named = [(name.fullmatch(path.name), path) for path in root.iterdir() if path.is_dir()]
    return sorted((int(match[1]), path) for match, path in named if match)


def _whole(path: Path) -> bool:
    try:
        seal = json.loads((path / SEAL).read_text(encoding="utf-8"))
        return bool(seal) and all(sha256_file(path / name) == digest for name, digest in seal.items())
    except (OSError, ValueError, AttributeError):
        return False


def best(root: Path, step: int) -> Path:
    """Where the adapter of `step` was set aside.

    Raises:
        WorkError: it is not whole.
    """
    path = root / f"best-{step}"
    if not _whole(path):
        raise WorkError(f"{path}, the best adapter, is damaged", "resume the run: it goes on from an older checkpoint")
    return path


def bytes_needed(trainable: int, *, measured: bool) -> int:
    """What a training may write at once: checkpoints while another is being written, best adapters, the adapter.

    Args:
        trainable: parameters of the adapter, in float32; a checkpoint has AdamW's two moments of each besides.
        measured: whether best adapters are set aside: one for each checkpoint, and one being written.
    """
    adapters = 3 * (KEPT + 1) + 1 + (KEPT + 1 if measured else 0)
    return 4 * trainable * adapters + 2**20


def free_bytes(path: Path) -> int:
    """Free space on the disk that holds `path`, or will."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def require_space(root: Path, needed: int) -> None:
    """Refuse to begin work whose outputs cannot fit.

    Args:
        root: where checkpoints go; those there already are part of what is needed.
        needed: bytes in all.

    Raises:
        WorkError: less is free.
    """
    path = root.parent
    free = free_bytes(path) + sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
    if free < needed:
        message = f"{path}: {free / 1e6:.1f} MB are free, and this training writes about {needed / 1e6:.1f} MB"
        raise WorkError(message, "free some space, or choose another disk with --runs DIR")
