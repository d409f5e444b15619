"""The Hugging Face Hub, as far as several rooms need it: names, downloads, and its errors in words.

Credentials are huggingface_hub's own affair (`hf auth login`, HF_TOKEN): nothing here reads, keeps or prints one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ftllm.errors import UserError, WorkError
from ftllm.files import storage_error

RepoKind = Literal["model", "dataset"]

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
REPOSITORY = re.compile(rf"{NAME.pattern}(@[\w./-]+)?")
TOKEN = re.compile(r"\b(hf|hf_oauth|hf_jwt|api_org)_[A-Za-z0-9]{10,}[\w.-]*")
AGAIN = "what was done is kept; try again in a while"
LOGIN = "`hf auth login` first, or set HF_TOKEN"


def is_repository(value: str) -> bool:
    """Whether `value` looks like `org/name` or `org/name@revision`."""
    return REPOSITORY.fullmatch(value) is not None


def repository_of(directory: Path) -> str | None:
    """The repository whose snapshot in the Hub's cache a directory is; None for any other directory."""
    kind, *parts = directory.parent.parent.name.split("--")
    cached = directory.parent.name == "snapshots" and kind == "models" and parts
    return "/".join(parts) if cached else None


def is_offline(asked: bool = False) -> bool:
    """Whether the network is not to be touched: `--offline`, or HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    return asked or bool(constants.HF_HUB_OFFLINE)


def snapshot(
    repo: str,
    *,
    revision: str | None = None,
    kind: RepoKind = "model",
    patterns: Sequence[str] = (),
    offline: bool = False,
    bars: bool = True,
) -> Path:
    """The directory of a repository's files in the Hub's cache, those matching `patterns` fetched unless `offline`.

    Its name is the commit. `bars`: show the progress, where stderr is a terminal.

    Raises:
        UserError: no such repository or revision, no access, or it is not here and this is offline.
        WorkError: the download failed.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"disable": None if bars else True})  # type: ignore[no-untyped-call]

    local = is_offline(offline)
    with told(repo, revision=revision, kind=kind, offline=local):
        found = snapshot_download(
            repo,
            repo_type=kind,
            revision=revision,
            allow_patterns=list(patterns) or None,
            local_files_only=local,
            tqdm_class=Bar,
        )
    return Path(found)


def listing(repo: str, *, revision: str | None = None, kind: RepoKind = "model") -> dict[str, int]:
    """Every file of a repository on the Hub, with its size in bytes; raises as `snapshot` does."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with told(repo, "listed", revision=revision, kind=kind):
        entries = HfApi().list_repo_tree(repo, repo_type=kind, revision=revision, recursive=True)
        return {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}


@contextmanager
def told(
    repo: str,
    doing: str = "downloaded",
    *,
    revision: str | None = None,
    kind: RepoKind = "model",
    offline: bool = False,
    place: Path | None = None,
) -> Iterator[None]:
    """Turn what huggingface_hub raises inside into one line and a hint about `repo`.

    Args:
        repo: the repository it is about.
        doing: what should have happened to it, as a participle.
        offline: the network was not to be touched.
        place: where files are written, for a full disk.

    Raises:
        UserError: no such repository, revision or file, no access, no token, or not here and offline.
        WorkError: network, server or disk failed.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        known = explain(error, repo, doing, revision=revision, kind=kind, offline=offline, place=place)
        if known is None:
            raise
        raise known from None


def explain(
    error: BaseException,
    repo: str,
    doing: str = "downloaded",
    *,
    revision: str | None = None,
    kind: RepoKind = "model",
    offline: bool = False,
    place: Path | None = None,
) -> UserError | None:
    """What to tell a person about an error of huggingface_hub; None for what is none of its errors."""
    from huggingface_hub import errors

    error = _root(error)
    failed = f"{repo} could not be {doing}"
    if isinstance(error, errors.OfflineModeIsEnabled) or (
        offline and isinstance(error, errors.LocalEntryNotFoundError)
    ):
        return UserError(f"{repo} is not on this machine, and this is offline", "fetch it once with the network on")
    if isinstance(error, errors.LocalTokenNotFoundError):
        return UserError("there is no Hub token on this machine", LOGIN)
    if isinstance(error, errors.HFValidationError):
        return UserError(f"{repo!r} is not a name the Hub allows", "names look like org/name")
    if isinstance(error, errors.HfHubHTTPError):
        return _of_status(error, repo, failed, revision, kind)
    if isinstance(error, OSError) and error.errno is not None:
        known = storage_error(error, place or Path(str(error.filename or "the Hub's cache")))
        if isinstance(known, UserError):
            return known
    if isinstance(error, errors.HfHubHTTPError.__mro__[1]):  # httpx's error in version 1, httpx2's in version 2
        return WorkError(f"{failed}: the Hub cannot be reached ({reason(error)})", "check the network and try again")
    if isinstance(error, errors.LocalEntryNotFoundError):
        return WorkError(f"{failed}: {reason(error)}", "check the network and try again")
    if isinstance(error, OSError):
        return WorkError(f"{failed}: {reason(error)}", AGAIN)
    return None


def _root(error: BaseException) -> BaseException:
    """The error that others were raised for: uploads come wrapped, and a missing file names its cause."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while error.__cause__ is not None and (type(error) is RuntimeError or isinstance(error, LocalEntryNotFoundError)):
        error = error.__cause__
    return error


def _of_status(error: Any, repo: str, failed: str, revision: str | None, kind: RepoKind) -> UserError:
    """What an answer of the Hub means."""
    from huggingface_hub import constants, errors

    status = error.response.status_code
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo}"
    refused = "Invalid credentials" in (error.response.headers.get("X-Error-Message") or "")
    if isinstance(error, errors.GatedRepoError):
        return UserError(f"{repo} is gated", f"accept its terms at {page}, then `hf auth login`")
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"{repo} has no revision {revision}", "give a branch, a tag or a commit")
    if isinstance(error, errors.RemoteEntryNotFoundError):
        name = str(error.response.url).partition("?")[0].rpartition("/")[2]
        return UserError(f"{repo} has no file {name}", f"see what it has at {page}/tree/main")
    if isinstance(error, errors.DisabledRepoError):
        return UserError(f"{repo} is disabled on the Hub", f"see {page}")
    if status == 401 and (refused or "Invalid user token" in str(error)):
        return UserError(
            "the Hub does not accept the token of this machine",
            "make one at https://huggingface.co/settings/tokens, then `hf auth login`; HF_TOKEN comes first where set",
        )
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        return UserError(
            f"there is no {kind} {repo} on the Hub, or you may not see it",
            "check the name; for a private repository, `hf auth login` first",
        )
    if status == 403:
        return UserError(
            f"{failed}: your token does not allow it",
            "take a token that may write there (https://huggingface.co/settings/tokens), and a name of your own",
        )
    if status == 412:
        return WorkError(f"{failed}: someone else changed it meanwhile", "try again")
    if status == 429:
        return WorkError(f"{failed}: the Hub wants fewer requests (429)", AGAIN)
    if status >= 500:
        return WorkError(f"{failed}: the Hub has trouble (error {status})", AGAIN)
    return WorkError(f"{failed}: the Hub answers {status}, {reason(error)}", "see https://status.huggingface.co")


def reason(error: BaseException) -> str:
    """An error's first words on one line, with anything that looks like a token hidden."""
    text = getattr(error, "server_message", None) or str(error)
    return without_tokens(" ".join(text.split())[:200]) or type(error).__name__


def without_tokens(text: str) -> str:
    """`text` with everything hidden that looks like a Hub token."""
    return TOKEN.sub(r"\1_***", text)
