"""Files that appear whole or not at all, and their hashes."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ftllm.errors import UserError, WorkError

LARGEST_IMAGE = 256 << 20  # bytes

PARTIAL = ".partial"


def partial_path(path: Path) -> Path:
    """The name a file has while it is being written: `X.gguf` -> `X.gguf.partial`."""
    return path.with_name(path.name + PARTIAL)


def publish(path: Path) -> None:
    """Sync `path`'s partial file and give it its final name; the rename is synced too."""
    partial = partial_path(path)
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    partial.replace(path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make a rename in `directory` durable (a no-op where directories cannot be opened)."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):  # Windows
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_directory(directory: Path) -> int | None:
    """Lock a directory for as long as the descriptor is open; None where there are no such locks.

    Raises:
        BlockingIOError: another process has it.
        OSError: it cannot be opened.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # a file system without locks
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield the partial path to write to; publish it on success, remove it on any failure.

    Raises:
        WorkError: no space left on the device.
        UserError: the place cannot be written.
    """
    partial = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        publish(path)
    except OSError as error:
        with suppress(OSError):  # what kept it from being made keeps it from being removed
            partial.unlink(missing_ok=True)
        raise storage_error(error, path) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def storage_error(error: OSError, path: Path) -> Exception:
    """Translate an `OSError` met while writing `path` into the line a person should see."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return WorkError(f"no space left while writing {path}", "free some space, or write to another disk")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"cannot write {path}: {error.strerror}", "choose a directory you may write to")
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return UserError(f"cannot write {path}: {error.strerror}", "something else has that name; choose another")
    return error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as lowercase hex."""
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def xxh3_file(path: Path) -> str:
    """XXH3 of a file's bytes, 128 bits as lowercase hex: as telling as a hash where nobody means to deceive."""
    import xxhash

    digest, block = xxhash.xxh3_128(), memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while length := file.readinto(block):
            digest.update(block[:length])
    return digest.hexdigest()


def read_image(path: Path) -> bytes:
    """An image file's bytes, whatever they are.

    Raises:
        UserError: it cannot be read, or is absurdly large.
    """
    try:
        if path.stat().st_size > LARGEST_IMAGE:
            raise UserError(f"{path} is larger than {LARGEST_IMAGE >> 20} MiB", "give a smaller image")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"the image {path} cannot be read: {error.strerror}", "give a JPEG or PNG file") from None


def disk_free(path: Path) -> int:
    """Free bytes where `path` is, or will be."""
    place = path.resolve()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def human(size: float) -> str:
    """`3.2 MB`: decimal units, as disks and the Hub count."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
