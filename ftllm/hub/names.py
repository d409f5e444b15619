"""Names on the Hub: repositories, quantizations, and the pair of repositories that people know."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ftllm.errors import UserError
from ftllm.hubfiles import NAME

REFERENCE = re.compile(rf"(?:hf\.co/|https://huggingface\.co/|hf://)?({NAME.pattern})(?:@([\w./-]+))?(?::([\w.-]+))?")
BRANCH = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*")
SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")
# What publishers end a file's name with, perhaps behind a prefix of their own: UD-Q4_K_XL, i1-IQ2_M, BF16.
TYPE = re.compile(r"(?:^|[-._])((?:UD-|i1-)?(?:T?I?Q\d\w*|BF16|F16|F32|FP16|FP32|MXFP4\w*))$", re.IGNORECASE)


@dataclass(frozen=True)
class Reference:
    """`user/repo`, at a revision where one is named, with the quantization that is meant."""

    repo: str
    revision: str | None = None
    quant: str | None = None

    def __str__(self) -> str:
        return self.repo + (f"@{self.revision}" if self.revision else "") + (f":{self.quant}" if self.quant else "")


def parse_reference(given: str) -> Reference | None:
    """`user/repo`, `user/repo:Q4_K_M`, `user/repo@v1`, `hf.co/user/repo:Q4_K_M`; None when it is none of these."""
    match = REFERENCE.fullmatch(given)
    return Reference(match[1], match[2], match[3].upper() if match[3] else None) if match else None


def repository(given: str) -> str:
    """A name to push to.

    Raises:
        UserError: it is not `user/name`.
    """
    if NAME.fullmatch(given) is None or ".." in given or "--" in given:
        raise UserError(
            f"{given!r} is not a repository name", "give your user or organization and a name: you/model-GGUF"
        )
    return given


def branch(given: str) -> str:
    """A branch to commit to; told before anything is sent, by the main ones of git's rules (git-check-ref-format).

    Raises:
        UserError: git does not allow it.
    """
    if BRANCH.fullmatch(given) is None or ".." in given or given.endswith((".", "/", ".lock")):
        raise UserError(f"{given!r} is no name of a branch", "use letters, digits, '.', '_', '-' and '/'")
    return given


def pair(repo: str) -> tuple[str, str]:
    """The two repositories of a model: static quantizations in `X-GGUF`, with an importance matrix in `X-i1-GGUF`."""
    stem = re.sub("(-i1)?-GGUF$", "", repo, flags=re.IGNORECASE)
    return f"{stem}-GGUF", f"{stem}-i1-GGUF"


def quantization(path: str) -> str:
    """The type that a GGUF's name, or else its folder's, says it has, in capitals; empty where neither says."""
    stem = SHARD.sub("", path.rpartition("/")[2].removesuffix(".gguf"))
    match = TYPE.search(stem) or TYPE.search(path.rpartition("/")[0].rpartition("/")[2])
    return match[1].upper() if match else ""
