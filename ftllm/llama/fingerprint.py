"""A short name for what is in a GGUF, to tell models apart by more than their file names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

HEAD = 1 << 20  # bytes at the start: metadata and vocabulary
SAMPLES, SAMPLE = 64, 64 << 10  # blocks spread over the rest, and bytes of each
LENGTH = 16  # hexadecimal digits
SHARD = re.compile(r"-00001-of-(\d{5})(?=\.gguf$)")


def fingerprint(path: Path, adapters: Iterable[tuple[Path, float]] = ()) -> str:
    """Sixteen hexadecimal digits that differ wherever two models do, as good as certainly.

    SHA-256 of each file's size, its first MiB and 64 blocks spread over the rest: a few milliseconds whatever the
    size. A fine-tuned model differs from its base in every layer, a quantization in every tensor. Copies and renamed
    files have the same. It is no checksum: a flipped bit may go unseen.

    Args:
        path: a GGUF; all shards count.
        adapters: LoRA GGUFs and their scales, which make another model of it; their order does not matter.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for file in _shards(path):
        digest.update(_sampled(file))
    for part in sorted(_sampled(adapter) + repr(float(scale)).encode() for adapter, scale in adapters):
        digest.update(part)
    return digest.hexdigest()[:LENGTH]


def _shards(path: Path) -> list[Path]:
    match = SHARD.search(path.name)
    if match is None:
        return [path]
    names = [f"-{number:05}-of-{match[1]}" for number in range(1, int(match[1]) + 1)]
    return [path.with_name(SHARD.sub(name, path.name)) for name in names]


def _sampled(path: Path) -> bytes:
    state = path.stat()
    return _digest(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, _changed: int) -> bytes:
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(HEAD))
        for number in range(1, SAMPLES + 1):
            file.seek(max(HEAD, size * number // SAMPLES - SAMPLE))
            digest.update(file.read(SAMPLE))
    return digest.digest()
