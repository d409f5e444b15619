"""The truth an export is measured against: transformers in float32 on the base, the adapter beside it, unmerged.

Nothing here shares code with the merge: module names, the scale and the low-rank product are worked out again, so
that a mistake in one of them shows as a difference.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPast

from ftllm.errors import UserError, WorkError
from ftllm.export import experts, mapped
from ftllm.export.blocks import Floats
from ftllm.export.checkpoint import read_header, weight_files
from ftllm.export.samples import BATCH, LONG
from ftllm.llama.machine import default_threads

CONTAINERS = {"base_model", "model", "language_model"}  # parts of a module's name that differ between versions

Ints = npt.NDArray[np.int64]
Factors = tuple[torch.Tensor, torch.Tensor, float]


class Reference:
    """The base in float32 with the adapter's low-rank products added to its layers' outputs.

    Args:
        offload: a directory for what `accelerate` notes down where each layer's weights are read from the shards
            whenever it runs, which gives the same numbers and needs the memory of the largest matrix only; None maps
            weights of one 16-bit type (`ftllm.export.mapped`), and holds others in memory.
        alone: take all cores; else half of them, for something else takes as many. Threads wait for each other at every
            operation, turning in circles: two on cores that were both in use took twice the processor time of one.
    """

    def __init__(
        self, directory: Path, adapter: Path | None, *, offload: Path | None = None, alone: bool = True
    ) -> None:
        self.model = _model(directory, offload)
        self.model.eval()
        threads = default_threads(self.model.num_parameters())
        torch.set_num_threads(threads if alone else max(1, threads // 2))
        self.n_vocab = int(self.model.get_input_embeddings().weight.shape[0])
        self.bos: int | None = getattr(self.model.config.get_text_config(), "bos_token_id", None)
        self._output_type: Any = BaseModelOutputWithPast  # vision models have one of their own
        self._factors = dict(_factors(adapter)) if adapter is not None else {}
        self._by_name = dict(self.model.named_modules())
        self._by_core: dict[tuple[str, ...], Any] = {}
        for name, module in self._by_name.items():
            self._by_core.setdefault(_core(name), module)
        self._layers: dict[str, Any] = {}
        self._places: dict[str, experts.Place] = {}
        fused: dict[Any, list[tuple[experts.Place, torch.Tensor, torch.Tensor, float]]] = defaultdict(list)
        for name, (a, b, scale) in self._factors.items():
            if self._module(name) is None and experts.EXPERT.match(name):
                place = self._places[name] = self._place(directory, name, offload)
                fused[place.module].append((place, a, b, scale))
            else:
                self._layers[name] = self._changed_layer(name, a, b)
                self._layers[name].register_forward_hook(_adding(a, b, scale))
        for module, changes in fused.items():
            experts.change(module, changes)

    def hidden(
        self,
        sequences: Sequence[Sequence[int]],
        positions: Sequence[Ints] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Floats]:
        """What goes into the output matrix: for each sequence of ids `[n]` its states `[n, n_embd]`.

        Sequences run side by side, padded at their ends, which a causal model's other positions do not see.

        Args:
            positions: of each sequence, those whose states are wanted; None for all.
            progress: told how many tokens are done.
        """
        states: list[Floats] = []
        done = 0
        for group in _groups([len(ids) for ids in sequences], BATCH):
            lengths = [len(sequences[index]) for index in group]
            padded = torch.zeros((len(group), max(lengths)), dtype=torch.long)
            for row, index in enumerate(group):
                padded[row, : lengths[row]] = torch.tensor(sequences[index])
            with torch.inference_mode():
                output = self._body(input_ids=padded, use_cache=False)
            self._output_type, found = type(output), output.last_hidden_state
            for row, (index, length) in enumerate(zip(group, lengths, strict=True)):
                wanted = slice(length) if positions is None else torch.from_numpy(positions[index])
                states.append(found[row, wanted].numpy())
            done += sum(lengths)
            if progress is not None:
                progress(done)
        return states

    def logits(self, states: Floats) -> Floats:
        """Logits `[n, n_vocab]` of states `[n, n_embd]`: the output matrix, and whatever the model does after it."""
        given = self._output_type(last_hidden_state=torch.from_numpy(states)[None])
        body = self._body
        forward = body.forward
        body.forward = lambda *_, **__: given
        try:
            with torch.inference_mode():
                output = self.model(input_ids=torch.zeros((1, len(states)), dtype=torch.long), use_cache=False)
        finally:
            body.forward = forward
        values: Floats = output.logits[0].float().numpy()
        return values

    def change(self, module: str, rows: Ints) -> tuple[Floats, Floats]:
        """Of one layer the adapter changes: `rows` of the base's weight and of `scale * B @ A`, both `[n, in]`."""
        a, b, scale = self._factors[module]
        added: Floats = ((b[rows] @ a) * scale).numpy()
        if module in self._places:
            return self._places[module].values(rows), added
        return _rows(self._layers[module], rows), added

    def rows(self, tensor: str, rows: Ints) -> Floats:
        """`rows` of any matrix of the checkpoint, `[n, in]`, with what the adapter adds to it."""
        layer = self._module(tensor.removesuffix(".weight"))
        for module, changed in self._layers.items():
            if changed is layer:
                base, added = self.change(module, rows)
                return np.add(base, added)
        return _rows(layer, rows)

    def norm(self, module: str) -> Floats | None:
        """What a norm multiplies by, `[n]`; None for a module that is none.

        Of alternating 1 and -1 the mean is 0 and the mean square 1, so the sign times half the difference of what the
        norm makes of them and of their opposite is its weight as it works, a bias left out.
        """
        norm = self._module(module)
        if norm is None or "Norm" not in type(norm).__name__:
            return None
        try:
            with torch.inference_mode():
                signs = torch.ones(norm.weight.shape[0])
                signs[1::2] = -1.0
                values: Floats = (signs * (norm(signs[None]) - norm(-signs[None]))[0] / 2).numpy()
        except (AttributeError, TypeError, RuntimeError):  # one that takes more than what it norms
            return None
        return values

    @property
    def rotates_halves(self) -> bool | None:
        """As `rotates_halves`."""
        return rotates_halves(self.model)

    def _module(self, name: str) -> Any:
        """The module a checkpoint's name is about, which may stem from another version of transformers."""
        return self._by_name.get(name, self._by_core.get(_core(name)))

    @property
    def single_experts(self) -> tuple[str, ...]:
        """Those of `changed` that are matrices of single experts."""
        return tuple(self._places)

    def shape(self, module: str) -> tuple[int, int]:
        """`[out, in]` of a layer that the adapter changes."""
        a, b, _ = self._factors[module]
        return b.shape[0], a.shape[1]

    @property
    def changed(self) -> tuple[str, ...]:
        """The layers the adapter changes."""
        return tuple(self._factors)

    def _place(self, directory: Path, name: str, offload: Path | None) -> experts.Place:
        """Where a single expert's matrix is among those of its layer."""
        if offload is not None:
            raise WorkError(
                f"LoRA on experts one by one ({name}) cannot be verified in the memory there is",
                "close other programs, or export unverified with --verify none",
            )
        if (place := experts.place_of(self.model, directory, name)) is None:
            raise UserError(f"the adapter changes {name}, which the base does not have", "is it the right base?")
        return place

    def _changed_layer(self, name: str, a: torch.Tensor, b: torch.Tensor) -> Any:
        layer = self._module(name)
        if layer is None:
            raise UserError(f"the adapter changes {name}, which the base does not have", "is it the right base?")
        if sorted(layer.weight.shape) != sorted((b.shape[0], a.shape[1])):
            raise UserError(
                f"the adapter's {name} does not fit the base's {list(layer.weight.shape)}", "is it the right base?"
            )
        return layer

    @property
    def _body(self) -> Any:
        """The model without its output matrix."""
        return getattr(self.model, self.model.base_model_prefix)


