"""The engines' log files: what native code prints, one file a process, only those of failures kept for long."""

from __future__ import annotations

import os
import tempfile
import time
from itertools import count
from pathlib import Path

KEPT = 10  # log files of engines that ended badly
PREFIX = "engine-"

_serial = count(1)


def new_log(directory: Path | None = None) -> Path:
    """The path of a new, empty log file; old ones are removed.

    Args:
        directory: None for the user's state directory, or the temporary one where that cannot be written.
    """
    name = f"{PREFIX}{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{next(_serial)}.log"
    for place in (directory or _state_directory(), Path(tempfile.gettempdir())):
        try:
            place.mkdir(parents=True, exist_ok=True)
            _prune(place)
            (place / name).touch()
            return place / name
        except OSError:
            continue
    return Path(os.devnull)


def remove(log: Path) -> None:
    """Remove a log nobody needs."""
    if log.name.startswith(PREFIX):  # not /dev/null
        log.unlink(missing_ok=True)


def last_lines(log: Path, lines: int) -> tuple[str, ...]:
    """The last lines of a log that hold anything, oldest first."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 200 * lines))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ()
    return tuple(line for line in text.splitlines() if line.strip())[-lines:]


def _state_directory() -> Path:
    from platformdirs import user_state_path

    return user_state_path("ftllm", appauthor=False)


def _prune(directory: Path) -> None:
    """Remove all but the newest logs; a log written to in the last day may belong to a running engine."""
    logs = sorted(directory.glob(f"{PREFIX}*.log"))
    for log in logs[:-KEPT]:
        if time.time() - log.stat().st_mtime > 24 * 3600:
            log.unlink(missing_ok=True)
