"""`ftllm models pull`: GGUFs from the Hub into its cache, where every other program finds them too.

huggingface_hub 1.33 and 2.4 throw a broken download away when the program ends, and compare sizes only. A model is
many gigabytes; so its bytes go into a file of ours beside the cache's, which the next attempt continues, and it gets
its place in the cache when its SHA-256 is the one that the Hub names. The transfer itself is the client's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftllm import files
from ftllm.errors import UserError, WorkError
from ftllm.files import sha256_file
from ftllm.hub.names import Reference
from ftllm.hub.publish import watched
from ftllm.hub.remote import RemoteFile, choose, models, projector
from ftllm.hubfiles import is_offline, told
from ftllm.llama.gpus import memory_for_models
from ftllm.progress import Reporter, Task

SPARE = 64 << 20  # disk to leave free


@dataclass(frozen=True)
class Pulled:
    """A model in the cache: `path` is the first shard's."""

    reference: Reference
    commit: str
    path: Path
    mmproj: Path | None
    type: str
    bytes: int


def pull(reference: Reference, reporter: Reporter, *, offline: bool = False) -> Pulled:
    """Bring a model into the Hub's cache, with its projector; what is there already stays.

    Raises:
        UserError: no such repository, type or access; not here and offline.
        WorkError: network, Hub or disk failed, or the bytes are not those that the Hub names.
    """
    if is_offline(offline):
        return cached(reference)
    try:
        commit, listed = listing(reference)
    except WorkError as error:
        try:
            found = cached(reference)
        except UserError:
            raise error from None
        reporter.warn(f"{error.message}; taking what is in the cache")
        return found
    model, why = choose(models(listed, reference.repo), reference, memory_for_models())
    extra = projector(listed)
    wanted = [*model.files, *([extra] if extra else [])]
    if why and len(models(listed, reference.repo)) > 1:
        reporter.say(f"{reference.repo}: taking {model.type or model.name}, {why}")
    with watched(reporter):
        paths = fetch(reference, commit, wanted, reporter)
    for name in dict.fromkeys((reference.revision or "main", "main") if reference.revision is None else ()):
        files.write_text(_folder(reference.repo) / "refs" / name, commit)
    return Pulled(reference, commit, paths[0], paths[-1] if extra else None, model.type, model.size)


def cached(reference: Reference) -> Pulled:
    """A model that is in the Hub's cache, without the network.

    Raises:
        UserError: it is not there.
    """
    folder = _folder(reference.repo)
    revision = reference.revision or "main"
    ref = folder / "refs" / revision
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    snapshot = folder / "snapshots" / commit
    here = [path for path in sorted(snapshot.rglob("*.gguf")) if path.is_file()]
    listed = [RemoteFile(path.relative_to(snapshot).as_posix(), path.stat().st_size, None) for path in here]
    found = models(listed, reference.repo)
    if not found:
        raise UserError(
            f"{reference.repo} is not on this machine, and this is offline", "pull it once with the network on"
        )
    model, _ = choose(found, reference, memory_for_models())
    extra = projector(listed)
    mmproj = snapshot / extra.path if extra else None
    return Pulled(reference, commit, snapshot / model.name, mmproj, model.type, model.size)


