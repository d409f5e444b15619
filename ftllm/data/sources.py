"""What `--data` names -> conversations: a file, a directory or a data set on the Hub, with a weight.

mine.jsonl              a file                     mine.jsonl=0.5      half of its rows
folder                  a directory of files       folder:test         its test split
org/name                a data set on the Hub      org/name=2          each row twice an epoch
org/name:split          one of its splits          org/name:config:split
org/name@revision       at a branch, tag or commit
"""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftllm.conversations import Conversation
from ftllm.data.lines import Fault, stop
from ftllm.data.rows import is_data_file, read_rows
from ftllm.data.shapes import read_row
from ftllm.data.splits import files_of
from ftllm.errors import UserError
from ftllm.files import sha256_file
from ftllm.hubfiles import NAME, is_offline, listing, snapshot

WEIGHT = re.compile(r"(.+)=(\d+(?:\.\d*)?|\.\d+)")
DATASET = re.compile(rf"(?P<repository>{NAME.pattern})(?:@(?P<revision>[\w./-]+))?(?P<wanted>(?::[\w.+-]+){{0,2}})")
CARD = "README.md"


@dataclass(frozen=True)
class Source:
    """One `--data`, taken apart.

    Attributes:
        text: as it was given, less the weight.
        weight: how often each row is trained in an epoch; below 1 the share of rows that is.
    """

    text: str
    weight: float = 1.0

    def __str__(self) -> str:
        return self.text if self.weight == 1 else f"{self.text}={self.weight:g}"


@dataclass(frozen=True)
class DataFile:
    """One file of a source.

    Attributes:
        path: where it lies.
        label: what complaints call it.
        repository: the data set on the Hub that it came from, `org/name`.
        revision: the commit of that data set.
    """

    path: Path
    label: str
    repository: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Found:
    """A source on this machine.

    Attributes:
        files: of the split that is read.
        pinned: the source as it can be given again to get the same files (a Hub data set with its commit).
        split: the split's name, where there is a choice of splits.
        left_out: data files of the place that belong to other splits.
    """

    files: tuple[DataFile, ...]
    pinned: str
    split: str | None = None
    left_out: tuple[str, ...] = ()


@dataclass
class FileFacts:
    """What was found in a file on the way.

    Attributes:
        format: of its rows.
        rows: how many were read, faulty ones not counted.
        spellings: rows by the way their thoughts are written.
        ignored: columns that nothing was made of, with the rows that have them.
    """

    format: str | None = None
    rows: int = 0
    spellings: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)


def source_of(text: str, directory: Path = Path()) -> Source:
    """`file.jsonl=0.5` as a source; a file that really has such a name in `directory` wins.

    Raises:
        UserError: the weight is 0.
    """
    match = WEIGHT.fullmatch(text)
    if match is None or (directory / Path(text).expanduser()).exists():
        return Source(text)
    weight = float(match[2])
    if weight == 0:
        raise UserError(f"--data {text}: a weight of 0 leaves nothing of it", "leave the data out instead")
    return Source(match[1], weight)


def is_dataset_id(text: str) -> bool:
    """Whether `text` can only be a data set on the Hub: its form is one's, and it names no data file."""
    match = DATASET.fullmatch(text)
    return match is not None and not is_data_file(match["repository"])


def absolute(text: str, directory: Path) -> str:
    """`text` as given in `directory`, with a path made absolute; a data set on the Hub stays as it is."""
    source = source_of(text, directory)
    name, _, _ = source.text.partition(":")
    here = [candidate for candidate in (source.text, name) if (directory / Path(candidate).expanduser()).exists()]
    if not here and is_dataset_id(source.text):
        return text
    rest = source.text.removeprefix(here[0]) if here else ""
    path = (directory / Path(here[0] if here else source.text).expanduser()).resolve()
    return str(Source(f"{path}{rest}", source.weight))


def find(source: Source, *, offline: bool = False, say: Callable[[str], None] = lambda _: None) -> Found:
    """The files of a source, fetched where they are on the Hub and not on this machine.

    Raises:
        UserError: there is no such place, split or data set, or it needs the network and this is offline.
        WorkError: the download failed.
    """
    path = Path(source.text).expanduser()
    if path.is_dir():
        return _in_directory(path, (), source)
    if path.exists():
        return Found((DataFile(path, source.text),), str(Source(str(path.resolve()), source.weight)))
    folder, *wanted = source.text.split(":")
    if wanted and len(wanted) < 3 and Path(folder).expanduser().is_dir():
        return _in_directory(Path(folder).expanduser(), tuple(wanted), source)
    if not is_dataset_id(source.text):
        raise UserError(f"{source.text} does not exist", "give a file, a directory, or a Hub data set (org/name)")
    return _on_the_hub(source, offline, say)


