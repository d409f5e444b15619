"""The base's license and the terms one agrees to for it, which what is made from it carries on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftllm.errors import UserError
from ftllm.hub.markdown import split_front_matter, split_sections
from ftllm.hubfiles import is_offline, told

LICENSE_KEYS = ("license", "license_name", "license_link")
GATE = "extra_gated_"
TITLES = re.compile(r"\b(licen[cs]e|agreement|disclaimer|terms|acceptable use|use policy)\b", re.IGNORECASE)
FILES = re.compile(r"(LICEN[CS]E|NOTICE|COPYING|USE_POLICY|TERMS)([._-].*)?(\.(md|txt))?$", re.IGNORECASE)


@dataclass(frozen=True)
class Terms:
    """What the base says about its use.

    Attributes:
        license: its front matter's license keys.
        gate: its front matter's `extra_gated_*` keys: the agreement people are asked to accept.
        sections: of its card, verbatim: license, agreement, disclaimer.
        language: its front matter's.
        files: license files to publish along.
        origin: where this was read; empty where the base says nothing.
    """

    license: dict[str, Any] = field(default_factory=dict)
    gate: dict[str, Any] = field(default_factory=dict)
    sections: tuple[str, ...] = ()
    language: Any = None
    files: tuple[Path, ...] = ()
    origin: str = ""


def of_base(path: Path | None, repo: str | None, *, offline: bool = False) -> Terms:
    """The terms of a base: from its directory's README.md, else from its repository on the Hub.

    A base that cannot be reached is one that says nothing; whoever asks has to tell people.
    """
    if path is not None and (path / "README.md").is_file():
        text = (path / "README.md").read_text(encoding="utf-8", errors="replace")
        return read(
            text, sorted(item for item in path.iterdir() if item.is_file() and FILES.fullmatch(item.name)), path.name
        )
    if repo is None:
        return Terms()
    try:
        text, files = _fetch(repo, is_offline(offline))
    except UserError:
        return Terms()
    return read(text, files, repo)


def read(text: str, files: Sequence[Path], origin: str) -> Terms:
    """The terms in a model card's text."""
    try:
        front, body = split_front_matter(text)
    except ValueError:
        front, body = {}, text
    sections = [part for title, part in split_sections(body, level=6) if TITLES.search(title)]
    return Terms(
        license={key: front[key] for key in LICENSE_KEYS if front.get(key)},
        gate={key: value for key, value in front.items() if key.startswith(GATE)},
        sections=tuple(_whole(body, sections)),
        language=front.get("language"),
        files=tuple(files),
        origin=origin,
    )


def _whole(body: str, sections: Sequence[str]) -> list[str]:
    """Each section with the subsections under it, none twice."""
    found: list[str] = []
    for section in sections:
        if any(section in other for other in found):
            continue
        level = len(section) - len(section.lstrip("#"))
        whole = next((part for _, part in split_sections(body, level) if part.startswith(section)), section)
        found.append(whole)
    return found


def _fetch(repo: str, offline: bool) -> tuple[str, list[Path]]:
    """A repository's card and license files, from the Hub's cache where it is offline."""
    from huggingface_hub import HfApi

    api = HfApi()
    names = ["README.md"]
    if not offline:
        with told(repo):
            names += [name for name in api.list_repo_files(repo) if FILES.fullmatch(name)]
    paths = []
    for name in names:
        with told(repo, offline=offline):
            paths.append(Path(api.hf_hub_download(repo, name, local_files_only=offline)))
    return paths[0].read_text(encoding="utf-8", errors="replace"), paths[1:]
