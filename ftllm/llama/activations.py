"""What goes into a model's matrices: sums of squared activations a column, gathered while llama.cpp evaluates.

They are what an importance matrix holds (llama.cpp's `tools/imatrix/imatrix.cpp`). llama.cpp shows every operation of
its graph to a callback (`cb_eval`), as a `ggml_tensor` whose layout ggml.h fixes; it is checked before it is believed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftllm.errors import WorkError
from ftllm.llama import native
from ftllm.llama.context import Context
from ftllm.llama.model import Model

F32 = 0  # ggml_type in ggml.h
LOGITS_BYTES = 256 * 2**20  # logits of one batch: 256 positions of a 262k vocabulary
BATCH = 512

Doubles = NDArray[np.float64]


class _Tensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int32),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )


class Activations:
    """Sums gathered so far, by the name of the weight.

    Attributes:
        sums: squared activations added up, `[experts, columns]`; one expert for an ordinary matrix.
        counts: how many were added, `[experts]`, or `[1]` where one count holds for all matrices of a tensor.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Doubles] = {}
        self.counts: dict[str, Doubles] = {}
        self.failure: BaseException | None = None
        self.callback: Any = native.api().ggml_backend_sched_eval_callback(self._on_tensor)
        """For `Context`; must outlive it."""

    def _on_tensor(self, pointer: Any, ask: bool, _data: Any) -> bool:
        """Called before (`ask`) and after every operation; True asks for its values, and says to go on."""
        try:
            if self.failure is not None:
                return not ask
            tensor = _tensor_at(pointer)
            operation = _operation(tensor.op)
            if operation not in ("MUL_MAT", "MUL_MAT_ID"):
                return not ask
            weight, inputs = _tensor_at(tensor.src[0]), _tensor_at(tensor.src[1])
            name = _weight_name(weight.name)
            if not name.startswith("blk.") or inputs.type != F32:
                return not ask
            if ask:
                return True
            if operation == "MUL_MAT_ID":
                self._add_routed(name, weight, _values(tensor.src[1]), _values(tensor.src[2]))
            else:
                self._add(name, weight, _values(tensor.src[1]))
        except BaseException as error:  # no exception may pass through native code
            self.failure = error
        return True

    def _add(self, name: str, weight: _Tensor, inputs: NDArray[np.float32]) -> None:
        """`inputs` `[ne3, ne2, rows, columns]`; a weight of several matrices takes them in turn."""
        matrices = weight.ne[2] * weight.ne[3]
        sums, counts = self._room(name, matrices, inputs.shape[-1], 1)
        if matrices == 1:
            sums[0] += _squares(inputs)
        else:
            for i3, outer in enumerate(inputs):
                for i2, rows in enumerate(outer):
                    sums[(i3 % weight.ne[3]) * weight.ne[2] + i2 % weight.ne[2]] += _squares(rows)
        counts += inputs.size // inputs.shape[-1] // matrices

    def _add_routed(self, name: str, weight: _Tensor, inputs: NDArray[np.float32], ids: NDArray[np.int32]) -> None:
        """`inputs` `[1, tokens, used or 1, columns]`, `ids` `[1, 1, tokens, used]`: the experts of each token."""
        experts = int(weight.ne[2])
        sums, counts = self._room(name, experts, inputs.shape[-1], experts)
        tokens, used = inputs[0], ids[0, 0]
        for slot in range(used.shape[1]):
            rows = tokens[:, slot % tokens.shape[1]]
            for expert in np.unique(used[:, slot]):
                chosen = rows[used[:, slot] == expert]
                sums[expert] += _squares(chosen)
                counts[expert] += len(chosen)

    def _room(self, name: str, matrices: int, columns: int, counted: int) -> tuple[Doubles, Doubles]:
        if name not in self.sums:
            self.sums[name], self.counts[name] = np.zeros((matrices, columns)), np.zeros(counted)
        return self.sums[name], self.counts[name]


def collect(
    model: Model, rows: Sequence[Sequence[int]], *, on_row: Callable[[int], None] = lambda _: None
) -> Activations:
    """Evaluate rows of token ids, each as a sequence of its own, and gather what goes into every matrix of the layers.

    Args:
        on_row: called with each row's index when it is done.

    Raises:
        WorkError: the model computes values that are not numbers, or llama.cpp lays tensors out otherwise.
    """
    found = Activations()
    # The last layer is computed only where logits are wanted, so they are at every position.
    batch = max(16, min(BATCH, LOGITS_BYTES // (4 * model.n_vocab)))
    longest = max(map(len, rows))
    with Context(
        model, n_ctx=longest, n_batch=min(batch, longest), flash_attention=False, on_tensor=found.callback
    ) as context:
        for index, ids in enumerate(rows):
            context.clear()
            for start in range(0, len(ids), context.n_batch):
                context.decode(ids[start : start + context.n_batch], start=start, logits="all")
                if found.failure is not None:
                    raise found.failure
            on_row(index)
    broken = next((name for name, sums in found.sums.items() if not np.isfinite(sums).all()), None)
    if broken is not None:
        raise WorkError(f"{model.path.name} computes values that are not numbers ({broken})", "the file is damaged")
    return found


def _squares(rows: NDArray[np.float32]) -> Doubles:
    """Sum over all but the last dimension of the squares."""
    flat = rows.reshape(-1, rows.shape[-1])
    found: Doubles = np.einsum("ij,ij->j", flat, flat, dtype=np.float64)
    return found


def _weight_name(raw: bytes) -> str:
    """`CUDA0#blk.0.attn_k.weight#0`, a copy made by the scheduler, is `blk.0.attn_k.weight`."""
    parts = raw.decode("utf-8", "replace").split("#")
    return parts[1] if len(parts) > 1 else parts[0]


def _tensor_at(address: int | None) -> _Tensor:
    """The tensor at an address.

    Raises:
        WorkError: its name does not lie where our layout has it.
    """
    if address is None or _get_name()(address) != address + _Tensor.name.offset:
        raise WorkError(
            f"llama.cpp {native.version()} lays its tensors out in a way ftllm does not know",
            "give an importance matrix that llama-imatrix made: --imatrix FILE",
        )
    return _Tensor.from_address(address)


@cache
def _get_name() -> Any:
    return native.ggml("ggml_get_name", ctypes.c_void_p, ctypes.c_void_p)


@cache
def _operation(number: int) -> str:
    name: bytes = native.ggml("ggml_op_name", ctypes.c_char_p, ctypes.c_int)(number)
    return name.decode()


def _values(address: int) -> NDArray[Any]:
    """A tensor's values, dimensions in numpy's order; a view where it lies in this process's memory, else a copy."""
    tensor = _tensor_at(address)
    is_host = native.ggml("ggml_backend_buffer_is_host", ctypes.c_bool, ctypes.c_void_p)
    size: int = native.ggml("ggml_nbytes", ctypes.c_size_t, ctypes.c_void_p)(address)
    if is_host(tensor.buffer):
        memory: Any = (ctypes.c_char * size).from_address(tensor.data)
    else:
        memory = bytearray(size)
        copy = native.ggml(
            "ggml_backend_tensor_get", None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t
        )
        copy(address, (ctypes.c_char * size).from_buffer(memory), 0, size)
    kind = np.float32 if tensor.type == F32 else np.int32
    return np.ndarray(tuple(tensor.ne)[::-1], kind, memory, strides=tuple(tensor.nb)[::-1])