def _in_directory(path: Path, wanted: tuple[str, ...], source: Source) -> Found:
    names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    split, chosen = files_of(names, _card(path), wanted, str(path), one_kind=False)
    pinned = ":".join([str(path.resolve()), *wanted])
    files = tuple(DataFile(path / name, str(path / name)) for name in chosen)
    return Found(files, str(Source(pinned, source.weight)), split, _others(names, chosen))


def _on_the_hub(source: Source, offline: bool, say: Callable[[str], None]) -> Found:
    match = DATASET.fullmatch(source.text)
    assert match is not None
    repository, revision = match["repository"], match["revision"]
    wanted = tuple(filter(None, match["wanted"].split(":")))
    place = repository + (f"@{revision}" if revision else "")
    # The card first: it says which files there are to choose from.
    directory = snapshot(repository, patterns=[CARD], kind="dataset", revision=revision, offline=offline, bars=False)
    local = is_offline(offline)
    if local:
        sizes = {file.relative_to(directory).as_posix(): 0 for file in directory.rglob("*") if file.is_file()}
    else:
        sizes = listing(repository, kind="dataset", revision=directory.name)
    split, chosen = files_of(list(sizes), _card(directory), wanted, place, one_kind=True)
    missing = [name for name in chosen if not (directory / name).is_file()]
    if missing:
        size = sum(sizes[name] for name in missing)
        say(f"fetching {len(missing)} file{'s' * (len(missing) > 1)} of {repository}, {size / 1e6:.1f} MB")
        patterns = [glob.escape(name) for name in chosen]
        directory = snapshot(repository, patterns=[CARD, *patterns], kind="dataset", revision=revision, offline=offline)
    pinned = ":".join([f"{repository}@{directory.name}", *wanted])
    files = tuple(DataFile(directory / name, f"{repository}/{name}", repository, directory.name) for name in chosen)
    return Found(files, str(Source(pinned, source.weight)), split, _others(list(sizes), chosen))


def _card(directory: Path) -> str:
    try:
        return (directory / CARD).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _others(names: list[str], chosen: list[str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in names if is_data_file(name) and name not in chosen))


def load_conversations(path: Path) -> list[Conversation]:
    """All conversations of one file.

    Raises:
        UserError: the file is missing, unreadable, empty, not what it seems, or a row is malformed; with its line.
    """
    return load_file(DataFile(path, str(path)))[0]


def load_file(file: DataFile, fault: Fault = stop) -> tuple[list[Conversation], FileFacts]:
    """All conversations of one file, and how they were found.

    Args:
        file: to read.
        fault: called with each row that is no conversation; one that returns leaves the row out.

    Raises:
        UserError: the file cannot be read, or, unless `fault` says otherwise, a row is malformed or of another format
            than the rows before it; with its line.
    """
    facts = FileFacts()
    return list(read_conversations(file, facts, fault)), facts


def read_conversations(file: DataFile, facts: FileFacts, fault: Fault = stop) -> Iterator[Conversation]:
    """The conversations of one file as a stream; what is found on the way is added to `facts`.

    Other arguments and errors are those of `load_file`.
    """
    for line, row in read_rows(file.path, fault, label=file.label):
        try:
            conversation = conversation_in(row, f"{file.label}:{line}", facts)
        except UserError as error:
            fault(error)
        else:
            yield conversation


def conversation_in(row: dict[str, Any], source: str, facts: FileFacts) -> Conversation:
    """A row of a file whose earlier rows gave `facts`, which it is added to.

    Raises:
        UserError: the row is no conversation, or of another format than those before it.
    """
    read = read_row(row, source)
    if facts.format is None:
        facts.format = read.format
    elif read.format != facts.format:
        raise UserError(
            f"{source}: this row is {read.format}, but the file began with {facts.format}",
            "put rows of one format into a file of their own, and give each file with --data",
        )
    facts.rows += 1
    if read.spelling:
        facts.spellings[read.spelling] += 1
    facts.ignored.update(read.ignored)
    return read.conversation


def record(file: DataFile, facts: FileFacts, use: str) -> dict[str, Any]:
    """A file for the manifest: where, from which data set on the Hub, its SHA-256, what it held."""
    return {
        "path": str(file.path.absolute()),
        **({"repo": file.repository, "revision": file.revision} if file.repository else {}),
        "use": use,
        "sha256": sha256_file(file.path),
        "format": facts.format,
        "conversations": facts.rows,
        "thoughts": dict(sorted(facts.spellings.items())),
        "ignored": sorted(facts.ignored),
    }
