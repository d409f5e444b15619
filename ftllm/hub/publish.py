"""Files into a repository on the Hub: what is there already stays, and one commit makes the rest appear, card and all.

Large files are sent first, one after the other, which publishes nothing: Ctrl-C ends it at once, and what arrived is
not sent again. Then a single commit names all of them together with the card, on top of the state that the card was
written for; so the repository is never half published, and nobody's edit is lost. A commit of its own for the card,
after the files', would leave a moment, or after a cut line an evening, in which files stand there without their license
and hashes, or with the card of other ones. Of two repositories that name each other, all files of both are sent before
the first commit. All of it is huggingface_hub's own `preupload_lfs_files` and `create_commit`; here is the order, and
the patience.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ftllm.errors import UserError, WorkError
from ftllm.files import sha256_file
from ftllm.hubfiles import AGAIN, explain, told
from ftllm.progress import Reporter

T = TypeVar("T")
CARD = "README.md"
# Seconds between attempts; inside each one huggingface_hub repeats transfers five times by itself.
WAITS = (2.0, 5.0, 15.0)
TRANSIENT = {408, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Item:
    """A file to publish: its path in the repository, and a file here or its content."""

    path: str
    source: Path | bytes

    @property
    def size(self) -> int:
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size


@dataclass(frozen=True)
class Remote:
    """A repository as it is on the Hub.

    Attributes:
        head: the commit of the revision.
        files: by path, the size and the hash: SHA-256 where LFS holds it, else git's.
        card: README.md's text.
    """

    head: str
    private: bool = False
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    card: str | None = None


@dataclass(frozen=True)
class Published:
    """What a push did: the paths that were sent, and those that were there already."""

    repo: str
    url: str
    commit: str
    sent: tuple[str, ...]
    unchanged: tuple[str, ...]


@dataclass(frozen=True)
class Target:
    """Where to, and what: `card` gives the card's text for the one that is on the Hub."""

    repo: str
    items: tuple[Item, ...]
    card: Callable[[str | None], str]


