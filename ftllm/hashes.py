"""SHA-256 of large files, remembered: a base of 24 GB takes a minute or more each time it is exported.

What was found goes into the user's cache, with the file's size, inode and times. A file that was written since has
another time of change, which no program can set (on Windows another time of writing), and is hashed anew.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ftllm.errors import UserError
from ftllm.files import sha256_file, write_json

LARGE = 64 << 20
"""Bytes, from which a hash is worth remembering."""

SETTLED = 2.0
"""Seconds after a file's last change, before which another could leave its times as they are."""


def cache_path() -> Path:
    """Where hashes are kept."""
    from platformdirs import user_cache_path

    return user_cache_path("ftllm", appauthor=False) / "hashes.json"


def known_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as lowercase hex; of a large one that is as it was, what was found before.

    Raises:
        OSError: the file cannot be read.
    """
    place = path.resolve()
    before = _mark(place)
    if before["size"] < LARGE:
        return sha256_file(place)
    entry = _read().get(str(place))
    if isinstance(entry, dict) and entry.get("file") == before and isinstance(entry.get("sha256"), str):
        return str(entry["sha256"])
    found = sha256_file(place)
    if _mark(place) == before and time.time() - max(before["changed"], before["written"]) / 1e9 > SETTLED:
        _remember(place, {"file": before, "sha256": found})
    return found


def _mark(place: Path) -> dict[str, int]:
    """What changes whenever a file does; times in nanoseconds."""
    stat = place.stat()
    return {
        "size": stat.st_size,
        "written": stat.st_mtime_ns,
        "changed": stat.st_ctime_ns,
        "inode": stat.st_ino,
        "device": stat.st_dev,
    }


def _read() -> dict[str, Any]:
    try:
        entries = json.loads(cache_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}


def _remember(place: Path, entry: dict[str, Any]) -> None:
    """Note it down, and forget files that are gone; a cache that cannot be written is done without."""
    entries = {name: known for name, known in _read().items() if Path(name).is_file()}
    with suppress(UserError, OSError):
        write_json(cache_path(), entries | {str(place): entry})
