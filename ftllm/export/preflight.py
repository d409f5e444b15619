"""Is there room? Disk and memory an export needs, against what this machine has."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftllm.errors import UserError, WorkError
from ftllm.files import disk_free, human

PROCESS = 700 << 20  # Python with torch and transformers
CHUNKS = 256 << 20  # chunks in flight


@dataclass(frozen=True)
class Room:
    """Bytes needed and bytes there; `memory_free` is None where the system does not tell."""

    disk: int
    disk_free: int
    memory: int
    memory_free: int | None


def measure(plan: dict[str, Any], out: Path, *, verify: bool) -> Room:
    """What the plan needs.

    Tensors that cannot be computed by rows are in the worker whole, in float32, two or three at a time, while the
    verifier holds the whole model in float32 and then one output file.
    """
    disk = sum(file["bytes"] for file in plan["files"])
    converting = PROCESS + CHUNKS + 3 * 4 * plan["largest"]
    verifying = PROCESS + 4 * plan["parameters"] + max(file["bytes"] for file in plan["files"]) if verify else 0
    return Room(disk, disk_free(out), converting + verifying, memory_free())


def require(room: Room, out: Path) -> None:
    """Refuse early.

    Raises:
        WorkError: too little disk or memory.
    """
    if room.disk > room.disk_free:
        raise WorkError(
            f"no space left: the files take {human(room.disk)}, {out} has {human(room.disk_free)} free",
            "free some space, or write elsewhere with --out",
        )
    if room.memory_free is not None and room.memory > room.memory_free:
        raise WorkError(
            f"not enough memory: this needs about {human(room.memory)}, {human(room.memory_free)} are free",
            "close other programs; --verify none needs far less",
        )


def require_writable(out: Path) -> None:
    """Refuse an output directory that cannot be made or written to, before anything is started.

    Raises:
        UserError: that.
    """
    place = out.expanduser()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise UserError(f"cannot write {out}: {place} is not a directory", "choose another --out")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {out}: {place} is read-only for you", "choose a directory you may write to")


def require_reference(parameters: int) -> None:
    """Refuse to verify a model that does not fit in memory as float32, before anything is loaded.

    Raises:
        WorkError: too little memory.
    """
    free, needed = memory_free(), PROCESS + 4 * parameters
    if free is not None and needed > free:
        raise WorkError(
            f"not enough memory to verify: the model in float32 takes {human(needed)}, {human(free)} are free",
            "close other programs, or export unverified with --verify none",
        )


def memory_free() -> int | None:
    """Bytes of memory that can be had without swapping, a container's limit included."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return _physical()
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        cached = next(
            int(line.split()[1])
            for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines()
            if line.startswith("file ")
        )
    except (OSError, StopIteration, ValueError):
        return free
    return free if limit == "max" else min(free, int(limit) - used + cached)


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
