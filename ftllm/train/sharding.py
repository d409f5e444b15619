"""A model split over several processes (FSDP 2): its adapter and its optimizer put together again, and split again.

Everything here is done by all processes together, in the same order. A tensor that is not split passes through.
"""

from __future__ import annotations

from typing import Any


def whole(tensor: Any) -> Any:
    """A split tensor put together, on the CPU."""
    from torch.distributed.tensor import DTensor

    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu()


def split_like(tensor: Any, parameter: Any) -> Any:
    """A whole tensor split as a parameter is, on its device; or as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)


def adapter_of(model: Any) -> dict[str, Any]:
    """The adapter's tensors, by their names in the model."""
    return {name: whole(tensor) for name, tensor in model.named_parameters() if ".lora_" in name}


def put_adapter(model: Any, tensors: dict[str, Any]) -> None:
    """Put an adapter as it is saved into a model."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                saved = tensors[name.replace(".default.", ".")]
                parameter.copy_(split_like(saved.to(parameter.dtype), parameter))


def optimizer_state(optimizer: Any) -> dict[str, Any]:
    """An optimizer's state with whole tensors."""
    import torch

    state: dict[str, Any] = optimizer.state_dict()
    moments = {
        index: {key: whole(value) if isinstance(value, torch.Tensor) else value for key, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": moments}


def put_optimizer_state(optimizer: Any, state: dict[str, Any]) -> None:
    """Give an optimizer a state of whole tensors."""
    import torch

    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        index: {
            key: split_like(value, parameters[index]) if isinstance(value, torch.Tensor) else value
            for key, value in values.items()
        }
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})
