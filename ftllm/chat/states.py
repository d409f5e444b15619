"""Where the KV caches of kept sessions lie between two runs: in the user's cache, for all of it can be made again."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

KEPT_BYTES = 4 << 30  # of all sessions together; a long conversation with a 4B model takes about 1 GB
SUFFIX = ".kv"


def state_file(uid: str) -> Path:
    """The place of a session's state, `uid` as `ftllm.chat.store` names it."""
    return directory() / f"{uid}{SUFFIX}"


def label_of(state: Path) -> Path:
    """The file beside a state that says whose it is."""
    return state.with_name(state.name + ".json")


def directory() -> Path:
    """Where all states are."""
    from platformdirs import user_cache_path

    return user_cache_path("ftllm", appauthor=False) / "states"


def prune(keep: Path, limit: int = KEPT_BYTES) -> None:
    """Remove the states longest unused, until all together take at most `limit` bytes; `keep` goes last."""
    sizes: dict[Path, tuple[float, int]] = {}
    for path in directory().glob(f"*{SUFFIX}"):
        with suppress(OSError):  # another process removes them too
            found = path.stat()
            sizes[path] = (found.st_mtime, found.st_size)
    total = sum(size for _, size in sizes.values())
    for path in sorted(sizes, key=lambda path: (path == keep, sizes[path])):
        if total <= limit:
            return
        total -= sizes[path][1]
        with suppress(OSError):
            path.unlink()
            label_of(path).unlink(missing_ok=True)
