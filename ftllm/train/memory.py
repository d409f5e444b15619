"""How much memory a training takes at its peak, found without loading a weight, and what would make it take less.

The activations are counted: the model is built without weights (torch's `meta` device) and run forward on the longest
row, and every tensor that autograd keeps for the backward pass is added up once. So it holds for any architecture.
Compared with what real trainings take by scripts/bench/train_memory.py.
"""

from __future__ import annotations

import ctypes
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ftllm.errors import UserError
from ftllm.llama.machine import available_memory
from ftllm.train.backend import Device
from ftllm.train.config import TrainConfig
from ftllm.train.head import CHUNK_VALUES
from ftllm.train.layers import LAYER, adapted_layers, left_out, lora_targets
from ftllm.train.prepare import Prepared

LIBRARIES = 530 * 2**20  # resident before a weight is loaded: torch, transformers, trl (measured, CPU build)
CUDA_CONTEXT = 600 * 2**20  # what a process holds on a GPU before its first tensor
BYTES = {"float32": 4.0, "bfloat16": 2.0}
NF4 = 0.56  # bytes a weight: 4 bits, and double-quantized scales for blocks of 64 (arXiv 2305.14314)
HEAD_COPIES = 5  # chunks of float32 logits at once in `train.head`: the logits, for their entropy, their gradients
BACKWARD = 0.5  # of what a layer keeps: gradients that come while what it kept is still there
SHORTEST = 256  # no shorter max_length is proposed
ROOM = 2.2  # times the estimate: what freed memory that glibc keeps may take besides (a 100 M model: 2.5 GB for 1.2)
M_MMAP_THRESHOLD = -3  # malloc.h of glibc


@dataclass(frozen=True)
class Memory:
    """Estimated peak memory in bytes, and what is free.

    Attributes:
        weights: the base.
        adapter: its weights, their gradients and AdamW's two moments.
        activations: what the backward pass needs of the largest batch, and the logits.
        program: the libraries themselves, where they share the memory (CPU).
        free: available now on the device; 0 where nobody knows.
    """

    weights: int
    adapter: int
    activations: int
    program: int
    free: int

    @property
    def total(self) -> int:
        return self.weights + self.adapter + self.activations + self.program

    @property
    def fits(self) -> bool:
        return not self.free or self.total <= self.free


@dataclass(frozen=True)
class Kept:
    """What autograd keeps of one token, in bytes at 4 a value.

    Attributes:
        layers: of all layers together.
        layer: of the largest.
        outside: of what is not in a layer.
        hidden: the hidden state between layers.
        depth: how many layers there are.
        vocabulary: logits a token.
    """

    layers: float
    layer: float
    outside: float
    hidden: float
    depth: int
    vocabulary: int


@dataclass(frozen=True)
class Model:
    """A base's share of the estimate: `weights` (held by this process) and `trainable` are numbers of parameters.

    Attributes:
        left_out: what of it is not trained although asked for, in a sentence.
    """

    weights: int
    trainable: int
    kept: Kept
    left_out: str | None = None


