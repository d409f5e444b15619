"""LoRA adapters as GGUFs (`ftllm export --adapter-only`, llama.cpp's converter), put on a model at run time."""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftllm.errors import UserError
from ftllm.llama import native
from ftllm.llama.header import Header, read_header
from ftllm.llama.identity import fingerprint

Adapters = Sequence[tuple[Path, float]]


def load_adapters(model: int, header: Header, adapters: Adapters) -> list[tuple[Any, float]]:
    """llama.cpp's handles of adapters, with their scales; they are freed with the model.

    Args:
        model: the `llama_model *`; it must have no context yet.
        header: the model's.

    Raises:
        UserError: a file is no adapter, or one of another model.
    """
    api = native.api()
    handles = []
    for path, scale in adapters:
        check_adapter(path, scale, header)
        with native.captured() as lines:
            handle = api.llama_adapter_lora_init(model, os.fsencode(path))
        if not handle:
            reason = next((line for line in reversed(lines) if "rror" in line or "fail" in line), "no reason given")
            raise UserError(f"{path} does not fit {header.path.name}: {reason.strip()}", "use the adapter's own base")
        handles.append((handle, scale))
    return handles


def check_adapter(path: Path, scale: float, model: Header) -> None:
    """Refuse what is no adapter of a model, as far as headers tell; llama.cpp checks names and shapes.

    Raises:
        UserError: it is missing, damaged, no LoRA, or of another architecture.
    """
    header = read_header(path)
    if header.kind != "adapter" or header.metadata.get("adapter.type") != "lora":
        raise UserError(
            f"{path} is a GGUF of kind {header.kind!r}, not a LoRA adapter",
            "make one from a run: `ftllm export RUN --adapter-only`",
        )
    if header.architecture != model.architecture:
        raise UserError(
            f"{path} is an adapter of a {header.architecture} model, {model.path.name} is {model.architecture}",
            "use the adapter's own base",
        )
    if not math.isfinite(scale):
        raise UserError(f"the scale {scale} of {path} is no number", "1 is the adapter as it was trained")


def set_adapters(context: int, adapters: Sequence[tuple[Any, float]]) -> None:
    """Have a context (`llama_context *`) compute with adapters."""
    if not adapters:
        return
    api = native.api()
    count = len(adapters)
    handles = (ctypes.c_void_p * count)(*(ctypes.cast(handle, ctypes.c_void_p).value for handle, _ in adapters))
    scales = (ctypes.c_float * count)(*(scale for _, scale in adapters))
    pointer = ctypes.cast(handles, ctypes.POINTER(api.llama_adapter_lora_p_ctypes))
    if api.llama_set_adapters_lora(context, pointer, count, scales):
        raise UserError("llama.cpp does not take the adapters together", "try them one by one")


def fingerprint_with(header: Header, adapters: Adapters) -> str:
    """A model's fingerprint, or the one of what it is with adapters, whose order does not matter."""
    if not adapters:
        return fingerprint(header)
    parts = sorted(f"{fingerprint(read_header(path))} {float(scale)!r}" for path, scale in adapters)
    return hashlib.sha256("\n".join([fingerprint(header), *parts]).encode()).hexdigest()
