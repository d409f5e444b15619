"""Which models this machine has (runs, GGUFs, the Hub's cache), told from file names and GGUF headers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ftllm import runs
from ftllm.errors import UserError
from ftllm.llama.header import Header, read_header
from ftllm.llama.types import FILE_TYPES
from ftllm.values import dataclass

PREFERRED = "Q4_K_M"
NANO = Path("models/nano")
CLONE = Path(__file__).resolve().parent.parent
SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")
DOUBTFUL = re.compile("mmproj|lora|adapter|imatrix", re.IGNORECASE)
UNQUANTIZED = ("F32", "F16", "BF16")
MODEL_HINT = "give a model's GGUF"
# Beside the weights: compute buffers, the program, and a KV cache of so many tokens (what `ftllm chat` takes at most).
BESIDE_SHARE, BESIDE_BYTES, CHAT_TOKENS = 0.1, 400 << 20, 8192


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


@dataclass(frozen=True)
class Cached:
    """A GGUF in the Hub's cache.

    Attributes:
        name: its path in the repository.
        path: in the cache's snapshot of `commit`; `blob` is where its bytes are.
    """

    repo: str
    commit: str
    name: str
    path: Path
    blob: Path


@dataclass(frozen=True)
class Model:
    """A model on this machine, as its header tells.

    Attributes:
        name: what to call it in `ftllm chat`.
        origin: `run NAME`, `file` or `cache`.
        size: in bytes, all shards.
        fits: whether it runs in the memory that is free now, GPUs' included.
        problem: why its header cannot be read; then the figures are empty.
    """

    path: Path
    name: str
    origin: str
    type: str
    size: int
    architecture: str = ""
    parameters: int = 0
    bits_per_weight: float = 0.0
    context: int = 0
    fits: bool = False
    problem: str = ""


def nano_directory() -> Path | None:
    """Where the embedded nano model is: in this clone of the repository, else in the working directory."""
    return next((place.resolve() for place in (CLONE / NANO, NANO) if place.is_dir()), None)


def everything(runs_root: Path = runs.DEFAULT_RUNS, nano: Path = NANO) -> list[Model]:
    """Every model there is: those of runs, oldest run first, those lying here, and those in the Hub's cache."""
    from ftllm.llama.gpus import memory_for_models

    memory = memory_for_models()
    found = []
    for run in runs.all_runs(runs_root):
        for candidate in candidates(run.gguf.glob("*.gguf")):
            name = run.name if candidate.type == PREFERRED else _shown(candidate.path)
            found.append(_model(candidate, name, f"run {run.name}", memory))
    places = (Path(), Path("gguf"), nano.parent, nano, nano / "gguf")
    for candidate in candidates({path.resolve(): path for place in places for path in place.glob("*.gguf")}.values()):
        found.append(_model(candidate, _shown(candidate.path), "file", memory))
    snapshots = {file.path: file for file in cached()}
    for candidate in candidates(snapshots):
        file = snapshots[candidate.path]
        found.append(_model(candidate, f"{file.repo}:{candidate.type}", "cache", memory))
    return found


def cached(repo: str | None = None) -> list[Cached]:
    """Every GGUF in the Hub's cache, or those of a repository, by repository and name."""
    from huggingface_hub import constants

    found = []
    for folder in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*")):
        named = folder.name.removeprefix("models--").replace("--", "/")
        for path in sorted(folder.glob("snapshots/*/**/*.gguf")) if repo in (None, named) else ():
            commit, *parts = path.relative_to(folder / "snapshots").parts
            if path.is_file():
                found.append(Cached(named, commit, "/".join(parts), path, path.resolve()))
    return found


def fits(size: int, memory: int, kv_bytes: int = 0) -> bool:
    """Whether a model of `size` bytes runs in `memory`; unknown memory (0) takes everything."""
    return not memory or size * (1 + BESIDE_SHARE) + BESIDE_BYTES + kv_bytes <= memory


def _model(candidate: Candidate, name: str, origin: str, memory: int) -> Model:
    path, size = candidate.path, candidate.size
    try:
        headers = [read_header(shard) for shard in shards(path)]
    except UserError as error:
        return Model(path, name, origin, candidate.type, size, problem=error.message)
    first, weights = headers[0], sum(header.n_params for header in headers)
    context = first.n_ctx_train
    kv_bytes = first.kv_bytes_per_token() * min(context or CHAT_TOKENS, CHAT_TOKENS)
    return Model(
        path,
        name,
        origin,
        candidate.type,
        size,
        first.architecture,
        weights,
        8 * sum(header.tensor_bytes for header in headers) / weights if weights else 0.0,
        context,
        fits(size, memory, kv_bytes),
    )


def _shown(path: Path) -> str:
    """A path as a person would type it here."""
    try:
        return str(path.relative_to(Path.cwd()) if path.is_absolute() else path)
    except ValueError:
        return str(path)


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


def projector_beside(model: Path) -> Path | None:
    """The mmproj by which a model sees images, where one that fits lies beside it."""
    from ftllm.llama.vision import find_projector

    return find_projector(model)


def candidates(paths: Iterable[Path]) -> list[Candidate]:
    """The models among GGUF files; projectors, adapters, importance matrices and links to nowhere are left out.

    A header is read only where the name leaves a doubt: that of a large vocabulary takes a while.
    """
    found = []
    for path in sorted(paths):
        shard = SHARD.search(path.stem)
        if (shard and int(shard[1]) != 1) or not path.is_file():
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
