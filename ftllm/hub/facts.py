"""What is known about a model that is to be published: from its files, its export and its training."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

from ftllm import catalogue, runs
from ftllm.errors import UserError
from ftllm.files import sha256_file
from ftllm.hubfiles import NAME
from ftllm.llama.header import Header, read_header
from ftllm.mirrors import original
from ftllm.runs import Run

RECORD = "export.json"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
MODELFILE = "Modelfile"
# Published beside the models where an export made them.
BESIDE = (MODELFILE, "template", "system", "params", "*imatrix*", "mmproj*.gguf", "*mmproj*.gguf")


@dataclass(frozen=True)
class Quantization:
    """One model file, or the shards of one.

    Attributes:
        paths: the file, or its shards in order.
        parameters: weights, of all shards.
        entry: what export.json says about it; empty where it says nothing.
    """

    paths: tuple[Path, ...]
    type: str
    bytes: int
    bits_per_weight: float
    imatrix: bool
    parameters: int = 0
    entry: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.paths[0].name

    @property
    def figures(self) -> dict[str, Any]:
        """What the verification measured."""
        return mapping(self.entry.get("verification"))

    def figure(self, key: str) -> float | None:
        """One of the verification's figures; None where it was not measured."""
        value = self.figures.get(key)
        return float(value) if number(value) else None


@dataclass(frozen=True)
class Facts:
    """A model to publish.

    Attributes:
        place: the directory the files are in.
        header: of one of the model files; None for an adapter alone.
        others: files that belong beside the models.
        manifest: of the run; empty without one.
        metrics: of the run, a line a step.
        samples: answers before and after, as the run keeps them.
        evaluation: what `ftllm eval` measured of the run.
        base_repo: `org/name` of the base; None where only a directory is known.
    """

    name: str
    place: Path
    quantizations: tuple[Quantization, ...] = ()
    others: tuple[Path, ...] = ()
    header: Header | None = None
    run: Run | None = None
    adapter: Path | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    metrics: tuple[dict[str, Any], ...] = ()
    samples: tuple[dict[str, Any], ...] = ()
    evaluation: dict[str, Any] = field(default_factory=dict)
    base_name: str = ""
    base_repo: str | None = None
    base_path: Path | None = None

    @property
    def entry(self) -> dict[str, Any]:
        """What export.json says of any of the files: the parts all of them share."""
        return next((item.entry for item in self.quantizations if item.entry), {})

    @property
    def tuned(self) -> bool:
        """Whether an adapter was trained, rather than a model only quantized."""
        return (
            self.adapter is not None
            or bool(self.manifest)
            or bool(mapping(self.entry.get("source")).get("adapter_sha256"))
        )

    @property
    def config(self) -> dict[str, Any]:
        return mapping(self.manifest.get("config"))

    @property
    def plot(self) -> Path | None:
        """The run's loss curve."""
        path = self.run.path / "loss.svg" if self.run else None
        return path if path is not None and path.is_file() else None


def of_models(given: str | None, runs_root: Path = runs.DEFAULT_RUNS) -> Facts:
    """The GGUF files of a run or a directory, and all that is known about them.

    Args:
        given: a directory, a run's path or name; None for the latest run that has GGUFs.

    Raises:
        UserError: there is no such thing, or no GGUF in it, or one is damaged or changed since it was exported.
    """
    run, place = _models_place(given, runs_root)
    record = read_record(place)
    quantizations = [_quantization(candidate, record) for candidate in catalogue.candidates(place.glob("*.gguf"))]
    if not quantizations:
        raise UserError(
            f"{place} holds no GGUF to publish", f"make one: `ftllm export {given or ''}`".rstrip(" `") + "`"
        )
    quantizations.sort(key=lambda item: (item.bytes, item.name))
    models = {path for item in quantizations for path in item.paths}
    beside = {path for pattern in BESIDE for path in place.glob(pattern) if path.is_file()}
    others = sorted(path for path in beside - models if path.suffix != ".partial")
    entry = next((item.entry for item in quantizations if item.entry), {})
    run = run or _run_of(entry, place)
    adapter = run.adapter if run else None
    header = read_header(quantizations[0].paths[0])
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", quantizations[0].paths[0].stem)
    name = re.sub(rf"[-.](i1-)?{re.escape(quantizations[0].type)}$", "", stem, flags=re.IGNORECASE)
    found = Facts(name, place, tuple(quantizations), tuple(others), header, run, adapter)
    return _with_training(found)


def of_adapter(given: str | None, runs_root: Path = runs.DEFAULT_RUNS) -> Facts:
    """The PEFT adapter of a run or a directory.

    Raises:
        UserError: there is none.
    """
    path = Path(given).expanduser() if given is not None else None
    if path is not None and (path / ADAPTER[0]).is_file():
        adapter = path.resolve()
        parent = Run(adapter.parent)
        run = parent if runs.is_run(parent.path) and parent.adapter == adapter else None
    else:
        run = runs.latest(runs_root) if given is None else runs.find(given, runs_root)
        if run is None:
            raise UserError(
                f"{given} is neither a run nor an adapter", "give a run's name, or a directory of an adapter"
            )
        adapter = run.adapter
    for name in ADAPTER:
        if not (adapter / name).is_file():
            raise UserError(f"{adapter} has no {name}", "let the training finish first: `ftllm train --resume`")
    return _with_training(Facts(run.name if run else adapter.name, adapter, run=run, adapter=adapter))


