"""What to export: a run, an adapter or a model directory, and the base model that belongs to it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftllm import runs
from ftllm.errors import UserError
from ftllm.export.checkpoint import SETTINGS, base_files, check_checkpoint, read_json, weight_files
from ftllm.export.lora import DAMAGED
from ftllm.hashes import known_sha256
from ftllm.hubfiles import repository_of, snapshot
from ftllm.mirrors import is_four_bit, original

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TRAINING = "training.json"  # what `ftllm train` knows of the base, beside the adapter
BASE_FILES = ["*.safetensors", "*.json", "tokenizer.model", "*.jinja", "merges.txt", "vocab.txt", "README.md"]
RECORD = "it is only a record of the training; remove it"
COMMIT = re.compile(r"[0-9a-f]{40}")
WRITABLE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Source:
    """A resolved thing to export.

    Args:
        base: directory of the 16- or 32-bit checkpoint.
        base_name: what the base is called, for names and provenance.
        adapter: directory of the PEFT adapter, or None for a plain model.
        run: the run it comes from, if any.
        name: stem of the output files, without the type.
        out: default directory for the outputs.
        expected: SHA-256 by file name that the base must have (recorded by training); empty when unknown.
        four_bit: the adapter was trained on 4-bit weights.
        doubts: why the base may be another than the adapter was trained on, a sentence each.
    """

    base: Path
    base_name: str
    adapter: Path | None
    run: runs.Run | None
    name: str
    out: Path
    expected: dict[str, str] = field(default_factory=dict)
    four_bit: bool = False
    doubts: tuple[str, ...] = ()


def resolve(
    given: str | None, *, base: str | None = None, runs_root: Path = runs.DEFAULT_RUNS, offline: bool = False
) -> Source:
    """Find what `given` names: a path first, then a run's name; None is the latest run.

    Raises:
        UserError: it is nothing that can be exported, or its base cannot be found.
        WorkError: a base on the Hub could not be downloaded.
    """
    if given is None:
        return _from_run(runs.latest(runs_root), base, offline)
    path = Path(given).expanduser()
    if (path / ADAPTER_CONFIG).is_file():
        return _from_adapter(path.resolve(), base, offline)
    run = runs.find(given, runs_root)
    if run is not None:
        return _from_run(run, base, offline)
    if (path / "config.json").is_file():
        if base is not None:
            raise UserError(f"{path} is a whole model, so --base has no meaning", "leave --base out")
        model = path.resolve()
        check_checkpoint(model)
        name = _name_of(model)
        return Source(model, name, None, None, _stem(name), Path("gguf"))
    if path.is_dir():
        raise UserError(
            f"{path} is not a run, an adapter or a model directory",
            f"a run has manifest.json, an adapter {ADAPTER_CONFIG}, a model config.json and *.safetensors",
        )
    if path.exists():
        raise UserError(f"{path} is not a directory", "give a run, an adapter directory or a model directory")
    raise UserError(
        f"no run or directory called {given}", "runs are in runs/ (see --runs); without a name the latest is taken"
    )


def check_base(source: Source) -> dict[str, str]:
    """SHA-256 of the base's files by name, compared with those training recorded.

    Raises:
        UserError: the base is not the one the adapter was trained on.
    """
    hashes = {path.name: known_sha256(path) for path in base_files(source.base)}
    for name in (name for name in hashes if name in source.expected and name not in SETTINGS):
        if hashes[name] != source.expected[name]:
            raise UserError(
                f"{source.base} is not the base this adapter was trained on: {name} differs",
                "give the right one with --base; merging into another model gives nonsense",
            )
    return hashes


def _from_run(run: runs.Run, base: str | None, offline: bool) -> Source:
    manifest = run.read_manifest()
    if not (run.adapter / ADAPTER_WEIGHTS).is_file():
        status = manifest.get("status", "unknown")
        raise UserError(f"run {run.name} has no adapter (its status is {status})", "let its training finish first")
    recorded = _base_of(manifest, run.manifest)
    place = recorded.get("path")
    if recorded.get("repo") and place and not Path(place).is_dir():  # the cache was emptied since
        place = None
    wanted = base or place or recorded.get("repo") or _named_base(run.adapter)
    revision = None if base else recorded.get("revision")
    directory, base_name = _base_directory(wanted, revision, offline, f"run {run.name}")
    four_bit = bool(recorded.get("four_bit") or (manifest.get("config") or {}).get("load_in_4bit"))
    expected = _hashes(recorded)
    name = _stem(run.name if run.name.startswith(base_name) else f"{base_name}-{run.name}")
    doubts = _unknown_weights(directory, expected, measured=run.held_out.is_file())
    return Source(directory, base_name, run.adapter, run, name, run.gguf, expected, four_bit, doubts)


def _from_adapter(adapter: Path, base: str | None, offline: bool) -> Source:
    if not (adapter / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"{adapter} has no {ADAPTER_WEIGHTS}", "only safetensors adapters are read")
    parent = runs.Run(adapter.parent)
    if runs.is_run(parent.path) and parent.adapter == adapter:
        return _from_run(parent, base, offline)
    config = read_json(adapter / ADAPTER_CONFIG, DAMAGED)
    wanted = base or _named_base(adapter)
    directory, base_name = _base_directory(wanted, None if base else config.get("revision"), offline, str(adapter))
    named = str(config.get("base_model_name_or_path") or "")
    recorded: dict[str, Any] = {}
    if (adapter / TRAINING).is_file():
        recorded = _base_of(read_json(adapter / TRAINING, RECORD), adapter / TRAINING)
    expected = _hashes(recorded)
    name = _stem(f"{base_name}-{adapter.name}")
    doubts = _unknown_weights(directory, expected) if expected else _doubts(adapter, directory, base_name, config)
    return Source(directory, base_name, adapter, None, name, Path("gguf"), expected, is_four_bit(named), doubts)


def _base_of(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """What a manifest, or `training.json`, says of the base."""
    found = record.get("base") or {}
    if not isinstance(found, dict):
        hint = RECORD if path.name == TRAINING else "the run is damaged; train it again"
        raise UserError(f"{path} does not describe a base", hint)
    return found


def _hashes(recorded: dict[str, Any]) -> dict[str, str]:
    """SHA-256 by file name, from what training recorded of a base."""
    files = recorded.get("files")
    return {Path(name).name: str(digest) for name, digest in files.items()} if isinstance(files, dict) else {}


def _unknown_weights(base: Path, expected: dict[str, str], *, measured: bool = False) -> tuple[str, ...]:
    """Whether the hashes that training recorded say nothing of a base's weights: they may be cut into other shards.

    What training measured on the text it held out (`measured`) tells then; `--verify full` compares it.
    """
    if not expected or {path.name for path in weight_files(base)} <= set(expected):
        return ()
    instead = "; --verify full compares what training measured" if measured else ""
    return (
        f"the weights in {base} are in other files than those trained on, so their hashes cannot be compared{instead}",
    )


def _doubts(adapter: Path, base: Path, base_name: str, config: dict[str, Any]) -> tuple[str, ...]:
    """Why a base may not be an adapter's, where no hashes tell: another name, commit or tokenizer.

    Two models of one shape cannot be told apart by the adapter's numbers, and merging into the wrong one passes every
    comparison with itself.
    """
    found = []
    named, commit = str(config.get("base_model_name_or_path") or ""), str(config.get("revision") or "")
    wanted = Path(original(named)).name
    if wanted and wanted != base_name and Path(named).expanduser().resolve() != base:
        found.append(f"{adapter} was trained on {wanted} by its own account, and is merged into {base_name}")
    elif COMMIT.fullmatch(commit) and repository_of(base) and base.name != commit and not is_four_bit(named):
        found.append(f"{adapter} was trained on commit {commit} of {wanted}, and is merged into {base.name}")
    ours, theirs = (_vocabulary(place) for place in (adapter, base))
    if ours is not None and theirs is not None and ours != theirs:
        found.append(f"the tokenizer beside {adapter} has other tokens than {base_name}'s")
    return tuple(found)


def _vocabulary(directory: Path) -> Any:
    """What tokenizer.json maps to ids, as it lies there; None without one."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        return None
    found = read_json(path, "copy it again from the original")
    try:
        added = {token["content"]: token["id"] for token in found.get("added_tokens") or []}
        return (found.get("model") or {}).get("vocab"), added
    except (AttributeError, KeyError, TypeError):
        raise UserError(f"{path} is not a tokenizer", "copy it again from the original") from None