def listing(reference: Reference) -> tuple[str, list[RemoteFile]]:
    """A repository's commit, and its files.

    Raises:
        UserError: no such repository or revision, or no access.
        WorkError: the Hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    with told(reference.repo, revision=reference.revision):
        commit = str(api.model_info(reference.repo, revision=reference.revision).sha)
        entries = list(api.list_repo_tree(reference.repo, revision=commit, recursive=True))
    listed = [
        RemoteFile(entry.path, entry.lfs.size if entry.lfs else entry.size, entry.lfs.sha256 if entry.lfs else None)
        for entry in entries
        if isinstance(entry, RepoFile)
    ]
    return commit, listed


def fetch(reference: Reference, commit: str, wanted: Sequence[RemoteFile], reporter: Reporter) -> list[Path]:
    """Files of a commit in the Hub's cache, fetched where they are missing.

    Raises:
        UserError: no access.
        WorkError: no room, a failed download, or a wrong hash.
    """
    from huggingface_hub import hf_hub_download

    folder = _folder(reference.repo)
    blobs = folder / "blobs"
    missing = [file for file in wanted if file.sha256 and not _whole(blobs / file.sha256, file.size)]
    _require_room(blobs, missing)
    with reporter.task(f"Downloading {reference.repo}", sum(file.size for file in missing) or None, "bytes") as task:
        for file in missing:
            with told(reference.repo, revision=reference.revision, place=blobs):
                _download(reference.repo, commit, file, blobs, task, reporter)
    paths = []
    for file in wanted:
        with told(reference.repo, revision=reference.revision, place=blobs):
            paths.append(Path(hf_hub_download(reference.repo, file.path, revision=commit)))
    return paths


def _download(repo: str, commit: str, file: RemoteFile, blobs: Path, task: Task, reporter: Reporter) -> None:
    """One file into the cache's blobs: continued where an earlier attempt ended, and its hash checked."""
    from huggingface_hub.utils import WeakFileLock

    assert file.sha256 is not None
    blobs.mkdir(parents=True, exist_ok=True)
    partial = blobs / f"{file.sha256}.incomplete"
    lock = blobs.parent.parent / ".locks" / blobs.parent.name / f"{file.sha256}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    before = task.completed
    with WeakFileLock(lock):
        for attempt in (1, 2):
            if _whole(blobs / file.sha256, file.size):
                break
            resumed = partial.stat().st_size if partial.is_file() else 0
            if resumed > file.size:
                partial.unlink()
                resumed = 0
            task.update(before + resumed, file.path)
            _transfer(repo, commit, file, partial, resumed, task)
            reporter.detail(f"checking {file.path}")
            if sha256_file(partial) == file.sha256:
                partial.replace(blobs / file.sha256)
                break
            partial.unlink()
            if attempt == 2:
                raise WorkError(
                    f"{repo}: {file.path} arrived damaged, its SHA-256 is not the one the Hub names",
                    "nothing of it was kept; try again, and check this machine's disk and memory",
                )
            reporter.warn(f"{file.path} is damaged: its SHA-256 is not the one the Hub names; downloading it again")
    task.update(before + file.size, file.path)


def _transfer(repo: str, commit: str, file: RemoteFile, partial: Path, resumed: int, task: Task) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    with partial.open("ab") as target:
        http_get(
            hf_hub_url(repo, file.path, revision=commit),
            target,
            resume_size=resumed,
            headers=build_hf_headers(),
            expected_size=file.size,
            displayed_filename=file.path,
            tqdm_class=_bar(task, file.path),
        )


def _bar(task: Task, name: str) -> Any:
    """What http_get takes for a tqdm class: it moves our own bar."""

    class Bar:
        def __init__(self, **_values: Any) -> None:
            pass

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, amount: float) -> None:
            task.advance(amount, name)

    return Bar


def _require_room(blobs: Path, missing: Sequence[RemoteFile]) -> None:
    """Refuse early what does not fit on the disk."""
    needed = sum(file.size - _size(blobs / f"{file.sha256}.incomplete") for file in missing)
    free = files.disk_free(blobs)
    if missing and needed + SPARE > free:
        raise WorkError(
            f"no space left: this takes {needed / 1e9:.1f} GB, {blobs} has {free / 1e9:.1f} GB free",
            "free some (`ftllm models list`, `ftllm models rm NAME`), take a smaller type, or set HF_HOME",
        )


def _folder(repo: str) -> Path:
    """A repository's directory in the Hub's cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")


def _whole(path: Path, size: int) -> bool:
    return _size(path) == size and path.exists()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