def read_record(place: Path) -> dict[str, dict[str, Any]]:
    """The entries of `export.json` by file name; empty where there is none.

    Raises:
        UserError: it is damaged.
    """
    path = place / RECORD
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {str(name): dict(entry) for name, entry in files.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is not what `ftllm export` writes", "export again, or move it away") from None


def _models_place(given: str | None, runs_root: Path) -> tuple[Run | None, Path]:
    """Where the GGUFs are, and the run where it was named."""
    if given is None:
        for run in reversed(runs.all_runs(runs_root)):
            if any(run.gguf.glob("*.gguf")):
                return run, run.gguf
        raise UserError(f"no run in {runs_root} has a GGUF", "make one with `ftllm export`, or name a directory")
    path = Path(given).expanduser()
    if path.is_dir() and any(path.glob("*.gguf")):
        path = path.resolve()
        parent = Run(path.parent)
        return (parent if runs.is_run(parent.path) and parent.gguf == path else None), path
    named = runs.find(given, runs_root)
    if named is not None:
        return named, named.gguf
    if path.is_file():
        raise UserError(f"{given} is a file", "give the directory it is in")
    if path.is_dir():
        return None, path.resolve()
    raise UserError(f"no run or directory called {given}", "runs are in runs/ (see --runs)")


def _quantization(candidate: catalogue.Candidate, record: dict[str, dict[str, Any]]) -> Quantization:
    paths = tuple(catalogue.shards(candidate.path))
    count = catalogue.SHARD.search(candidate.path.stem)
    if count and len(paths) != int(count[2]):
        raise UserError(f"{candidate.path} has {len(paths)} of its {int(count[2])} shards", "export it again")
    headers = [read_header(path) for path in paths]
    entry = _entry(paths, record)
    weights = sum(header.n_params for header in headers)
    bits = 8 * sum(header.tensor_bytes for header in headers) / weights if weights else 0.0
    imatrix = any(key.startswith("quantize.imatrix.") for key in headers[0].metadata)
    return Quantization(paths, candidate.type, candidate.size, bits, imatrix, weights, entry)


def _entry(paths: Sequence[Path], record: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """export.json's entry for a file, or for any of its shards, or for their common name."""
    whole = re.sub(r"-\d{5}-of-\d{5}(?=\.gguf$)", "", paths[0].name)
    return next((record[name] for name in (paths[0].name, whole) if name in record), {})


def recorded_hashes(facts: Facts) -> dict[str, str]:
    """SHA-256 by file name as the export recorded them."""
    hashes: dict[str, str] = {}
    for item in facts.quantizations:
        if len(item.paths) == 1 and isinstance(item.entry.get("sha256"), str):
            hashes[item.name] = item.entry["sha256"]
        for shard in item.entry.get("shards") or item.entry.get("parts") or []:
            if isinstance(shard, dict) and isinstance(shard.get("sha256"), str):
                hashes[Path(str(shard.get("path") or shard.get("name"))).name] = shard["sha256"]
    return hashes


def mapping(value: Any) -> dict[str, Any]:
    """A JSON object, or an empty one where something else stands."""
    return value if isinstance(value, dict) else {}


def number(value: Any) -> TypeGuard[float]:
    """Whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _run_of(entry: dict[str, Any], place: Path) -> Run | None:
    """The run that an export names, where it is still there with the same adapter."""
    named = mapping(entry.get("source")).get("adapter")
    if not isinstance(named, str):
        return None
    run = Run((place / named).resolve().parent)
    weights = run.adapter / ADAPTER[1]
    if not runs.is_run(run.path) or not weights.is_file():
        return None
    return run if sha256_file(weights) == mapping(entry.get("source")).get("adapter_sha256") else None


def _with_training(facts: Facts) -> Facts:
    """Add what the run and the adapter tell."""
    manifest = facts.run.read_manifest() if facts.run else {}
    recorded = mapping(manifest.get("base"))
    named = str(_adapter_config(facts.adapter).get("base_model_name_or_path") or "")
    repo = recorded.get("repo") or _repository(named) or _repository_of(facts.header)
    path = Path(recorded["path"]) if recorded.get("path") else Path(named) if Path(named).is_dir() and named else None
    name = (
        str(repo).rpartition("/")[2]
        if repo
        else path.name
        if path
        else str(mapping(facts.entry.get("source")).get("base") or "")
    )
    lines = _json_lines(facts.run.metrics) if facts.run else ()
    samples = _json(facts.run.path / "samples.json") if facts.run else []
    return replace(
        facts,
        manifest=manifest,
        metrics=tuple(lines),
        samples=tuple(item for item in samples if isinstance(item, dict)) if isinstance(samples, list) else (),
        evaluation=mapping(_json(facts.run.evaluation)) if facts.run else {},
        base_name=name,
        base_repo=repo,
        base_path=path if path is not None and path.is_dir() else None,
    )


def _adapter_config(adapter: Path | None) -> dict[str, Any]:
    return mapping(_json(adapter / ADAPTER[0])) if adapter else {}


def _repository(named: str) -> str | None:
    """The 16-bit repository that an adapter's configuration names."""
    return original(named) if NAME.fullmatch(named) and not Path(named).exists() else None


def _repository_of(header: Header | None) -> str | None:
    """The base's repository as a GGUF names it."""
    url = str(header.metadata.get("general.base_model.0.repo_url", "")) if header else ""
    name = url.removeprefix("https://huggingface.co/")
    return name if url != name and NAME.fullmatch(name) else None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a file of JSON objects; what is cut short is left out."""
    lines = []
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            break
        lines.append(value)
    return [line for line in lines if isinstance(line, dict)]