def model_of(prepared: Prepared) -> Model:
    """The base without its weights: parameters, and what a token leaves behind."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    config = prepared.lora
    architecture = AutoConfig.from_pretrained(str(prepared.base.path), local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture, dtype=torch.float32)
        adapted, targets = adapted_layers(model, config.targets), lora_targets(model, config.targets)
        untrained = left_out(model, config.targets)
        model = get_peft_model(model, LoraConfig(r=config.rank, target_modules=targets, lora_dropout=config.dropout))
    trainable = sum(config.rank * (layer.inputs + layer.outputs) for layer in adapted)
    shares = prepared.processes.count if prepared.processes.sharded else 1
    kept = _kept(model, architecture.get_text_config())
    return Model(prepared.base.parameters() // shares, trainable, kept, untrained)


def _kept(model: Any, text: Any, tokens: int = 131) -> Kept:
    """Run `tokens` tokens through a model without weights and add up what autograd keeps.

    Matrices of tokens by tokens are left out: attention kernels make them again when they are needed. The number is one
    that no other dimension has.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class OfOneExpert(TorchFunctionMode):
        """A mixture's rows, each times its expert: in float32 the `meta` device has no such product, but shapes are
        those of all rows times one expert, and what is kept is too."""

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch._grouped_mm:
                return args[0] @ args[1][0]
            return function(*args, **(kwargs or {}))

    storages: dict[int, Any] = {}
    bytes_of: dict[str, int] = defaultdict(int)
    inside: list[str] = []
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in storages and storage._cdata not in parameters:
            storages[storage._cdata] = storage  # held, so that its address is not given to another
            if tuple(tensor.shape[-2:]) != (tokens, tokens):
                bytes_of[inside[-1] if inside else ""] += storage.nbytes()
        return tensor

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: inside.append(name)

    hooks = []
    for name, module in model.named_modules():
        if LAYER.search(name + ".") and not LAYER.search(name.rpartition(".")[0] + "."):
            hooks.append(module.register_forward_pre_hook(enter(name)))
            hooks.append(module.register_forward_hook(lambda *_: inside.pop() and None))
    ids = torch.zeros((1, tokens), dtype=torch.int64, device="meta")
    mask = torch.zeros((1, 1, tokens, tokens), device="meta")
    try:
        with OfOneExpert(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(input_ids=ids, attention_mask=mask, position_ids=ids, use_cache=False, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    outside = bytes_of.pop("", 0)
    layers = list(bytes_of.values()) or [0]
    return Kept(
        sum(layers) / tokens, max(layers) / tokens, outside / tokens, text.hidden_size * 4, len(layers), text.vocab_size
    )


def estimate(model: Model, config: TrainConfig, device: Device, tokens: int, free: int) -> Memory:
    """The peak of a training.

    Args:
        model: from `model_of`.
        config: of the run.
        device: what is trained on.
        tokens: in the largest batch.
        free: bytes available now.
    """
    kept, width = model.kept, BYTES[device.precision]
    a_layer = kept.layer * (1 + BACKWARD)
    inner = kept.hidden * kept.depth + a_layer if config.gradient_checkpointing else kept.layers + a_layer - kept.layer
    logits = min(tokens * kept.vocabulary, CHUNK_VALUES) * 4 * (HEAD_COPIES if device.kind != "cuda" else 2)
    moments = 2 if device.eight_bit else 8  # bytes of AdamW's two moments a parameter
    return Memory(
        weights=int(model.weights * (NF4 if device.four_bit else width)),
        adapter=model.trainable * (4 + 4 + moments),
        activations=int(tokens * (inner + kept.outside) * width / 4 + logits),
        program=LIBRARIES if device.kind == "cpu" else CUDA_CONTEXT if device.kind == "cuda" else 0,
        free=free,
    )


def largest_batch(lengths: Sequence[int], config: TrainConfig, *, packed: bool) -> int:
    """Tokens in the largest batch: padded to its longest row, or rows packed one after another.

    Of packed rows some order of three epochs is tried, since the trainer's is not known yet.
    """
    size = config.batch_size
    if not packed:
        return size * max(lengths)
    generator, rows, most = random.Random(0), list(lengths), 0
    for _ in range(3):
        generator.shuffle(rows)
        most = max(most, *(sum(rows[i : i + size]) for i in range(0, len(rows), size)))
    return most


def free_memory(device: Device) -> int:
    """Bytes a new program could take on the device now; 0 where nobody knows."""
    if device.kind == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    return available_memory()


def require_fit(prepared: Prepared) -> tuple[Memory, Model]:
    """The estimate of a training that fits into memory, and what it rests on.

    Raises:
        UserError: it does not; with the smallest change that would make it fit.
    """
    model, free = model_of(prepared), free_memory(prepared.device)
    if prepared.device.kind == "cpu":
        free //= prepared.processes.local_count
    memory = estimate(model, prepared.config, prepared.device, _tokens(prepared, prepared.config), free)
    if memory.fits:
        return memory, model
    raise UserError(
        f"this training takes about {memory.total / 1e9:.1f} GB of memory at its peak, "
        f"and {memory.free / 1e9:.1f} GB are free",
        remedy(model, prepared, free),
    )


def short(memory: Memory) -> bool:
    """Whether what freed memory may take besides (`ROOM`) is not there."""
    return bool(memory.free) and ROOM * memory.total > memory.free


def keep_close(memory: Memory, device: Device) -> bool:
    """Where memory is short, have freed memory given back at once, so that the peak is the estimate; True if so.

    By default glibc keeps freed blocks of up to 32 MB, tensors among them, for later ones, which may double the peak.
    Mapping each block of a megabyte or more by itself, and so giving it back, took a 100 M model on
    a CPU from 2.5 to 1.2 GB, and from 57 to 74 seconds of processor time; blocks of 8 MB or more only, to 2.2 GB.
    """
    if device.kind != "cpu" or not short(memory):
        return False
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(M_MMAP_THRESHOLD, 2**20) == 1


def remedy(model: Model, prepared: Prepared, free: int) -> str:
    """The smallest change of settings with which a training would fit, in words."""
    for device, changes in _changes(prepared):
        config = prepared.config.model_copy(update=changes)
        lengths = _lengths(prepared, config)
        if not lengths:
            continue
        memory = estimate(model, config, device, _tokens(prepared, config), free)
        if memory.fits:
            words = " ".join(f"--set {key}={str(value).lower()}" for key, value in changes.items())
            lost = len(prepared.plan.lengths) - len(lengths)
            leaving = f"; {lost} of {len(prepared.plan.lengths)} rows are longer and would be left out" if lost else ""
            return f"{words} would take about {memory.total / 1e9:.1f} GB{leaving}"
    weights = estimate(model, prepared.config, prepared.device, 0, free).weights
    return f"close other programs, or take a smaller model: the weights alone take {weights / 1e9:.1f} GB"


def _changes(prepared: Prepared) -> Iterator[tuple[Device, dict[str, Any]]]:
    """Settings that take less memory, those first that change fewest keys and lose least."""
    config, device = prepared.config, prepared.device
    halves = [config.max_length >> i for i in range(20) if config.max_length >> i >= SHORTEST] or [config.max_length]
    batches = sorted({max(1, config.batch_size >> i) for i in range(config.batch_size.bit_length())}, reverse=True)
    options = []
    for checkpointing in {config.gradient_checkpointing, True}:
        for sixteen in (False, True) if device.precision == "float32" else (False,):
            for batch in batches:
                for length in halves:
                    changes: dict[str, Any] = {}
                    if checkpointing != config.gradient_checkpointing:
                        changes["gradient_checkpointing"] = True
                    if batch != config.batch_size:
                        changes["batch_size"] = batch
                        changes["gradient_accumulation"] = config.gradient_accumulation * config.batch_size // batch
                    if sixteen:
                        changes["precision"] = "bfloat16"
                    if length != config.max_length:
                        changes["max_length"] = length
                    cost = (length != config.max_length, sixteen, len(changes), -length, -batch)
                    options.append((cost, replace(device, precision="bfloat16") if sixteen else device, changes))
    for _, changed, changes in sorted(options, key=lambda option: option[0]):
        if changes:
            yield changed, changes


def _lengths(prepared: Prepared, config: TrainConfig) -> list[int]:
    """Tokens of each row that `config` would train."""
    lengths = prepared.plan.lengths
    if config.too_long == "cut":
        return [min(length, config.max_length) for length in lengths]
    return [length for length in lengths if length <= config.max_length]


def _tokens(prepared: Prepared, config: TrainConfig) -> int:
    packed = prepared.backend == "hf" and prepared.device.kind == "cpu" and config.batch_size > 1
    return largest_batch(_lengths(prepared, config), config, packed=packed)
