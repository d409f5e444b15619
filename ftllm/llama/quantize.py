"""Quantizing a GGUF with llama.cpp's own quantizer."""

from __future__ import annotations

import ctypes
import difflib
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from ftllm.errors import UserError, WorkError
from ftllm.llama import native
from ftllm.llama.header import read_header
from ftllm.llama.machine import available_cpus
from ftllm.llama.types import FILE_TYPES

NEARLY_FULL = 16 * 2**20  # bytes left at which a failed write is taken for a full disk


def file_type_name(name: str) -> str:
    """The proper spelling of a quantization type: `q4_k_m` is `Q4_K_M`.

    Raises:
        UserError: there is no such type.
    """
    proper = name.strip().upper().replace("-", "_")
    if proper in FILE_TYPES:
        return proper
    close = difflib.get_close_matches(proper, FILE_TYPES, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"the types are {', '.join(FILE_TYPES)}"
    raise UserError(f"there is no quantization type {name!r}", hint)


def quantize(
    source: Path,
    target: Path,
    file_type: str,
    *,
    threads: int | None = None,
    log: Callable[[str], None] | None = None,
) -> None:
    """Write `source`, a GGUF in F32, F16 or BF16, to `target` in another type. Its metadata goes along.

    `target` grows in place and is removed on failure: give a name that is not final yet.

    Args:
        file_type: a name of `FILE_TYPES`, any case.
        threads: None takes all processors there are.
        log: called with llama.cpp's lines, one a tensor and two with the sizes at the end.

    Raises:
        UserError: an unknown type, a source that cannot be quantized, or a type that needs an importance matrix.
        WorkError: no space left, or llama.cpp failed.
    """
    name = file_type_name(file_type)
    read_header(source)
    api = native.api()
    params = api.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[name]
    params.nthread = threads or available_cpus()
    try:
        with ExitStack() as stack:
            if log is not None:
                stack.enter_context(native.log_to(log))
            lines = stack.enter_context(native.captured())
            status = api.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
        if status:
            raise _failure(source, target, name, lines)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _failure(source: Path, target: Path, name: str, lines: list[str]) -> UserError:
    reason = next((line.partition("failed to quantize: ")[2] for line in lines if "failed to quantize: " in line), "")
    if "imatrix" in reason or "importance matrix" in reason:
        return UserError(f"{name} needs an importance matrix", "choose a type of more bits, such as IQ4_XS or Q3_K_M")
    if "requantizing" in reason:
        return UserError(f"{source} is quantized already", "quantize from an F32, F16 or BF16 file")
    if "iostream" in reason and target.parent.is_dir() and shutil.disk_usage(target.parent).free < NEARLY_FULL:
        return WorkError(f"no space left while writing {target}", "free some space, or write to another disk")
    return WorkError(f"{source} could not be quantized to {name}: {reason or '; '.join(lines[-2:])}")
