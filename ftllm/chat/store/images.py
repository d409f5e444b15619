"""Images that were shown in a chat: copied beside the database, for a screenshot's own file is soon gone.

Each lies in `images/<hash>/<its name>`, once however often it was shown. A store in memory has no such folder; there
images stay where they are.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from ftllm.errors import UserError
from ftllm.files import read_image, storage_error, whole_file

PLACE = re.compile(r"[0-9a-f]{32}/[^/]+")
LATELY = 3600.0  # seconds in which an image may be on its way into a message


def keep(folder: Path | None, images: Sequence[str]) -> tuple[str, ...]:
    """Copy images into the folder; their paths there.

    Raises:
        UserError: one cannot be read, or the folder not be written.
        WorkError: the disk is full.
    """
    if folder is None:
        return tuple(images)
    return tuple(
        image if Path(image).is_relative_to(folder) else _kept(folder, Path(image).name, read_image(Path(image)))
        for image in images
    )


def keep_bytes(folder: Path | None, name: str, data: bytes) -> str:
    """An image from elsewhere, which may call itself whatever it likes; its path."""
    if folder is None:
        raise UserError("chats in memory keep no images", "give the chats a place that can be written")
    plain = name.replace("\\", "/").replace("\0", "").rpartition("/")[2][-100:]
    return _kept(folder, plain if plain.strip(".") else "image", data)


def to_row(folder: Path | None, images: Sequence[str]) -> str:
    """Images as a message's row has them: a JSON list, relative to the folder."""
    return json.dumps([str(Path(image).relative_to(folder)) if folder else image for image in images])


def from_row(folder: Path | None, text: str) -> tuple[str, ...]:
    """The paths of the images of a row."""
    return tuple(str(folder / name) for name in _names(text)) if folder else tuple(json.loads(text))


def tidy(folder: Path, connection: sqlite3.Connection, rows: Iterable[str] | None = None) -> None:
    """Remove images that no message shows any more: those of removed `rows`, else all that are not very new."""
    if not folder.is_dir():
        return
    left = connection.execute("SELECT images FROM messages WHERE images != '[]'")
    used = {Path(name).parts[0] for (text,) in left for name in _names(text)}
    if rows is None:
        old = time.time() - LATELY
        places = [place for place in folder.iterdir() if place.stat().st_mtime < old]
    else:
        places = [folder / Path(name).parts[0] for text in rows for name in _names(text)]
    for place in places:
        if place.name not in used:
            shutil.rmtree(place, ignore_errors=True)


def _names(text: str) -> list[str]:
    """The places in the folder that a row names; nothing else that a damaged row may hold."""
    try:
        return [name for name in json.loads(text) if PLACE.fullmatch(name)]
    except (ValueError, TypeError):
        return []


def _kept(folder: Path, name: str, data: bytes) -> str:
    import hashlib

    path = folder / hashlib.sha256(data).hexdigest()[:32] / name
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        os.utime(path.parent)
        if not path.is_file():
            with whole_file(path) as partial:
                partial.write_bytes(data)
    except OSError as error:
        raise storage_error(error, path) from error
    return str(path)
