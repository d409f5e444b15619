"""Space back from the Hub's cache."""

from __future__ import annotations

import os
from pathlib import Path

from ftllm.catalogue import cached
from ftllm.errors import UserError
from ftllm.files import storage_error
from ftllm.hub.names import Reference, quantization
from ftllm.hub.remote import NOT_MODELS, of_type


def remove(reference: Reference) -> int:
    """Delete a repository's GGUFs from the Hub's cache, or those of one type with all their shards; the bytes freed.

    Without a type, unfinished downloads go too; a projector goes with the last model beside it.

    Raises:
        UserError: there is none.
    """
    here = cached(reference.repo)
    types = [quantization(file.name) if NOT_MODELS.search(file.path.name) is None else None for file in here]
    wanted = here
    if reference.quant:
        meant = set(of_type([kind or "" for kind in types], reference.quant))
        rest = [kind for index, kind in enumerate(types) if index not in meant and kind is not None]
        wanted = [file for index, file in enumerate(here) if index in meant or (meant and not rest)]
    folder = _folder(reference.repo)
    unfinished = [] if reference.quant else list((folder / "blobs").glob("*.incomplete"))
    if not wanted and not unfinished:
        known = ", ".join(dict.fromkeys(kind for kind in types if kind))
        hint = f"it has {known}" if known else "`ftllm models list` shows what it has"
        raise UserError(f"the Hub's cache has no {reference}", hint)
    kept = {file.blob for file in here if file not in wanted}
    freed = 0
    try:
        for file in wanted:
            file.path.unlink(missing_ok=True)
        for blob in {*(file.blob for file in wanted), *unfinished} - kept:
            freed += blob.stat().st_size if blob.exists() else 0
            blob.unlink(missing_ok=True)
        _remove_empty(folder / "snapshots")
    except OSError as error:
        raise storage_error(error, folder) from error
    return freed


def _remove_empty(directory: Path) -> None:
    """Remove the directories in which nothing is left, from below."""
    for place, _, _ in os.walk(directory, topdown=False):
        if Path(place) != directory and not any(Path(place).iterdir()):
            Path(place).rmdir()


def _folder(repo: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
