"""What the local Hub (hub_server.py) holds: repositories, commits and files, and the Hub's rules about them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

import yaml

LFS_NAMES = re.compile(r"\.(gguf|safetensors|bin|model|imatrix)$")
LFS_SIZE = 10 * 2**20
REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
RELATIONS = ("adapter", "finetune", "merge", "quantized")
# The identifiers these tests use, of those that the Hub accepts as `license`.
LICENSES = ("apache-2.0", "mit", "gemma", "llama3.2", "cc-by-4.0", "other", "unknown")


@dataclass(frozen=True)
class Blob:
    """A file's bytes, and whether git or LFS holds them."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_oid(self) -> str:
        kept = self.content if not self.lfs else f"version 1\noid sha256:{self.sha256}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(kept) + kept).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    changed: tuple[str, ...]
    files: dict[str, Blob]


@dataclass
class Repo:
    """A repository; `gated` refuses its files to everyone not in `allowed`."""

    id: str
    type: str = "model"
    private: bool = False
    gated: bool = False
    allowed: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", "initial commit", {".gitattributes": Blob(b"*.gguf filter=lfs\n", False)}, set())

    def commit(self, branch: str, title: str, added: dict[str, Blob], deleted: set[str]) -> Commit:
        parent = self.branches.get(branch)
        before = self.commits[parent].files if parent else {}
        files = {path: blob for path, blob in before.items() if path not in deleted} | added
        seed = repr((self.id, len(self.commits), parent, title, sorted((p, b.etag) for p, b in files.items())))
        oid = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, title, tuple(sorted({*added, *deleted})), files)
        self.branches[branch] = oid
        return self.commits[oid]

    def at(self, revision: str) -> Commit | None:
        return self.commits.get(self.branches.get(revision, revision))

    def history(self, branch: str = "main") -> list[Commit]:
        """Commits of a branch, oldest first."""
        found: list[Commit] = []
        oid: str | None = self.branches[branch]
        while oid is not None:
            found.append(self.commits[oid])
            oid = self.commits[oid].parent
        return found[::-1]

    @property
    def files(self) -> dict[str, bytes]:
        """What `main` holds."""
        return {path: blob.content for path, blob in self.commits[self.branches["main"]].files.items()}


def is_lfs(path: str, size: int) -> bool:
    return bool(LFS_NAMES.search(path)) or size > LFS_SIZE


def complaints(content: str) -> list[str]:
    """What the Hub would say against a model card's front matter."""
    match = re.match(r"---\r?\n(.*?)\r?\n---\r?\n", content, re.DOTALL)
    if match is None:
        return []
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"bad YAML: {error}"]
    if not isinstance(data, dict):
        return ["metadata is no mapping"]
    found = []
    if data.get("license") not in (None, *LICENSES):
        found.append(f'"license" must be one of {LICENSES}')
    if data.get("license") == "other" and not data.get("license_name"):
        found.append('"license_name" is required with license: other')
    for key in ("base_model", "datasets", "tags", "language"):
        values = data.get(key, [])
        values = values if isinstance(values, list) else [values]
        pattern = REPO_ID if key in ("base_model", "datasets") else re.compile("[a-z]{2,3}(-[A-Za-z]+)?")
        if not all(isinstance(value, str) for value in values):
            found.append(f'"{key}" must be text')
        elif key != "tags" and not all(pattern.fullmatch(value) for value in values):
            found.append(f'"{key}" with value {values} is not valid')
    if data.get("base_model_relation") not in (None, *RELATIONS):
        found.append(f'"base_model_relation" must be one of {RELATIONS}')
    return found
