"""A llama.cpp context: a KV cache, and the logits of what was decoded last."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ftllm.errors import UserError, WorkError
from ftllm.llama import native
from ftllm.llama.adapters import set_adapters
from ftllm.llama.closing import Closing
from ftllm.llama.machine import default_threads
from ftllm.llama.model import Model

DEFAULT_CONTEXT = 8192
LARGEST_UBATCH = 512

NO_SLOT, ABORTED, NO_MEMORY = 1, 2, -2  # what llama_decode returns


class ContextFullError(WorkError):
    """There is no room for the tokens; nothing was decoded."""


class AbortedError(Exception):
    """Decoding was stopped by the abort check. Tokens already in the cache stay: see `Context.length`."""


class Context(Closing):
    """Decodes tokens of up to `n_seq_max` sequences, each with a cache of its own.

    Not thread-safe, but `decode` releases Python's lock, and `abort` may be called from any thread.
    Unless made with `windowed`, sliding-window layers keep their whole cache, so any tail may be removed and decoded
    again.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int = 0,
        n_batch: int = 512,
        n_threads: int | None = None,
        n_seq_max: int = 1,
        n_outputs: int = 0,
        flash_attention: bool | None = None,
        windowed: bool = False,
        on_tensor: Any = None,
    ) -> None:
        """Make a context.

        Args:
            n_ctx: positions a sequence may have; 0 is the model's own, at most 8192.
            n_batch: tokens decoded at once, of all sequences together.
            n_threads: CPU threads; None chooses.
            n_seq_max: sequences, numbered from 0.
            n_outputs: positions of one batch that may have logits, 0 for all; few save memory
                (a 262k vocabulary takes 1 MiB a position).
            flash_attention: None lets llama.cpp choose. On a CPU it sums in 16 bits, which moves logits by about
                half a percent of their spread; False is for comparing models.
            windowed: sliding-window layers keep their window only, which takes less memory and less time. Ask
                `can_remove` before removing a tail then: llama.cpp would go on with keys that are gone.
            on_tensor: llama.cpp's `cb_eval`, a `ggml_backend_sched_eval_callback` that is shown every operation.

        Raises:
            WorkError: there is not enough memory for the cache.
        """
        if model.vocab_only:
            raise ValueError(f"{model.path} was loaded as a vocabulary only")
        api = native.api()
        self.model = model
        self.n_batch = n_batch
        self.n_seq_max = n_seq_max
        self.n_threads = n_threads or default_threads(model.n_params)
        wanted = n_ctx or min(model.n_ctx_train or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
        self._n_outputs_max = min(n_outputs or n_batch, n_batch)
        params = api.llama_context_default_params()
        params.n_ctx = wanted * n_seq_max
        params.n_batch = n_batch
        params.n_ubatch = min(n_batch, LARGEST_UBATCH)
        params.n_seq_max = n_seq_max
        params.n_outputs_max = self._n_outputs_max
        params.n_threads = self.n_threads
        params.n_threads_batch = self.n_threads
        params.swa_full = not windowed
        if on_tensor is not None:
            params.cb_eval = on_tensor
        if flash_attention is not None:
            params.flash_attn_type = int(flash_attention)
        params.no_perf = True
        with native.captured() as lines:
            handle = api.llama_init_from_model(model.handle, params)
        if not handle:
            reason = lines[-1] if lines else "llama.cpp gave no reason"
            raise WorkError(f"{model.path}: no context of {wanted} tokens: {reason}", "ask for a shorter context")
        set_adapters(handle, model.adapters)
        self.api = api
        self.window = int(api.llama_model_n_swa(model.handle)) if windowed else 0
        self._handle: int | None = handle
        self._memory = api.llama_get_memory(handle)
        self._check_callback: Any = None
        self._on_tensor = on_tensor
        self._raised: list[BaseException] = []
        self._n_outputs = 0
        self._length = 0
        self._viewed: tuple[int, NDArray[np.float32]] = 0, np.empty(0, np.float32)  # the last logits' place
        self._make_batch()
        self.n_ctx = min(wanted, int(api.llama_n_ctx_seq(handle)))
        model.adopt(self)

    def _make_batch(self) -> None:
        """Arrays of `n_batch` entries that `llama_batch` points at; numpy writes them, llama.cpp reads them."""
        api, size = self.api, self.n_batch
        self._tokens = np.zeros(size, np.int32)
        self._positions = np.zeros(size, np.int32)
        self._sequences = np.zeros(size, np.int32)
        self._outputs = np.zeros(size, np.int8)
        self._counts = np.ones(size, np.int32)
        self._sequence_pointers = self._sequences.ctypes.data + 4 * np.arange(size, dtype=np.uintp)
        batch = api.llama_batch()
        batch.token = self._tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.pos = self._positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.n_seq_id = self._counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.seq_id = self._sequence_pointers.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(ctypes.c_int32)))
        batch.logits = self._outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        self._batch = batch

    def close(self) -> None:
        """Free the cache. Views of logits are dangling from here on. Closing twice is fine."""
        if self._handle is not None:
            self.api.llama_free(self._handle)
            self._handle = None
            self._length = 0

    @property
    def handle(self) -> int:
        """The `llama_context *`."""
        if self._handle is None:
            raise RuntimeError("the context is closed")
        return self._handle

    def decode(
        self,
        tokens: Sequence[int],
        *,
        start: int,
        sequence: int = 0,
        logits: Literal["last", "all", "none"] = "last",
    ) -> None:
        """Evaluate `tokens` of one sequence at positions `start`, `start` + 1, ..., in chunks of `n_batch`.

        With `all`, logits are kept for every token, and the caller gives at most `n_batch` at once.

        Raises:
            ContextFullError: they do not fit in the context.
            AbortedError: the abort check said so; whole chunks before it stay.
            WorkError: llama.cpp failed.
        """
        ids = np.asarray(tokens, dtype=np.int32)
        if logits == "all" and len(ids) > self.n_batch:
            raise ValueError(f"logits of {len(ids)} tokens asked for at once, n_batch is {self.n_batch}")
        for begin in range(0, len(ids), self.n_batch):
            chunk = ids[begin : begin + self.n_batch]
            outputs = np.full(len(chunk), logits == "all")
            if logits == "last" and begin + len(chunk) == len(ids):
                outputs[-1] = True
            first = start + begin
            self.decode_batch(
                chunk,
                np.arange(first, first + len(chunk), dtype=np.int32),
                np.full(len(chunk), sequence, dtype=np.int32),
                outputs,
            )

    def decode_one(self, token: int, position: int, sequence: int = 0) -> None:
        """Evaluate one token and keep its logits: `decode` for the loop in which every microsecond is a token's.

        Errors as in `decode`.
        """
        if position >= self.n_ctx:
            raise _full(position + 1, self.n_ctx)
        self._tokens[0], self._positions[0], self._sequences[0], self._outputs[0] = token, position, sequence, 1
        self._run(1, 1)

    def decode_many(self, entries: Sequence[tuple[int, int, int]]) -> None:
        """Evaluate `(token, position, sequence)` entries in one batch, logits kept for each."""
        table = np.asarray(entries, dtype=np.int32).reshape(-1, 3)
        self.decode_batch(table[:, 0], table[:, 1], table[:, 2], np.ones(len(table), dtype=bool))

    def decode_batch(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        sequences: NDArray[np.int32],
        outputs: NDArray[np.bool_],
    ) -> None:
        """Evaluate one batch of at most `n_batch` tokens; `outputs` marks those whose logits are kept.

        All arrays are [n]. Positions of a sequence go on from what its cache holds. Errors as in `decode`.
        """
        count = len(tokens)
        n_outputs = int(np.count_nonzero(outputs))
        if not 0 < count <= self.n_batch:
            raise ValueError(f"{count} tokens in a batch of at most {self.n_batch}")
        if n_outputs > self._n_outputs_max:
            raise ValueError(f"logits of {n_outputs} tokens asked for, the context was made for {self._n_outputs_max}")
        if int(positions.max()) >= self.n_ctx:
            raise _full(int(positions.max()) + 1, self.n_ctx)
        self._tokens[:count] = tokens
        self._positions[:count] = positions
        self._sequences[:count] = sequences
        self._outputs[:count] = outputs
        self._run(count, n_outputs)

    def _run(self, count: int, n_outputs: int) -> None:
        """Evaluate the first `count` entries of the batch."""
        self._length = self._n_outputs = 0
        self._batch.n_tokens = count
        status = self.api.llama_decode(self.handle, self._batch)
        if status:
            self._fail(status)
        self._length, self._n_outputs = count, n_outputs

    def _fail(self, status: int) -> None:
        if self._raised:
            raise self._raised.pop()
        if status == ABORTED:
            raise AbortedError
        if status == NO_SLOT:
            raise ContextFullError("the context is full", "start a new conversation, or ask for a larger context")
        if status == NO_MEMORY:
            raise WorkError("llama.cpp has not enough memory", "ask for a shorter context, or take a smaller model")
        raise WorkError(f"llama.cpp could not evaluate ({status}): {'; '.join(native.recent_log(3))}")

    def forget_outputs(self) -> None:
        """Something else decoded in this context: there are no logits to be had of the last batch."""
        self._length = self._n_outputs = 0

    def logits(self, index: int = -1) -> NDArray[np.float32]:
        """Logits [n_vocab] of entry `index` of the last batch, -1 for the last entry that has any.

        A view that is valid until the next decode.

        Raises:
            IndexError: that entry has none.
        """
        self.check_output(index)
        pointer = self.api.llama_get_logits_ith(self.handle, index)
        if not pointer:
            raise IndexError(f"no logits at {index}")
        address = ctypes.addressof(pointer.contents)
        if address != self._viewed[0]:
            self._viewed = address, _view(pointer, self.model.n_vocab)
        return self._viewed[1]

    def logits_matrix(self) -> NDArray[np.float32]:
        """Logits [n_outputs, n_vocab] of all marked entries of the last batch, in its order; a view as in `logits`."""
        if not self._n_outputs:
            raise IndexError("the last batch has no logits")
        pointer = self.api.llama_get_logits(self.handle)
        n_vocab = self.model.n_vocab
        return _view(pointer, self._n_outputs * n_vocab).reshape(self._n_outputs, n_vocab)

    def check_output(self, index: int) -> None:
        """Raise an IndexError where llama.cpp would abort the process: no logits at `index` of the last batch."""
        has = index < self._length and bool(self._outputs[index]) if index >= 0 else -index <= self._n_outputs
        if not has:
            raise IndexError(f"no logits at {index}")

    def length(self, sequence: int = 0) -> int:
        """Positions the cache holds of a sequence."""
        return int(self.api.llama_memory_seq_pos_max(self._memory_handle(), sequence)) + 1

    def remove(self, sequence: int, start: int, end: int = -1) -> bool:
        """Forget positions `start` to `end` (excluded; -1 is all that follow) of a sequence.

        False where the model's kind of memory cannot forget a part (recurrent models).
        """
        return bool(self.api.llama_memory_seq_rm(self._memory_handle(), sequence, start, end))

    @property
    def recurrent(self) -> bool:
        """Whether some layers keep one state, not one a position: no tail can be removed, short of everything."""
        model = self.model.handle
        return bool(self.api.llama_model_is_recurrent(model) or self.api.llama_model_is_hybrid(model))

    def can_remove(self, sequence: int, start: int) -> bool:
        """Whether the positions that windows see from `start` on are all still there, so that a tail may be removed.

        `remove` itself knows of recurrent states, not of windows.
        """
        if not self.window or start == 0:
            return True
        first = int(self.api.llama_memory_seq_pos_min(self._memory_handle(), sequence))
        return 0 <= first <= max(0, start - self.window)

    def copy(self, source: int, target: int, end: int = -1) -> None:
        """Give sequence `target` what `source` holds up to `end`."""
        self.api.llama_memory_seq_cp(self._memory_handle(), source, target, -1, end)

    def clear(self) -> None:
        """Forget everything."""
        self.api.llama_memory_clear(self._memory_handle(), True)

    def _memory_handle(self) -> int:
        if self._handle is None:
            raise RuntimeError("the context is closed")
        return int(self._memory)

    def set_threads(self, count: int) -> None:
        """Evaluate with `count` threads from here on."""
        if count != self.n_threads:
            self.api.llama_set_n_threads(self.handle, count, count)
            self.n_threads = count

    def set_abort(self, check: Callable[[], bool] | None) -> None:
        """Have `check` called between operations while decoding on a CPU; True stops it with `AbortedError`.

        What `check` raises, a KeyboardInterrupt too, stops the decoding and is raised from it.
        """
        api = self.api

        def ask(_data: Any) -> bool:
            try:
                return check is not None and check()
            except BaseException as error:  # ctypes would print it and go on
                self._raised.append(error)
                return True

        self._check_callback = api.ggml_abort_callback(ask) if check else api.ggml_abort_callback()
        api.llama_set_abort_callback(self.handle, self._check_callback, None)


def _full(wanted: int, n_ctx: int) -> ContextFullError:
    return ContextFullError(
        f"the context is full: {wanted} tokens, room for {n_ctx}",
        "start a new conversation, or ask for a larger context",
    )


def check_fits(model: Model, prompt: Sequence[int], n_ctx: int) -> None:
    """Refuse a prompt that leaves no room to answer."""
    if len(prompt) >= n_ctx:
        raise UserError(
            f"a prompt of {len(prompt)} tokens does not fit the context of {n_ctx} ({model.path.name})",
            "shorten it, or ask for a larger context",
        )


def _view(pointer: Any, count: int) -> NDArray[np.float32]:
    memory: Any = (ctypes.c_float * count).from_address(ctypes.addressof(pointer.contents))
    view: NDArray[np.float32] = np.frombuffer(memory, dtype=np.float32)
    return view
