"""A LoRA on single experts, as checkpoints hold them, in a model of transformers, which holds a layer's in one piece.

Where an expert's matrix went is not taken from any list of names: its values are looked for among those of its layer.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open

from ftllm.export.blocks import Floats
from ftllm.export.checkpoint import read_header, weight_files

EXPERT = re.compile(r".*\.layers\.(?P<layer>\d+)\..*\.experts\.(?P<number>\d+)\.")


@dataclass(frozen=True)
class Place:
    """Where an expert's matrix lies: `rows` of expert `number` in a parameter `[experts, rows, in]` of a module."""

    module: Any
    parameter: str
    number: int
    rows: slice

    def values(self, rows: npt.NDArray[np.int64]) -> Floats:
        """Some rows of the base's matrix in float32."""
        stored = getattr(self.module, "stored", {}).get(self.parameter, getattr(self.module, self.parameter))
        found: Floats = stored[self.number, self.rows][rows].detach().float().numpy()
        return found


def place_of(model: Any, checkpoint: Path, layer: str) -> Place | None:
    """Where `layer` of a checkpoint, such as `model.layers.0.mlp.experts.3.up_proj`, is in the model; None: nowhere."""
    match = EXPERT.match(layer)
    matrix = _read(checkpoint, layer + ".weight")
    if match is None or matrix is None:
        return None
    number = int(match["number"])
    for module, name, parameter in _fused(model)[match["layer"]]:
        if parameter.shape[0] <= number or parameter.shape[2] != matrix.shape[1]:
            continue
        for start in range(0, parameter.shape[1] - len(matrix) + 1, len(matrix)):
            rows = slice(start, start + len(matrix))
            if torch.equal(parameter[number, rows].float(), matrix.float()):
                return Place(module, name, number, rows)
    return None


def change(module: Any, changes: Sequence[tuple[Place, torch.Tensor, torch.Tensor, float]]) -> None:
    """Have a module compute with `scale * b @ a` added to its matrices, each at its place."""
    kept: dict[str, Any] = {}

    def add(module: Any, _inputs: Any) -> None:
        for name in {place.parameter for place, *_ in changes} - set(getattr(module, "stored", {})):
            kept[name] = module._parameters[name]  # what is mapped is a copy now, made for this run of the module alone
            module._parameters[name] = torch.nn.Parameter(kept[name].detach().clone(), requires_grad=False)
        for place, a, b, scale in changes:
            module._parameters[place.parameter].data[place.number, place.rows].addmm_(b, a, alpha=scale)

    def put_back(module: Any, _inputs: Any, _output: Any) -> None:
        module._parameters.update(kept)

    module.register_forward_pre_hook(add)
    module.register_forward_hook(put_back)


@lru_cache(1)
def _fused(model: Any) -> dict[str, list[tuple[Any, str, torch.Tensor]]]:
    """By the number of a layer, its parameters that hold a matrix for each expert, with their modules and names."""
    found: dict[str, list[tuple[Any, str, torch.Tensor]]] = defaultdict(list)
    for path, module in model.named_modules():
        layer, stored = re.search(r"\.layers\.(\d+)\.", path + "."), getattr(module, "stored", {})
        for name, parameter in module._parameters.items():
            if layer is not None and parameter is not None and parameter.ndim == 3 and not parameter.is_meta:
                found[layer[1]].append((module, name, stored.get(name, parameter).detach()))
    return found


def _read(checkpoint: Path, name: str) -> torch.Tensor | None:
    """A tensor of a checkpoint; None where it has none of that name."""
    path = _shards(checkpoint).get(name)
    if path is None:
        return None
    with safe_open(path, framework="pt") as shard:
        found: torch.Tensor = shard.get_tensor(name)
        return found


@lru_cache(1)
def _shards(checkpoint: Path) -> dict[str, Path]:
    """Where each tensor lies; read once, for there may be thousands of experts in dozens of shards."""
    return {name: path for path in weight_files(checkpoint) for name in read_header(path)}
