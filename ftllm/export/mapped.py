"""A model of transformers that computes in float32 while its 16-bit weights stay in the checkpoint's files.

Loaded in the checkpoint's own type, weights are views of the mapped shards: nothing is copied. A matrix becomes float32
a piece at a time while its layer runs, in room that is used again and again. Every 16-bit number is a float32
exactly, so the model computes what it computes when loaded in float32, without the time and memory of the copy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights

PIECE = 1 << 22  # values of a matrix that are float32 at a time; with half of them products took a fifth longer
FEW = 256  # positions, below which `weight @ x.T` is the quicker product: by a quarter at 48; beyond, `x @ weight.T` is
SMALL = 1 << 16  # parameters of up to so many values (norms, biases) are float32 all along
TYPES: dict[str, torch.dtype] = {"BF16": torch.bfloat16, "F16": torch.float16}  # by safetensors' names
LINEAR: Any = torch.nn.Linear


def load(directory: Path, dtype: torch.dtype) -> Any:
    """A checkpoint all of whose weights are of type `dtype`, as a model in float32."""
    options: dict[str, Any] = {"attn_implementation": "eager"}
    stored: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, local_files_only=True, **options)
    with init_empty_weights(), no_init_weights():  # buffers are computed, in float32
        model: Any = AutoModelForCausalLM.from_config(stored.config, dtype=torch.float32, **options)
    room = torch.empty(PIECE)
    for name, module in model.named_modules():
        _fill(module, stored.get_submodule(name), room)
    return model


def weight_of(layer: Any) -> torch.Tensor:
    """A layer's weight as it lies in the checkpoint, or as the layer holds it."""
    weight: torch.Tensor = getattr(layer, "stored", {}).get("weight", layer.weight)
    return weight.detach()


def _fill(module: Any, stored: Any, room: torch.Tensor) -> None:
    """Give a module what its twin holds: small parameters and saved buffers as float32, matrices when it runs."""
    for name, value in stored._buffers.items():
        if value is not None and name not in stored._non_persistent_buffers_set:
            module._buffers[name] = value.float() if value.is_floating_point() else value
    matrices = {}
    for name, value in stored._parameters.items():
        if value is None:
            continue
        if value.numel() > SMALL and value.is_floating_point():
            matrices[name] = value.detach()
            module._parameters[name] = _parameter(torch.tensor(float("nan")).expand(value.shape))  # spoils what uses it
        else:
            module._parameters[name] = _parameter(value.detach().float() if value.is_floating_point() else value)
    if not matrices:
        return
    module.stored = matrices
    if type(module) is LINEAR:
        module.forward = lambda x: _product(x, matrices["weight"], module.bias, room)
    elif isinstance(module, torch.nn.Embedding):
        module.padding_idx = None  # rows are numbered anew
        module.register_forward_pre_hook(_look_up)
    else:
        module.register_forward_pre_hook(_whole)
    if type(module) is not LINEAR:
        module.register_forward_hook(_put_back)


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, room: torch.Tensor) -> torch.Tensor:
    """`x @ weight.T + bias` in float32, `[..., out]`, rows of the weight becoming float32 as they are needed."""
    vectors = x.reshape(-1, x.shape[-1])
    few = len(vectors) < FEW
    given = vectors.T.contiguous() if few else vectors
    out = torch.empty((len(weight), len(vectors)) if few else (len(vectors), len(weight)))
    step = max(1, PIECE // weight.shape[1])
    for start in range(0, len(weight), step):
        rows = weight[start : start + step]
        floats = room[: rows.numel()].view(rows.shape) if rows.numel() <= PIECE else torch.empty(rows.shape)
        floats.copy_(rows)
        if few:
            torch.mm(floats, given, out=out[start : start + step])
        else:
            torch.mm(given, floats.T, out=out[:, start : start + step])
    if few:
        out = out.T.contiguous()
    if bias is not None:
        out += bias
    return out.view(*x.shape[:-1], len(weight))


def _look_up(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Have an embedding hold the rows it is asked for, and ask for them by their places."""
    rows, places = torch.unique(inputs[0], return_inverse=True)
    module._parameters["weight"] = _parameter(module.stored["weight"][rows].float())
    return (places, *inputs[1:])


def _whole(module: Any, _inputs: tuple[torch.Tensor, ...]) -> None:
    for name, value in module.stored.items():
        module._parameters[name] = _parameter(value.float())


def _put_back(module: Any, _inputs: tuple[torch.Tensor, ...], _output: Any) -> None:
    for name, value in module.stored.items():
        module._parameters[name] = _parameter(torch.tensor(float("nan")).expand(value.shape))


def _parameter(value: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(value, requires_grad=False)
