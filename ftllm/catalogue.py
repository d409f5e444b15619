"""Which models this machine has, told from file names and GGUF headers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ftllm import runs
from ftllm.errors import UserError
from ftllm.llama.header import Header, read_header
from ftllm.llama.types import FILE_TYPES

PREFERRED = "Q4_K_M"
NANO = Path("models/nano")
SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")
DOUBTFUL = re.compile("mmproj|lora|adapter|imatrix", re.IGNORECASE)
UNQUANTIZED = ("F32", "F16", "BF16")
MODEL_HINT = "give a model's GGUF"


@dataclass(frozen=True)
class Choice:
    """A model to load, and in words where it came from."""

    path: Path
    origin: str


@dataclass(frozen=True)
class Candidate:
    """A GGUF as its name and size tell: `path` is the first shard's, `size` in bytes of all shards."""

    path: Path
    type: str
    size: int

    @property
    def quantized(self) -> bool:
        return self.type not in UNQUANTIZED


def choose(named: str | None, runs_root: Path = runs.DEFAULT_RUNS, nano: Path = NANO) -> Choice:
    """The GGUF that `ftllm chat [MODEL]` loads; its header is whole and says that it is a model.

    Args:
        named: a GGUF's path, a run's path or name, or a directory with GGUFs; None for the latest run that has one,
            else the nano model's.
        runs_root: where runs are.
        nano: the embedded model's directory, for its exported GGUF.

    Raises:
        UserError: there is none, or it is not a GGUF, cut short, or not a model.
    """
    choice = _latest(runs_root, nano) if named is None else _named(named, runs_root)
    check_model(choice.path)
    return choice


def check_model(path: Path) -> Header:
    """The header of a GGUF that is a model.

    Raises:
        UserError: it is missing, not a GGUF, cut short, or something else than a model.
    """
    header = read_header(path)
    kind = "mmproj" if header.architecture == "clip" else header.kind
    if kind != "model":
        raise UserError(f"{path} is a GGUF of kind {kind!r}, not a model", MODEL_HINT)
    return header


def candidates(paths: Iterable[Path]) -> list[Candidate]:
    """The models among GGUF files; projectors, adapters and importance matrices are left out.

    A header is read only where the name leaves a doubt: that of a large vocabulary takes a while.
    """
    found = []
    for path in sorted(paths):
        shard = SHARD.search(path.stem)
        if shard and int(shard[1]) != 1:
            continue
        stem = path.stem[: shard.start()] if shard else path.stem
        kind: str | None = stem.rpartition("-")[2].upper()
        if kind not in FILE_TYPES or DOUBTFUL.search(stem):
            try:
                kind = check_model(path).file_type
            except UserError as error:
                if error.hint == MODEL_HINT:
                    continue
        found.append(Candidate(path, kind or "", sum(item.stat().st_size for item in shards(path))))
    return found


def shards(path: Path) -> list[Path]:
    """The files that a model is in, in order: `path` alone, or all shards beside the one that `path` is."""
    shard = SHARD.search(path.stem)
    if shard is None:
        return [path]
    return sorted(path.parent.glob(f"{_escaped(path.stem[: shard.start()])}-?????-of-{shard[2]}.gguf"))


def best(paths: Iterable[Path]) -> Candidate | None:
    """The Q4_K_M, else the largest quantized file, else the largest."""
    return max(candidates(paths), key=lambda item: (item.type == PREFERRED, item.quantized, item.size), default=None)


def _named(named: str, runs_root: Path) -> Choice:
    path = Path(named)
    if path.is_file():
        return Choice(path, "")
    run = runs.find(named, runs_root)
    if run is not None:
        candidate = best(run.gguf.glob("*.gguf"))
        if candidate is None:
            raise UserError(f"the run {run.name} has no GGUF yet", f"make one: `ftllm export {named}`")
        return Choice(candidate.path, f"run {run.name}")
    if path.is_dir():
        candidate = best(path.glob("*.gguf"))
        if candidate is None:
            raise UserError(f"{path} holds no GGUF", f"make one: `ftllm export {named}`")
        return Choice(candidate.path, "")
    raise UserError(
        f"{named}: no such GGUF file, and no run of that name in {runs_root}",
        "give a .gguf file or a run; make one with `ftllm export`",
    )


def _latest(runs_root: Path, nano: Path) -> Choice:
    unexported = ""
    for run in reversed(runs.all_runs(runs_root)):
        candidate = best(run.gguf.glob("*.gguf"))
        if candidate is not None:
            return Choice(candidate.path, f"run {run.name}")
        unexported = unexported or run.name
    name = nano.name
    exported = [
        path
        for directory in (Path("gguf"), nano.parent, nano, nano / "gguf")
        for path in (*directory.glob(f"{name}-*.gguf"), *directory.glob(f"{name}.gguf"))
    ]
    candidate = best(exported)
    if candidate is not None:
        return Choice(candidate.path, f"the {name} model")
    if unexported:
        raise UserError(f"no GGUF yet: the run {unexported} is not exported", f"make one: `ftllm export {unexported}`")
    raise UserError(
        f"no model to talk to: no run in {runs_root} and no exported {name} model",
        f"`ftllm demo` makes one, `ftllm export {nano}` exports the embedded one, or give a .gguf file",
    )


def _escaped(text: str) -> str:
    """`text` for a glob pattern that means it literally."""
    return re.sub(r"([*?[])", r"[\1]", text)
