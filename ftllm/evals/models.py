"""What can be measured: a GGUF, a run, or a model directory, and where its weights are in each form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from ftllm import catalogue, runs
from ftllm.errors import UserError
from ftllm.runs import Run, day_of

NANO = "nano"  # the directory of the embedded base, which holds its own held-out data


@dataclass(frozen=True)
class Checkpoint:
    """Weights that transformers loads.

    Attributes:
        base: a model directory, or a repository's name on the Hub.
        revision: of the repository.
        adapter: directory of a PEFT adapter on top of the base, or None.
        tokenizer: directory with the tokenizer's files; None is the base's own.
    """

    base: str
    revision: str | None = None
    adapter: Path | None = None
    tokenizer: Path | None = None


@dataclass(frozen=True)
class Target:
    """One model to measure.

    Attributes:
        label: its name in tables.
        gguf: the file llama.cpp runs, or None where there is none.
        checkpoint: the weights for transformers, or None for a plain GGUF.
        run: the run it is or belongs to.
        today: the day that its chat template is told where it asks: the run's, whose training wrote it.
    """

    label: str
    gguf: Path | None
    checkpoint: Checkpoint | None
    run: Run | None = None
    today: date | None = None


def resolve(given: str | None, root: Path = runs.DEFAULT_RUNS) -> Target:
    """The model that `given` names: a path first, then a run's name under `root`; None is the latest run.

    Raises:
        UserError: it is none of these, or its training has not finished.
    """
    if given is None:
        return _of_run(runs.latest(root))
    path = Path(given).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise UserError(f"{path} is not a model", "give a .gguf file, a run or a model directory")
        around = _run_around(path)
        return Target(path.stem, path, None, around, day_of(around.read_manifest()) if around else None)
    run = runs.find(str(path), root)
    if run is not None:
        return _of_run(run)
    if (path / "config.json").is_file():
        return Target(path.resolve().name, None, Checkpoint(str(path)))
    if path.is_dir():
        raise UserError(
            f"{path} is neither a run nor a model directory", "a run has manifest.json, a model config.json"
        )
    raise UserError(f"no model file, directory or run called {given}", f"runs are looked for in {root} (--runs DIR)")


def resolve_all(given: list[str], root: Path = runs.DEFAULT_RUNS) -> list[Target]:
    """As `resolve`, each model once, with labels that differ: files of one name are told apart by their paths."""
    found = {resolve(name, root): name for name in reversed(given)}
    targets, given = list(found)[::-1], list(found.values())[::-1]
    labels = [target.label for target in targets]
    return [
        replace(target, label=given[i]) if labels.count(target.label) > 1 else target
        for i, target in enumerate(targets)
    ]


def _of_run(run: Run) -> Target:
    manifest = run.read_manifest()
    if manifest.get("status") != "finished":
        status = manifest.get("status", "unknown")
        raise UserError(
            f"run {run.name} has not finished (its status is {status})", "go on with `ftllm train --resume`"
        )
    base: dict[str, Any] = manifest.get("base") or {}
    named = base.get("path") or base.get("repo")
    if not named:
        raise UserError(f"{run.manifest} does not say what the base is", "the run is damaged; train it again")
    revision = None if base.get("path") else base.get("revision")
    checkpoint = Checkpoint(str(named), revision, run.adapter, run.adapter)
    exported = catalogue.best(run.gguf.glob("*.gguf"))
    return Target(run.name, exported.path if exported else None, checkpoint, run, day_of(manifest))


def _run_around(gguf: Path) -> Run | None:
    """The run whose `gguf/` the file lies in."""
    parent = gguf.resolve().parent.parent
    return Run(parent) if gguf.resolve().parent.name == "gguf" and runs.is_run(parent) else None


def default_data(target: Target) -> list[Path]:
    """What a run is measured on when no data are named: its evaluation data, and the nano model's if that is its base.

    Raises:
        UserError: nothing says what to measure on.
    """
    ask = "name graded prompts or conversations with --data FILE.jsonl"
    if target.run is None:
        raise UserError(f"nothing says what to measure {target.label} on", ask)
    manifest = target.run.read_manifest()
    found = []
    named = (manifest.get("config") or {}).get("eval")
    if isinstance(named, str) and Path(named).suffix in (".jsonl", ".json"):
        found.append(Path(named))
        if not found[0].is_file():
            raise UserError(f"the evaluation data of run {target.run.name} is not at {named}", ask)
    base = Path((manifest.get("base") or {}).get("path") or "")
    if base.name == NANO:
        found += [path for path in heldout_files(base) if path not in found]
    if not found:
        raise UserError(f"run {target.run.name} names no evaluation data", ask)
    return found


def heldout_files(nano: Path) -> list[Path]:
    """The nano model's own held-out data: graded prompts, and conversations where there are any."""
    return [path for path in (nano / "heldout.jsonl", nano / "heldout_conversations.jsonl") if path.is_file()]
