"""The layers of a model, and which of them an adapter is put on.

A model may be without weights here, and is only asked for names and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

from ftllm.errors import UserError

# Parts of multimodal models that read no text; their layers are never adapted.
OTHER_SENSES = re.compile(
    r"(^|\.|_)(vision|visual|vit|image|audio|speech|multi_modal|mm|projector|tower)", re.IGNORECASE
)
ATTENTION = re.compile(r"(^|\.|_)(attn|attention)", re.IGNORECASE)
MLP = re.compile(r"(^|\.|_)(mlp|ffn|feed_forward|experts?)(\.|$|_)", re.IGNORECASE)
ROUTERS = (".gate", ".router", ".shared_expert_gate")  # of mixtures of experts; too small to adapt, and touchy
LAYER = re.compile(r"(^|\.)(layers|h|blocks)\.\d+\.")


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer of a model.

    Attributes:
        name: its whole name.
        part: `attention` or `mlp` of a language layer; None elsewhere.
        inputs: width of what it reads.
        outputs: width of what it writes.
    """

    name: str
    part: str | None
    inputs: int
    outputs: int


def linear_layers(model: Any) -> list[LinearLayer]:
    """Every linear layer of a model, which may be without weights."""
    import torch

    return [
        LinearLayer(name, part_of(name), module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]


def adapted_layers(model: Any, parts: Sequence[str]) -> list[LinearLayer]:
    """The linear layers to adapt: those of the language layers' attention and MLP blocks that peft can adapt.

    Raises:
        UserError: there are none.
    """
    wanted = [layer for layer in linear_layers(model) if layer.part in parts]
    taken = _taken_for_experts(model, {_leaf(layer.name) for layer in wanted})
    found = [layer for layer in wanted if _leaf(layer.name) not in taken]
    if not found:
        blocks = f"{type(model).__name__} has no linear layer to adapt in its {' and '.join(parts)} blocks"
        if experts := fused_experts(model):
            raise UserError(f"{blocks}, only experts, fused into {experts}", "add attention to lora.targets")
        raise UserError(blocks, "this architecture cannot be trained yet")
    return found


def lora_targets(model: Any, parts: Sequence[str]) -> list[str] | str:
    """How peft is told which layers to adapt.

    Returns:
        the layers' last names, sorted; or a regular expression over whole names, where another part of the model has
        layers of the same last names (a vision tower).

    Raises:
        UserError: there are none.
    """
    wanted = {layer.name for layer in adapted_layers(model, parts)}
    leaves = sorted({_leaf(name) for name in wanted})
    if {_leaf(layer.name) for layer in linear_layers(model) if layer.name not in wanted}.isdisjoint(leaves):
        return leaves
    return lora_pattern(model, parts)


def lora_pattern(model: Any, parts: Sequence[str]) -> str:
    """The layers to adapt as a regular expression over whole names.

    Raises:
        UserError: there are none.
    """
    patterns = sorted({re.sub(r"\.\d+\.", "<n>", layer.name) for layer in adapted_layers(model, parts)})
    return "|".join(re.escape(pattern).replace("<n>", r"\.\d+\.") for pattern in patterns)


def fused_experts(model: Any) -> str | None:
    """Where a mixture keeps all experts of a layer in one parameter, such as `mlp.experts`; None where it does not."""
    for name, parameter in model.named_parameters():
        module = name.rpartition(".")[0]
        if parameter.ndim == 3 and (layer := LAYER.search(name)) and module.endswith("experts"):
            return str(module[layer.end() :])
    return None


def left_out(model: Any, parts: Sequence[str]) -> str | None:
    """What of the blocks asked for is not trained, in a sentence; None where nothing is left out.

    A LoRA on fused experts is as large as one on each of them, and neither llama.cpp nor the export can take it.
    """
    experts = fused_experts(model)
    if experts is None or "mlp" not in parts:
        return None
    adapted = {layer.name for layer in adapted_layers(model, parts)}
    dense = {_leaf(layer.name) for layer in linear_layers(model) if layer.part in parts and layer.name not in adapted}
    others = f", and so are {', '.join(sorted(dense))} beside them, which peft would take for experts" if dense else ""
    trained = ", ".join(sorted({_leaf(name) for name in adapted}))
    return f"the experts ({experts}) are left as they are{others}; trained are {trained}"


def _taken_for_experts(model: Any, leaves: Set[str]) -> set[str]:
    """Layers' last names that peft would replace by the parameters of fused experts.

    It holds them for the experts' names of transformers 4 wherever an architecture's experts had such names, be it in
    dense layers or shared experts, and would adapt the fused experts of every layer instead.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    taken = set()
    for leaf in leaves:
        asked = LoraConfig(target_modules=[leaf])
        try:
            convert_peft_config_for_transformers(asked, model, None)
        except ValueError:  # one of two that are fused together
            taken.add(leaf)
        else:
            taken |= {leaf} - set(asked.target_modules or ())
    return taken


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def part_of(name: str) -> str | None:
    """`attention` or `mlp` for a module of a language layer; None for any other."""
    layer = LAYER.search(name)
    if layer is None or OTHER_SENSES.search(name) or name.endswith(ROUTERS):
        return None
    block = name[layer.end() :]
    if ATTENTION.search(block):
        return "attention"
    return "mlp" if MLP.search(block) else None
