"""What a context has of one sequence, copied out and back: in memory, or as llama.cpp's sequence files."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ftllm.errors import WorkError
from ftllm.llama.context import Context

PARTIAL_ONLY = 1  # LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY in llama.h: what cannot be cut, recurrent state and windows


def snapshot(context: Context, sequence: int = 0) -> bytes:
    """What cannot be rolled back of a sequence: recurrent state, the keys and values of sliding windows.

    Small beside the whole cache; empty for a model whose whole cache can be cut.
    """
    api, handle = context.api, context.handle
    size = int(api.llama_state_seq_get_size_ext(handle, sequence, PARTIAL_ONLY))
    buffer = (ctypes.c_uint8 * size)()
    written = int(api.llama_state_seq_get_data_ext(handle, buffer, size, sequence, PARTIAL_ONLY))
    return bytes(memoryview(buffer)[:written])


def restore(context: Context, data: bytes, sequence: int = 0) -> bool:
    """Put a `snapshot` back; False where llama.cpp refuses it, and the cache is then not to be relied on."""
    buffer = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
    return bool(
        context.api.llama_state_seq_set_data_ext(context.handle, buffer, len(data), sequence, PARTIAL_ONLY) == len(data)
    )


def save_file(context: Context, path: Path, tokens: Sequence[int], sequence: int = 0) -> int:
    """Write a sequence's whole cache and its tokens; the file's size in bytes.

    Raises:
        WorkError: it cannot be written.
    """
    api: Any = context.api
    ids = np.asarray(tokens, dtype=np.int32)
    pointer = ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
    size = int(api.llama_state_seq_save_file(context.handle, os.fsencode(path), sequence, pointer, len(ids)))
    if not size or path.stat().st_size != size:  # stdio's buffer may meet a full disk only when it is closed
        raise WorkError(f"the state of {len(ids)} tokens cannot be written to {path}", "free some space")
    return size


def load_file(context: Context, path: Path, sequence: int = 0) -> list[int] | None:
    """The tokens of the sequence that a file holds, now in the cache; None where llama.cpp refuses it."""
    ids = np.zeros(context.n_ctx, dtype=np.int32)
    count = ctypes.c_size_t(0)
    read = context.api.llama_state_seq_load_file(
        context.handle,
        os.fsencode(path),
        sequence,
        ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
        len(ids),
        ctypes.byref(count),
    )
    return ids[: count.value].tolist() if read else None