class Publisher:
    """Sends to the Hub as the user whose token huggingface_hub knows.

    Args:
        revision: the branch to commit to.
        waits: seconds between attempts.
    """

    def __init__(self, reporter: Reporter, *, revision: str = "main", waits: Sequence[float] = WAITS) -> None:
        from huggingface_hub import HfApi

        self.api = HfApi()
        self.reporter = reporter
        self.revision = revision
        self.waits = waits
        self.hashes: dict[Path, str] = {}

    def user(self) -> str:
        """Whose token it is.

        Raises:
            UserError: there is none, it is wrong, or it may only read.
            WorkError: the Hub cannot be reached.
        """
        with told("your account", "asked about"):
            who = self.api.whoami()
        role = ((who.get("auth") or {}).get("accessToken") or {}).get("role")
        if role == "read":
            hint = "make one that may write at https://huggingface.co/settings/tokens, then `hf auth login`"
            raise UserError("your Hub token may only read", hint)
        return str(who.get("name"))

    def look(self, repo: str) -> Remote | None:
        """The repository as it is; None where there is none, or no such branch.

        Raises:
            UserError: it may not be seen with this token.
            WorkError: the Hub cannot be reached.
        """
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
        from huggingface_hub.hf_api import RepoFile

        try:
            info = self.api.model_info(repo, revision=self.revision)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return None
        head = str(info.sha)
        listed = self.api.list_repo_tree(repo, revision=head, recursive=True)
        files = {
            entry.path: (entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id)
            for entry in listed
            if isinstance(entry, RepoFile)
        }
        card = None
        if CARD in files:
            path = Path(self.api.hf_hub_download(repo, CARD, revision=head))
            card = path.read_text(encoding="utf-8", errors="replace")
        return Remote(head, bool(info.private), files, card)

    def prepare(self, repo: str, *, private: bool) -> None:
        """Make the repository and the branch, where they are not there.

        Raises:
            UserError: this token may not, or `private` was asked for and the repository is public.
            WorkError: the Hub cannot be reached.
        """

        def make() -> None:
            self.api.create_repo(repo, private=private or None, exist_ok=True)
            if self.revision != "main":
                self.api.create_branch(repo, branch=self.revision, exist_ok=True)

        self.patiently(repo, "created", make)
        remote = self.patiently(repo, "read", lambda: self.look(repo))
        if private and remote is not None and not remote.private:
            raise UserError(
                f"{repo} exists and is public, which --private does not change",
                "make it private in its settings on the Hub, or choose another name, or leave --private out",
            )

    def check(self, repo: str, card: str) -> None:
        """Let the Hub validate a card before anything is sent.

        Raises:
            UserError: it refuses the metadata.
        """
        from huggingface_hub import get_session

        # As ModelCard.validate does, which in version 1 asks huggingface.co whatever HF_ENDPOINT says.
        url, content = f"{self.api.endpoint}/api/validate-yaml", {"repoType": "model", "content": card}
        answer = self.patiently(repo, "checked", lambda: get_session().post(url, json=content))
        if answer.status_code == 400:
            errors = answer.json().get("errors") or []
            reasons = "; ".join(str(error.get("message")) for error in errors) or "it says no more"
            raise UserError(f"the Hub refuses the card's metadata: {reasons}", "correct it with --card-extra")

    def send(self, target: Target) -> None:
        """Send the large files that the Hub lacks; this publishes nothing yet."""
        remote = self.patiently(target.repo, "read", lambda: self.look(target.repo))
        waiting = [item for item in target.items if self.differs(item, remote)]
        large = [item for item in waiting if isinstance(item.source, Path)]
        with self.reporter.task(f"Sending to {target.repo}", sum(item.size for item in large), "bytes") as task:
            for item in large:
                self.reporter.detail(f"{item.path}, {item.size:,} bytes")
                self.patiently(target.repo, "sent", lambda item=item: self._send(target.repo, item))  # type: ignore[misc]
                task.advance(item.size, item.path, file=item.path)

    def commit(self, target: Target, message: str) -> Published:
        """Make everything appear at once, with the card for what is there."""
        url = f"{self.api.endpoint}/{target.repo}"
        for attempt in range(len(self.waits) + 1):
            remote = self.patiently(target.repo, "read", lambda: self.look(target.repo))
            card = Item(CARD, target.card(remote.card if remote else None).encode())
            items = (*target.items, card)
            changed = [item for item in items if self.differs(item, remote)]
            unchanged = tuple(item.path for item in items if item not in changed)
            if not changed:
                return Published(target.repo, url, remote.head if remote else "", (), unchanged)
            try:
                made = self.api.create_commit(
                    target.repo,
                    [self.operation(item) for item in changed],
                    commit_message=message,
                    revision=self.revision,
                    parent_commit=remote.head if remote else None,
                )
            except Exception as error:
                # The answer may have been lost, or someone else committed: look again at what is there.
                if not (_status(error) == 412 or transient(error)) or attempt == len(self.waits):
                    self._fail(error, target.repo, "published")
                self._wait(error, attempt)
            else:
                return Published(target.repo, url, str(made.oid), tuple(item.path for item in changed), unchanged)
        raise AssertionError("the last attempt returns or raises")

    def differs(self, item: Item, remote: Remote | None) -> bool:
        """Whether the Hub has another file at this path, or none."""
        size, known = remote.files.get(item.path, (-1, "")) if remote else (-1, "")
        if size != item.size:
            return True
        if len(known) == 64:
            return self.sha256(item) != known
        content = item.source if isinstance(item.source, bytes) else item.source.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != known

    def sha256(self, item: Item) -> str:
        """The hash of an item, each file read once."""
        if isinstance(item.source, bytes):
            return hashlib.sha256(item.source).hexdigest()
        if item.source not in self.hashes:
            self.hashes[item.source] = sha256_file(item.source)
        return self.hashes[item.source]

    def operation(self, item: Item) -> Any:
        """The client's own description of an upload, its hash filled in where it is known."""
        from huggingface_hub import CommitOperationAdd

        made = CommitOperationAdd(item.path, item.source)
        if isinstance(item.source, Path):
            made.upload_info.sha256 = bytes.fromhex(self.sha256(item))
        return made

    def _send(self, repo: str, item: Item) -> None:
        self.api.preupload_lfs_files(repo, [self.operation(item)], revision=self.revision, free_memory=False)

    def patiently(self, repo: str, doing: str, work: Callable[[], T]) -> T:
        """Do `work`, again where the network or the Hub failed, and say in words why in the end it did not work."""
        for attempt in range(len(self.waits) + 1):
            try:
                return work()
            except Exception as error:
                if not transient(error) or attempt == len(self.waits):
                    self._fail(error, repo, doing)
                self._wait(error, attempt)
        raise AssertionError("the last attempt returns or raises")

    def _wait(self, error: Exception, attempt: int) -> None:
        seconds = self.waits[attempt]
        self.reporter.say(f"{_short(error)}; trying again in {seconds:g} s")
        time.sleep(seconds)

    def _fail(self, error: Exception, repo: str, doing: str) -> None:
        known = explain(error, repo, doing, revision=self.revision)
        if known is None:
            raise error
        if isinstance(known, WorkError):
            known.hint = AGAIN if "network" not in known.hint else known.hint
        raise known from None


def transient(error: BaseException) -> bool:
    """Whether trying again may help: a cut connection, or a Hub in trouble."""
    from huggingface_hub.errors import HfHubHTTPError

    if type(error) is RuntimeError and error.__cause__ is not None:  # how a failed upload arrives
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        return _status(error) in TRANSIENT
    return isinstance(error, HfHubHTTPError.__mro__[1])


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _short(error: Exception) -> str:
    status = _status(error)
    if status == 412:
        return "the repository was changed meanwhile"
    return f"the Hub answers with an error ({status})" if status else "the connection to the Hub was cut"


class _Words(logging.Handler):
    """huggingface_hub's retries as lines of ours: its own name addresses with signatures in them."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self.reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith(("Retrying in", "Rate limited", "Error while downloading")):
            words = "going on where it was" if message.startswith("Error") else message.partition(" [")[0]
            self.reporter.say(f"the connection to the Hub has trouble: {words[:1].lower()}{words[1:]}")


@contextmanager
def watched(reporter: Reporter) -> Iterator[None]:
    """While inside, huggingface_hub shows its bars only where a person watches, and says its troubles through us."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logger, words = logging.getLogger("huggingface_hub"), _Words(reporter)
    handlers, propagate, were_off = logger.handlers, logger.propagate, are_progress_bars_disabled()
    logger.handlers, logger.propagate = [words], False
    if not reporter.live:
        disable_progress_bars()
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        if not reporter.live and not were_off:
            enable_progress_bars()
