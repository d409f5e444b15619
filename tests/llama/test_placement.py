"""How many layers fit, with headers and free memory made up so that a person can add them up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ftllm.llama.header import Header, TensorInfo
from ftllm.llama.model import Model, fewer_and_fewer
from ftllm.llama.placement import (
    MARGIN,
    RESERVED,
    Device,
    compute_bytes,
    devices,
    in_words,
    kv_bytes,
    layers_that_fit,
    output_bytes,
    usual_context,
)

MB = 1 << 20
LAYERS, HEADS, KV_HEADS, HEAD = 10, 8, 2, 128


def header(architecture: str = "llama", layer_mb: int = 100, output_mb: int = 50, **metadata: Any) -> Header:
    """Ten layers of `layer_mb` MB, an output of `output_mb` MB, an embedding of 70 MB; 1 KiB of cache a layer."""
    values = {
        "block_count": LAYERS,
        "embedding_length": HEADS * HEAD,
        "feed_forward_length": 4096,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        **metadata,
    }
    sizes = {"token_embd.weight": 70, **{f"blk.{layer}.ffn_up.weight": layer_mb for layer in range(LAYERS)}}
    if output_mb:
        sizes["output.weight"] = output_mb
    tensors = tuple(TensorInfo(name, (1,), "F32", 0, size * MB) for name, size in sizes.items())
    found = {f"{architecture}.{key}": value for key, value in values.items()}
    return Header(Path("m.gguf"), 3, {"general.architecture": architecture, **found}, tensors, 0, 0)


def gpu(mb: float, described: Header) -> Device:
    """One whose free memory holds `mb` MB of weights and cache, and what is set aside."""
    return Device("GPU", int((mb * MB + RESERVED + compute_bytes(described)) / (1 - MARGIN)) + 2)


# a layer takes 100 MB and, for 8192 tokens, 2 heads * (128 + 128) * 2 bytes * 8192 = 8 MB
@pytest.mark.parametrize(
    ("mb", "layers"),
    [(0, 0), (49, 0), (50, 1), (157, 1), (158, 2), (50 + 108 * 9, 10), (50 + 108 * 10, 11), (9999, 11)],
)
def test_the_output_first_and_then_from_the_last(mb: float, layers: int) -> None:
    described = header()
    assert kv_bytes(described, 0, 8192) == 8 * MB
    assert layers_that_fit(described, 8192, [gpu(mb, described)]) == layers


def test_a_longer_context_leaves_room_for_fewer() -> None:
    described = header()
    assert layers_that_fit(described, 131_072, [gpu(50 + 108 * 10, described)]) == 1 + 1080 // (100 + 128)


def test_two_gpus_have_room_together() -> None:
    described = header()
    assert layers_that_fit(described, 8192, [gpu(25 + 108 * 2, described), gpu(25 + 108 * 2, described)]) == 5
    assert layers_that_fit(described, 8192, []) == 0


def test_an_embedding_that_is_the_output_too_is_copied() -> None:
    assert output_bytes(header()) == 50 * MB
    assert output_bytes(header(output_mb=0)) == 70 * MB


def test_windows_and_layers_without_attention_take_less() -> None:
    gemma = header("gemma3", **{"attention.sliding_window": 1024})
    each = KV_HEADS * 2 * HEAD * 2
    # every sixth looks at everything
    assert [kv_bytes(gemma, layer, 8192) // each for layer in range(7)] == [1536] * 5 + [8192, 1536]
    assert kv_bytes(gemma, 0, 1000) == each * 1000
    gemma4 = header(
        "gemma4", **{"attention.sliding_window": 512, "attention.sliding_window_pattern": (True, False) * 5}
    )
    assert [kv_bytes(gemma4, layer, 8192) // each for layer in range(3)] == [1024, 8192, 1024]
    hybrid = header("lfm2", **{"attention.head_count_kv": (0, 2) * 5})
    assert [kv_bytes(hybrid, layer, 8192) for layer in range(2)] == [0, 8 * MB]


# ten layers of 1 KiB a token: 80, 160 and 320 MB; an eighth of what is free may go
@pytest.mark.parametrize(
    ("free_mb", "trained", "n_ctx"),
    [
        (2560, 131_072, 32_768),
        (2559, 131_072, 16_384),
        (1279, 131_072, 8192),
        (0, 131_072, 8192),
        (9999, 20_000, 16_384),
        (9999, 8192, 8192),
        (9999, 2048, 2048),
        (9999, 0, 8192),
    ],
)
def test_a_context_as_long_as_memory_allows(free_mb: int, trained: int, n_ctx: int) -> None:
    assert usual_context(header(context_length=trained), free_mb * MB) == n_ctx


def test_fewer_and_fewer_down_to_none() -> None:
    assert fewer_and_fewer(40) == [40, 30, 20, 10, 0]
    assert fewer_and_fewer(1) == [1, 0]
    assert fewer_and_fewer(0) == [0]


def test_what_is_said_about_it() -> None:
    found = [Device("NVIDIA L4", 1)]
    assert in_words(26, 27, found, 4) == "all 26 layers on the GPU (NVIDIA L4)"
    assert in_words(26, 20, found, 4) == "20 of 26 layers on the GPU (NVIDIA L4), the rest on the CPU"
    assert in_words(26, 0, found, 4) == "on the CPU, none of the 26 layers fits on the GPU (NVIDIA L4)"
    assert in_words(26, 0, [], 1) == "on the CPU, 1 thread"


def test_real_headers_are_understood(gemma: Model) -> None:
    """Every byte of the tensors is somebody's, and the cache is llama.cpp's own figure."""
    plenty = [Device("GPU", 1 << 40)]
    assert layers_that_fit(gemma.header, 512, plenty) == gemma.n_layer + 1
    full = replace(gemma.header, metadata={**gemma.header.metadata, "gemma3.attention.sliding_window": 0})
    assert sum(kv_bytes(full, layer, 1) for layer in range(gemma.n_layer)) == gemma.header.kv_bytes_per_token()
    assert isinstance(devices(), list)
