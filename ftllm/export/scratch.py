"""A scratch directory of a process that may be killed: the next one removes it."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ftllm.files import lock_directory

PREFIX = "ftllm-reference-"
SETTLED = 60.0  # seconds after which a directory that nobody has locked is nobody's


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory in the temporary directory, removed at the end.

    It is locked for as long as its process lives, which tells it from what is left of a dead one.
    """
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as directory:
        descriptor = lock_directory(Path(directory))
        try:
            yield Path(directory)
        finally:
            if descriptor is not None:
                os.close(descriptor)


def remove_stale() -> None:
    """Remove what is left of processes that were killed."""
    for path in Path(tempfile.gettempdir()).glob(PREFIX + "*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > SETTLED and (descriptor := lock_directory(path)) is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(descriptor)
