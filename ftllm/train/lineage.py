"""Runs that go on from other runs: what a training starts with, and what is recorded of where it comes from.

A run can go on with its parent's adapter (`same`), or keep that as it is and train a new one beside it (`merge`, as
if the parent's had been merged into the base). The second is stacked on the first: for a linear layer

    W + s1 B1 A1 + s2 B2 A2 = W + s2 [s1/s2 B1, B2] [A1; A2]

so that what comes out is one plain adapter, of rank r1 + r2, for the original base: no merged copy of the base is
written or named anywhere, no rounding gathers from stage to stage, and peft, vLLM and export take it as any other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ftllm import runs
from ftllm.errors import UserError
from ftllm.files import sha256_file
from ftllm.runs import Run
from ftllm.train import adapter
from ftllm.train.base import Base
from ftllm.train.config import LoraConfig, TrainConfig
from ftllm.train.layers import LAYER, part_of
from ftllm.train.processes import here
from ftllm.train.settings import Setting, Settings

GIVEN_UP = "lora.{key} is {ours}, and {name}'s adapter, which this goes on with, has {theirs}"


@dataclass(frozen=True)
class Parent:
    """A run that another goes on from.

    Attributes:
        run: where it lies.
        manifest: its manifest.
        lora: the shape of its adapter, earlier ones stacked into it included.
        mode: whether its adapter is trained on (`same`) or kept (`merge`).
    """

    run: Run
    manifest: dict[str, Any]
    lora: LoraConfig
    mode: Literal["same", "merge"]

    @property
    def weights(self) -> Path:
        """The file of its adapter's weights."""
        return self.run.adapter / adapter.WEIGHTS

    @property
    def kept(self) -> int:
        """How much of the rank is the parent's and not trained."""
        return self.lora.rank if self.mode == "merge" else 0

    @property
    def summary(self) -> str:
        """What is gone on from, and with what of it."""
        how = "kept, with a new one beside it" if self.kept else "trained on"
        return f"{self.run.name}, whose adapter of rank {self.lora.rank} is {how}"

    def lora_with(self, own: LoraConfig) -> LoraConfig:
        """The shape of the adapter that holds the parent's and a training's own."""
        if not self.kept:
            return own
        rank = self.lora.rank + own.rank
        both = {*self.lora.targets, *own.targets}
        targets = tuple(part for part in ("attention", "mlp") if part in both)
        return own.model_copy(update={"rank": rank, "alpha": scale(own) * rank, "rslora": False, "targets": targets})

    def record(self) -> dict[str, Any]:
        """For the manifest: which run, what of it was taken, and where that came from in turn."""
        config = self.manifest.get("config") or {}
        return {
            "run": self.run.name,
            "path": str(self.run.path),
            "adapter": self.mode,
            "rank": self.lora.rank,
            "sha256": sha256_file(self.weights),
            "stage": config.get("stage"),
            "preset": config.get("preset"),
            "steps": (self.manifest.get("results") or {}).get("steps"),
            "from": self.manifest.get("from"),
        }


def scale(lora: LoraConfig) -> float:
    """What the product of the two matrices is multiplied by (arXiv 2106.09685, 2312.03732)."""
    return lora.alpha / (math.sqrt(lora.rank) if lora.rslora else lora.rank)


def with_parent(layers: Sequence[Settings], root: Path) -> list[Settings]:
    """Layers of settings, and below them what a parent decides: the base, and the shape of an adapter gone on with.

    Raises:
        UserError: the parent is not there, or not finished.
    """
    given: Settings = {}
    for layer in layers:
        given.update(layer)
    named = given.get("from_run")
    if named is None or not isinstance(named.value, str):
        return list(layers)
    mode = given["from_adapter"].value if "from_adapter" in given else "same"
    parent = find(named.value, root, "merge" if mode == "merge" else "same")
    place = f"{named.place} ({parent.run.name})"
    base = parent.manifest["base"]
    reference = f"{base['repo']}@{base['revision']}" if base.get("repo") else base["path"]
    below = {"model": Setting(reference, place)}
    if parent.mode == "same":
        shape = parent.lora.model_dump(include={"rank", "alpha", "rslora", "targets"})
        below |= {f"lora.{key}": Setting(value, place) for key, value in shape.items()}
    return [below, *layers, {"from_run": Setting(str(parent.run.path), named.place)}]


def parent_of(config: TrainConfig, root: Path = runs.DEFAULT_RUNS) -> Parent | None:
    """The run that a training goes on from; None where it begins with the base.

    Raises:
        UserError: it is not there or not finished, or its adapter cannot be gone on with as the settings say.
    """
    if config.from_run is None:
        return None
    parent = find(config.from_run, root, config.from_adapter)
    if parent.mode == "same":
        for key in ("rank", "alpha", "rslora", "targets"):
            ours, theirs = getattr(config.lora, key), getattr(parent.lora, key)
            if ours != theirs:
                raise UserError(
                    GIVEN_UP.format(key=key, ours=ours, theirs=theirs, name=parent.run.name),
                    "leave lora.* out, or start a new adapter with --set from_adapter=merge",
                )
    elif config.lora.dropout:
        raise UserError(
            "lora.dropout would drop from the merged adapter too, and from_adapter is merge", "set lora.dropout to 0"
        )
    elif here().sharded:
        message = "from_adapter: merge keeps a part of each tensor, which cannot be done where FSDP splits them"
        raise UserError(message, "train with DDP (torchrun), or go on with the same adapter")
    return parent