def _name_of(directory: Path) -> str:
    """What to call a model: its repository, where the directory is a snapshot in the Hub's cache, named by a commit."""
    return (repository_of(directory) or directory.name).rpartition("/")[2]


def _named_base(adapter: Path) -> str:
    named = read_json(adapter / ADAPTER_CONFIG, DAMAGED).get("base_model_name_or_path")
    if not named:
        raise UserError(f"{adapter} does not say what its base model is", "name it with --base")
    return original(str(named))


def _base_directory(wanted: str, revision: str | None, offline: bool, of: str) -> tuple[Path, str]:
    """The base's directory and name: a path wins over a Hub id."""
    path = Path(wanted).expanduser()
    if path.is_dir():
        path = path.resolve()
        check_checkpoint(path)
        return path, _name_of(path)
    if path.is_absolute() or wanted.startswith((".", "~")) or wanted.count("/") != 1:
        raise UserError(f"the base model of {of} is not at {wanted}", "say where it is with --base")
    try:
        directory = snapshot(wanted, revision=revision, patterns=BASE_FILES, offline=offline)
    except UserError as error:
        hint = f"{error.hint}; or say where the base is with --base"
        raise type(error)(f"the base model of {of}: {error.message}", hint) from None
    check_checkpoint(directory)
    return directory, wanted.split("/")[1]


def _stem(name: str) -> str:
    return WRITABLE.sub("-", name).strip("-.") or "model"