def _groups(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Indices in order, as many together as fit into `most` positions when padded, fewer of long ones; at least one."""
    group: list[int] = []
    for index, length in enumerate(lengths):
        longest = max([length, *(lengths[i] for i in group)])
        if group and longest * max(longest, LONG) * (len(group) + 1) > most * LONG:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _model(directory: Path, offload: Path | None) -> Any:
    """The base, computing in float32."""
    kinds = {kind for shard in weight_files(directory) for kind, _ in read_header(shard).values()}
    dtype = mapped.TYPES.get(next(iter(kinds))) if len(kinds) == 1 else None
    if offload is None and dtype is not None:
        return mapped.load(directory, dtype)
    options: dict[str, Any] = {} if offload is None else {"device_map": {"": "disk"}, "offload_folder": offload}
    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True, attn_implementation="eager", **options
    )


def _weights_of(layer: Any) -> AbstractContextManager[None]:
    """Have a layer's weights in memory, where they are read from disk only while it runs."""
    if not layer.weight.is_meta:
        return nullcontext()
    from accelerate.utils import align_module_device

    held: AbstractContextManager[None] = align_module_device(layer)
    return held


def rotates_halves(model: Any) -> bool | None:
    """Whether the two halves of a head rotate together, and not neighbours; None where the model does not say."""
    rotate = getattr(sys.modules[type(model).__module__], "rotate_half", None)
    return None if rotate is None else bool(rotate(torch.arange(4.0))[0] == -2.0)


def factors_of(adapter: Path) -> dict[str, Factors]:
    """Each changed layer's A, B and factor, by its name in the trained model."""
    return dict(_factors(adapter))


def _rows(layer: Any, rows: Ints) -> Floats:
    with _weights_of(layer):
        weight = mapped.weight_of(layer)
        if type(layer).__name__ == "Conv1D":  # GPT-2 keeps its weights as [in, out]
            weight = weight.T
        values: Floats = weight[rows].float().numpy()
    return values


def _core(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.split(".") if part not in CONTAINERS)


def _adding(a: torch.Tensor, b: torch.Tensor, scale: float) -> Any:
    def hook(_module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        changed = output.reshape(-1, len(b))  # made by the layer just now: nobody else's
        changed.addmm_(inputs[0].reshape(-1, a.shape[1]) @ a.T, b.T, alpha=scale)
        return changed.view(output.shape)

    return hook


def _factors(adapter: Path) -> Iterator[tuple[str, Factors]]:
    """Each changed layer's A, B and factor, as PEFT's own layer would use them."""
    config: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    weights = load_file(adapter / "adapter_model.safetensors")
    for name in sorted(weights):
        if not name.endswith(".lora_A.weight"):
            continue
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        a = weights[name].float()
        b = weights[name.replace(".lora_A.", ".lora_B.")].float()
        alpha = config["lora_alpha"]
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            if re.search(rf"(^|\.)(?:{pattern})$", module):
                alpha = value
                break
        rank = a.shape[0]
        yield module, (a, b, alpha * rank**-0.5 if config.get("use_rslora") else alpha / rank)
