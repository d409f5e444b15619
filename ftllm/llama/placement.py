"""How many of a model's layers fit on the GPUs of this machine, told from the GGUF's header and the free memory."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ftllm.llama import native
from ftllm.llama.header import Header

GPU, INTEGRATED = 1, 2  # enum ggml_backend_dev_type in ggml-backend.h
UBATCH = 512  # tokens computed at once
RESERVED = 256 << 20  # bytes a device: the driver's own, kernels, fragments
MARGIN = 0.05  # of what is free, for what other programs take meanwhile
# Every how many layers one looks past its window, where llama.cpp knows that by the architecture: src/models/*.cpp
WINDOW_PERIODS = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2, "cohere2": 4, "olmo2": 4}
CONTEXTS = (32_768, 16_384, 8192)  # tokens, the longest first
CACHE_SHARE = 1 / 8  # of the memory that is free, for a conversation's cache
LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class Device:
    """A GPU: its name, and bytes of its memory that are free; an `integrated` one's are the machine's."""

    name: str
    free: int
    integrated: bool = False


def devices() -> list[Device]:
    """The GPUs that llama.cpp can use here; none where it was built without."""
    if not native.supports_gpu():
        return []
    count = native.ggml("ggml_backend_dev_count", ctypes.c_size_t)
    get = native.ggml("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
    kind = native.ggml("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)
    describe = native.ggml("ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)
    size = ctypes.POINTER(ctypes.c_size_t)
    memory = native.ggml("ggml_backend_dev_memory", None, ctypes.c_void_p, size, size)
    found = []
    for index in range(count()):
        device = get(index)
        if kind(device) in (GPU, INTEGRATED):
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            memory(device, ctypes.byref(free), ctypes.byref(total))
            name = (describe(device) or b"GPU").decode("utf-8", "replace")
            found.append(Device(name, free.value, kind(device) == INTEGRATED))
    return found


def layers_that_fit(header: Header, n_ctx: int, found: Sequence[Device]) -> int:
    """How many layers to place on `found` together: the output first, which counts as one, then from the last.

    Weights are known to the byte. A layer's keys and values are counted in 16 bits for `n_ctx` tokens, or for its
    window; what is computed on the way is estimated from the widths.
    """
    room = sum(int(device.free * (1 - MARGIN)) - RESERVED for device in found)
    room -= len(found) * compute_bytes(header)
    weights = layer_bytes(header)
    costs = [output_bytes(header)]
    costs += [weights.get(layer, 0) + kv_bytes(header, layer, n_ctx) for layer in reversed(range(header.n_layer))]
    for count, cost in enumerate(costs):
        room -= cost
        if room < 0:
            return count
    return len(costs)


def layer_bytes(header: Header) -> dict[int, int]:
    """Bytes of each layer's weights."""
    sizes: dict[int, int] = {}
    for tensor in header.tensors:
        if match := LAYER.match(tensor.name):
            sizes[int(match[1])] = sizes.get(int(match[1]), 0) + tensor.nbytes
    return sizes


def output_bytes(header: Header) -> int:
    """Bytes of the output matrix: where it is the embedding, llama.cpp keeps a second copy on the GPU."""
    sizes = {tensor.name: tensor.nbytes for tensor in header.tensors}
    return sizes.get("output.weight", sizes.get("token_embd.weight", 0))


def kv_bytes(header: Header, layer: int, n_ctx: int) -> int:
    """Bytes of one layer's keys and values in 16 bits, for `n_ctx` tokens or its window."""
    heads = _of_layer(header, "attention.head_count_kv", layer)
    if heads is None:
        heads = _of_layer(header, "attention.head_count", layer) or 0
    width = header.integer("embedding_length") // max(header.integer("attention.head_count", 1), 1)
    both = header.integer("attention.key_length", width) + header.integer("attention.value_length", width)
    window = header.integer("attention.sliding_window") if _windowed(header, layer) else 0
    tokens = min(n_ctx, window + UBATCH) if window else n_ctx
    return 2 * heads * both * tokens


def usual_context(header: Header, free: int) -> int:
    """A context for long thoughts that does not take more than its share of `free` bytes of memory; at least 8192.

    Never longer than the model was trained for; 8192 where that is unknown.
    """
    longest = header.n_ctx_train or CONTEXTS[-1]
    for n_ctx in CONTEXTS:
        cache = sum(kv_bytes(header, layer, n_ctx) for layer in range(header.n_layer))
        if n_ctx <= longest and cache <= free * CACHE_SHARE:
            return n_ctx
    return min(longest, CONTEXTS[-1])


def compute_bytes(header: Header) -> int:
    """About what one device needs for intermediate results: the widest of a layer, some of them alive at once."""
    widest = max(header.integer("feed_forward_length"), 4 * header.integer("embedding_length"))
    return 4 * UBATCH * 4 * widest + 4 * header.integer("vocab_size", 0)


def in_words(n_layer: int, gpu_layers: int, found: Sequence[Device], threads: int) -> str:
    """Where the layers are, as one says it: `all 26 layers on the GPU (NVIDIA L4)`."""
    if not found:
        return f"on the CPU, {threads} {'thread' if threads == 1 else 'threads'}"
    names = ", ".join(dict.fromkeys(device.name for device in found))
    if gpu_layers < 0 or gpu_layers > n_layer:
        return f"all {n_layer} layers on the GPU ({names})"
    if not gpu_layers:
        return f"on the CPU, none of the {n_layer} layers fits on the GPU ({names})"
    return f"{gpu_layers} of {n_layer} layers on the GPU ({names}), the rest on the CPU"


def _of_layer(header: Header, key: str, layer: int) -> int | None:
    """An integer of the architecture that may be one a layer."""
    value = header.metadata.get(f"{header.architecture}.{key}")
    if isinstance(value, tuple):
        value = value[layer] if layer < len(value) else None
    return value if isinstance(value, int) else None


def _windowed(header: Header, layer: int) -> bool:
    """Whether a layer looks no further back than its window."""
    pattern = header.metadata.get(f"{header.architecture}.attention.sliding_window_pattern")
    if isinstance(pattern, tuple):
        return layer < len(pattern) and bool(pattern[layer])
    period = pattern if isinstance(pattern, int) else WINDOW_PERIODS.get(header.architecture, 0)
    return bool(period) and (layer + 1) % period != 0