def find(name: str, root: Path, mode: Literal["same", "merge"]) -> Parent:
    """A finished run by its path, or its name under `root`.

    Raises:
        UserError: it is not there, not finished, or damaged.
    """
    run = runs.find(name, root)
    if run is None:
        raise UserError(f"there is no run {name} to go on from", "`ftllm train --runs DIR` says where runs are")
    manifest = run.read_manifest()
    status = manifest.get("status")
    if status != "finished":
        hint = f"finish it first: `ftllm train --resume --name {run.name}`"
        raise UserError(f"{run.name} has not finished its training (it is {status})", hint)
    base = manifest.get("base")
    if not isinstance(base, dict) or not (base.get("path") or base.get("repo")):
        raise UserError(f"{run.manifest} does not say what base it was trained on", "the run is damaged")
    return Parent(run, manifest, _shape(run, manifest), mode)


def _shape(run: Run, manifest: dict[str, Any]) -> LoraConfig:
    """The shape of a run's adapter: numbers from its configuration, parts from the manifest."""
    path = run.adapter / adapter.CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        targets = manifest["config"]["lora"]["targets"]
        if (manifest.get("from") or {}).get("adapter") == "merge":
            targets = _parts(run)
        shape = LoraConfig(
            rank=found["r"], alpha=found["lora_alpha"], rslora=bool(found.get("use_rslora")), targets=targets
        )
        if found.get("rank_pattern") or found.get("alpha_pattern") or not (run.adapter / adapter.WEIGHTS).is_file():
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{run.adapter} is no adapter that training wrote", "the run is damaged; train it again"
        ) from None
    return shape


def _parts(run: Run) -> list[str]:
    """`attention` and `mlp`, as far as an adapter holds layers of theirs."""
    from safetensors import safe_open

    with safe_open(run.adapter / adapter.WEIGHTS, "pt") as file:
        found = {part_of(name.partition(".lora_")[0]) for name in file.keys()}  # noqa: SIM118 - not a mapping
    return [part for part in ("attention", "mlp") if part in found]


def require_same_base(parent: Parent, found: Base, files: dict[str, str]) -> None:
    """Refuse to put a parent's adapter on another base than its own.

    Args:
        parent: the run gone on from.
        found: the base.
        files: its files' SHA-256.

    Raises:
        UserError: weights or configuration differ.
    """
    theirs: dict[str, str] = parent.manifest["base"].get("files") or {}
    decisive = {name for name in {*theirs, *files} if name.endswith(".safetensors") or name == "config.json"}
    different = sorted(name for name in decisive if theirs.get(name) != files.get(name))
    if different:
        base = parent.manifest["base"]
        raise UserError(
            f"{parent.run.name} was trained on {base.get('repo') or base.get('path')}, and {found.reference} is "
            f"another model: {different[0]} differs",
            "leave --model out, and the run's own base is taken",
        )


@dataclass(frozen=True)
class Kept:
    """A part of a trained tensor that stays as it is.

    Attributes:
        parameter: the tensor.
        axis: along which the part is counted.
        values: of the part, the first along that axis.
    """

    parameter: Any
    axis: int
    values: Any

    def restore(self) -> None:
        """Undo what an optimizer did to it beside following the gradient, which is zero: weight decay."""
        self.parameter.detach().narrow(self.axis, 0, self.values.shape[self.axis]).copy_(self.values)


def start(model: Any, parent: Parent, own: LoraConfig) -> list[Kept]:
    """Put a parent's adapter into a model's fresh one, as far as it reaches.

    Args:
        model: a PEFT model with an adapter of the shape `parent.lora_with(own)`.
        parent: the run gone on from.
        own: the shape of this training's own adapter.

    Returns:
        the parts that must stay as they are; none where the parent's adapter is trained on.

    Raises:
        UserError: the adapter does not fit the model.
    """
    import torch
    from safetensors.torch import load_file

    theirs = {_place(name): tensor for name, tensor in load_file(parent.weights).items()}
    factor = scale(parent.lora) / scale(own) if parent.kept else 1.0
    kept: list[Kept] = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" not in name:
                continue
            place = _place(name.replace(".default.", "."))
            axis = 0 if ".lora_A." in name else 1
            from_parent = theirs.pop(place, None)
            if parent.kept and part_of(place.partition(".lora_")[0]) not in own.targets:  # nothing of it is trained
                parameter.zero_()
                parameter.requires_grad_(False)
            elif parent.kept and from_parent is None:
                parameter.narrow(axis, 0, parent.kept).zero_()
            if from_parent is not None:
                wanted = [parent.lora.rank if i == axis else size for i, size in enumerate(parameter.shape)]
                if list(from_parent.shape) != wanted:
                    raise _unfitting(parent, f"{place} is {list(from_parent.shape)}, and not {wanted}")
                values = from_parent.to(parameter) * (factor if axis else 1.0)
                parameter.narrow(axis, 0, parent.lora.rank).copy_(values)
            if parent.kept and parameter.requires_grad:
                parameter.register_hook(_without(axis, parent.kept))
                kept.append(Kept(parameter, axis, parameter.narrow(axis, 0, parent.kept).clone()))
    if theirs:
        raise _unfitting(parent, f"there is no place for {min(theirs)}")
    return kept


def _without(axis: int, count: int) -> Any:
    """A hook that takes the first `count` along `axis` out of a gradient."""

    def hook(gradient: Any) -> Any:
        gradient = gradient.clone()
        gradient.narrow(axis, 0, count).zero_()
        return gradient

    return hook


def _place(name: str) -> str:
    """A tensor's name from its layer on: what stands before differs between a model and its text part alone."""
    layer = LAYER.search(name)
    return name[layer.start() :].lstrip(".") if layer else name


def _unfitting(parent: Parent, why: str) -> UserError:
    return UserError(f"the adapter of {parent.run.name} does not fit this base: {why}", "is it the same base?")
