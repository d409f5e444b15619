"""Where an export's files are: while they are written, when they are whole, and whether they are there already."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftllm import files
from ftllm.catalogue import SHARD
from ftllm.errors import UserError
from ftllm.export.quants import Wanted
from ftllm.files import PARTIAL, lock_directory, sha256_file, storage_error, sync_directory


@dataclass(frozen=True)
class Target:
    """One type's file, `DIR/STEM-LABEL.gguf`, or its shards, `DIR/STEM-LABEL-00001-of-0000N.gguf`.

    While being written, a file has its name and `.partial`; shards, which llama.cpp finds by their names, have theirs
    in a directory `STEM-LABEL.partial`.

    Attributes:
        imatrix: it is made with an importance matrix.
        draft: what tells it, while it is being written, from a rival for the same name.
    """

    wanted: Wanted
    directory: Path
    stem: str
    imatrix: bool = False
    draft: str = ""

    @property
    def name(self) -> str:
        return f"{self.stem}-{self.wanted.label}"

    @property
    def label(self) -> str:
        """What tells it from everything else that is made at the same time."""
        return self.wanted.label + self.draft

    @property
    def path(self) -> Path:
        """The name without shards."""
        return self.directory / f"{self.name}.gguf"

    def finals(self, shards: int) -> list[Path]:
        """The names of whole files, `llama_split_path`'s where there are several."""
        if shards == 1:
            return [self.path]
        return [self.directory / f"{self.name}-{number:05d}-of-{shards:05d}.gguf" for number in range(1, shards + 1)]

    def existing(self) -> set[Path]:
        """The whole files there are of this name, however they are cut."""
        shards = self.directory.glob(f"{glob.escape(self.name)}-?????-of-?????.gguf")
        cut = {path for path in shards if SHARD.search(path.stem)}
        return cut | ({self.path} if self.path.is_file() else set())

    def partials(self, shards: int) -> list[Path]:
        """The names while being written."""
        if shards == 1:
            return [self._partial]
        return [self._partial_directory / path.name for path in self.finals(shards)]

    def begin(self, shards: int) -> list[Path]:
        """Make place for the partial files; their paths."""
        if shards > 1:
            self._partial_directory.mkdir(exist_ok=True)
        return self.partials(shards)

    def publish(self, shards: int) -> list[Path]:
        """Give the files, synced already, their final names: the first shard, by which a model is found, last.

        What an earlier export left under this name, cut into other shards or not at all, goes.
        """
        finals = self.finals(shards)
        try:
            for partial, final in reversed(list(zip(self.partials(shards), finals, strict=True))):
                partial.replace(final)
            for stale in self.existing() - set(finals):
                stale.unlink()
            sync_directory(self.directory)
        except OSError as error:
            raise storage_error(error, finals[0]) from error
        self.discard()
        return finals

    def discard(self) -> None:
        """Remove what is unfinished."""
        self._partial.unlink(missing_ok=True)
        shutil.rmtree(self._partial_directory, ignore_errors=True)

    @property
    def _partial(self) -> Path:
        return files.partial_path(self.directory / f"{self.name}{self.draft}.gguf")

    @property
    def _partial_directory(self) -> Path:
        return self.directory / (self.name + self.draft + PARTIAL)

    def recorded(self, record: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
        """What `export.json` says about this file, by the name it says it under: its own or its first shard's."""
        for name, entry in record.items():
            if name == self.path.name or name.startswith(f"{self.name}-00001-of-"):
                return name, entry
        return None


def whole(directory: Path, name: str, entry: dict[str, Any]) -> bool:
    """Whether the files an entry of `export.json` is about are there, byte for byte."""
    parts = entry.get("shards") or [{"name": name, "bytes": entry.get("bytes"), "sha256": entry.get("sha256")}]
    try:
        paths = [directory / str(part["name"]) for part in parts]
        sized = all(path.stat().st_size == part["bytes"] for path, part in zip(paths, parts, strict=True))
        return sized and all(sha256_file(path) == part["sha256"] for path, part in zip(paths, parts, strict=True))
    except (OSError, KeyError, TypeError):
        return False


@contextmanager
def writing_to(directory: Path, stem: str) -> Iterator[None]:
    """Be the only export that writes to `directory`; what a killed one of the same name left unfinished there goes.

    Raises:
        UserError: another export is at work there, or it cannot be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = lock_directory(directory)
    except BlockingIOError:
        raise UserError(f"another export is writing to {directory}", "let it finish, or choose another --out") from None
    except OSError as error:
        raise storage_error(error, directory) from error
    try:
        for path in directory.glob(f"{glob.escape(stem)}-*{PARTIAL}"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
