"""Is there room? Disk and memory an export needs, against what this machine has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftllm.errors import UserError, WorkError
from ftllm.export.checkpoint import Extent
from ftllm.export.samples import BATCH, LONG, POSITIONS
from ftllm.files import disk_free, human
from ftllm.llama.machine import available_memory

# Anonymous memory. On a 1B shape the peak of all processes was 0.9 GB where this counts 1.3: their peaks do not meet.
PROCESS = 300 << 20  # Python with torch and transformers
CHUNKS = 256 << 20  # chunks in flight
SCORED = 256  # positions compared at once with `--verify full`: half a chunk, as llama-perplexity does
SCORED_LOGITS = 4  # times their logits are in memory
SCORES, STATES = 3, 4  # times attention's scores are in memory, and what a token becomes inside an MLP
# Times these are in memory, the reference's, llama.cpp's and what becomes of them: 1.3 kB a token of the vocabulary
# with 48 positions, its texts in two tokenizers included.
LOGITS = 7
WHOLE = 4  # the reference is held whole where its weights take at most this part of the free memory


@dataclass(frozen=True)
class Room:
    """Bytes needed and bytes there; `memory_free` is None where the system does not tell."""

    disk: int
    disk_free: int
    memory: int
    memory_free: int | None


def measure(files: Sequence[dict[str, Any]], largest: int, out: Path, *, reference: int) -> Room:
    """What an export needs.

    Args:
        files: of the plan, those that are to be written.
        largest: values of the largest tensor that cannot be computed by rows: such are in the worker whole, in
            float32, two or three at a time.
        reference: bytes the verifying process takes (`Reference.memory`), 0 without one.
    """
    disk = sum(file["bytes"] for file in files)
    converting = PROCESS + CHUNKS + 3 * 4 * largest
    return Room(disk, disk_free(out), converting + reference, memory_free())


@dataclass(frozen=True)
class Reference:
    """How the model is held in float32 to be measured against.

    Attributes:
        whole: as it lies in the files, or all of it in memory, which is quicker; else each matrix is read from the
            shards when it is its turn.
        memory: bytes the verifying process takes; llama.cpp maps the file it looks at, which takes none.
    """

    whole: bool
    memory: int


def reference(size: Extent, full: bool = False, adapter: int = 0) -> Reference:
    """How to hold a model of that size, given the memory that is free.

    Weights of one type stay in the files, from which they are mapped, but for experts, which are put together. Of
    several types, they are all copied into float32. A layer's experts are float32 while it runs. Seven shapes from 5 M
    to 1 B weights took 0.85 to 0.96 of this; three of them, with `full`, 0.80 to 0.94.

    Args:
        size: of the base.
        full: for `--verify full`.
        adapter: weights of the adapter.
    """
    free = memory_free()
    held = 4 * size.parameters if size.mixed else size.width * size.experts
    others = PROCESS + LOGITS * 4 * POSITIONS * size.rows + 4 * adapter
    if full:
        scores, states = SCORES * LONG * size.heads, STATES * size.inner
        others += max(4 * BATCH * (scores + states), SCORED_LOGITS * 4 * SCORED * size.rows)
        if free is not None and others + 2 * size.parameters <= free:
            others += size.parameters  # llama.cpp's repacked copy of the file
    if free is None or held * WHOLE <= free:
        return Reference(True, others + held + 4 * size.layer)
    return Reference(False, others + (4 + size.width) * max(size.largest, size.layer))


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
    place = out
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise UserError(f"cannot write {out}: {place} is not a directory", "choose another --out")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {out}: {place} is read-only for you", "choose a directory you may write to")


def require_reference(reference: Reference) -> None:
    """Refuse a verification there is no memory for, before anything is loaded.

    Raises:
        WorkError: too little memory.
    """
    free = memory_free()
    if free is not None and reference.memory > free:
        raise WorkError(
            f"not enough memory to verify: it takes about {human(reference.memory)}, {human(free)} are free",
            "close other programs, or export unverified with --verify none",
        )


def memory_free() -> int | None:
    """Bytes of memory that can be had without swapping; None where the system does not tell."""
    return available_memory() or None
