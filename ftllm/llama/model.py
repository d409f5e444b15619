"""A GGUF model in llama.cpp: its weights, vocabulary and metadata."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable, Iterable
from datetime import date
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from ftllm.errors import UserError, WorkError
from ftllm.llama import native
from ftllm.llama.adapters import Adapters, load_adapters
from ftllm.llama.closing import Closing
from ftllm.llama.header import Header, read_header
from ftllm.llama.machine import default_threads
from ftllm.llama.placement import devices, layers_that_fit

if TYPE_CHECKING:
    from ftllm.llama.context import Context
    from ftllm.llama.vision import Projector

NO_TOKEN = -1
USUAL_CONTEXT = 8192


class Model(Closing):
    """A loaded GGUF. Close it, or use it as a context manager; its contexts are closed with it.

    It is a `Vocabulary`: `encode`, `is_eog`, `chat_template`, `bos_id` and the special tokens' text.
    """

    def __init__(self, handle: int, header: Header, gpu_layers: int, vocab_only: bool) -> None:
        """Use `Model.load`."""
        self.vocab_only = vocab_only
        self.header = header
        self.path = header.path
        self.gpu_layers = gpu_layers
        self._api = native.api()
        self._handle: int | None = handle
        self._vocabulary = self._api.llama_model_get_vocab(handle)
        self._contexts: weakref.WeakSet[Context] = weakref.WeakSet()
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self.n_vocab = int(self._api.llama_vocab_n_tokens(self._vocabulary))
        self.adapters: list[tuple[Any, float]] = []  # llama.cpp's handles and scales, for every context
        self.projector: Projector | None = None
        self.today: date | None = None  # what a template that asks for the date is told; None: the day itself

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        gpu_layers: int | Literal["auto"] = "auto",
        vocab_only: bool = False,
        n_ctx: int = 0,
        adapters: Adapters = (),
        repack: bool = True,
        progress: Callable[[float], bool] | None = None,
    ) -> Self:
        """Load a GGUF file.

        Args:
            gpu_layers: layers placed on a GPU, the output counted as one; `auto` is as many as fit with a context of
                `n_ctx` tokens (0: the usual 8192), then fewer while loading fails.
            vocab_only: load the vocabulary and no weights; such a model cannot have a `Context`.
            adapters: LoRA GGUFs and their scales, put on every context of the model.
            repack: lay quantized weights out for this processor, which computes faster and copies them into memory;
                else they are used as they lie in the file, which may then be larger than memory.
            progress: called with the share loaded, 0 to 1; returning False stops the loading.

        Raises:
            UserError: not a model GGUF, cut short, or of a kind this llama.cpp does not know.
            WorkError: not enough memory, stopped by `progress`, or llama.cpp does not work here.
        """
        header = read_header(Path(path))
        if header.kind != "model":
            raise UserError(f"{path} is a GGUF of kind {header.kind!r}, not a model", "give a model's GGUF")
        if not header.tensors and not vocab_only:
            raise UserError(f"{path} holds a vocabulary and no weights", "give a whole model")
        api = native.api()
        failure = ""
        for layers in _layer_attempts(header, gpu_layers, vocab_only, n_ctx):
            handle, failure = _load(api, header, layers, vocab_only, repack, progress)
            if handle:
                model = cls(handle, header, layers, vocab_only)
                try:
                    model.adapters = load_adapters(handle, header, adapters)
                except BaseException:
                    model.close()
                    raise
                return model
        raise _load_error(header, failure)

    def add_projector(self, path: Path) -> None:
        """Load the mmproj that lets the model see images.

        Raises:
            UserError: the file is not this model's mmproj.
        """
        from ftllm.llama.vision import Projector

        self.projector = Projector(path, self, n_threads=default_threads(self.n_params))

    def see(self) -> Projector:
        """The projector: the one that was added, else the one beside the model's file, loaded now.

        Raises:
            UserError: there is none that fits.
        """
        from ftllm.llama.vision import find_projector

        if self.projector is None:
            path = find_projector(self.path)
            if path is None:
                hint = "give the model's own with --mmproj"
                raise UserError(f"there is no mmproj that fits beside {self.path}", hint)
            self.add_projector(path)
        assert self.projector is not None
        return self.projector

    def close(self) -> None:
        """Free the weights, and every context over them first. Closing twice is fine."""
        if self._handle is None:
            return
        if self.projector is not None:
            self.projector.close()
            self.projector = None
        for context in tuple(self._contexts):
            context.close()
        self._api.llama_model_free(self._handle)
        self._handle = None

    @property
    def handle(self) -> int:
        """The `llama_model *`."""
        if self._handle is None:
            raise RuntimeError(f"{self.path} is closed")
        return self._handle

    @property
    def vocabulary(self) -> int:
        """The `llama_vocab *`."""
        if self._handle is None:
            raise RuntimeError(f"{self.path} is closed")
        return int(self._vocabulary)

    def adopt(self, context: Context) -> None:
        """Remember a context that must be closed before the weights go."""
        self._contexts.add(context)

    # What kind of model it is

    @cached_property
    def n_ctx_train(self) -> int:
        """Positions the model was trained for."""
        return int(self._api.llama_model_n_ctx_train(self.handle)) or self.header.n_ctx_train

    @cached_property
    def n_layer(self) -> int:
        return int(self._api.llama_model_n_layer(self.handle)) or self.header.n_layer

    @cached_property
    def n_embd(self) -> int:
        return int(self._api.llama_model_n_embd(self.handle)) or self.header.integer("embedding_length")

    @cached_property
    def n_params(self) -> int:
        return int(self._api.llama_model_n_params(self.handle)) or self.header.n_params

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return int(self._api.llama_model_size(self.handle)) or self.header.tensor_bytes

    @cached_property
    def description(self) -> str:
        """llama.cpp's short name for it, as `gemma3 1B Q4_K - Medium`."""
        buffer = ctypes.create_string_buffer(256)
        self._api.llama_model_desc(self.handle, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    @cached_property
    def metadata(self) -> dict[str, str]:
        """The GGUF's scalar values as text, as llama.cpp has them."""
        api, model = self._api, self.handle
        found = {}
        for index in range(api.llama_model_meta_count(model)):
            key = _text(partial(api.llama_model_meta_key_by_index, model, index))
            found[key] = _text(partial(api.llama_model_meta_val_str_by_index, model, index))
        return found

    @cached_property
    def chat_template(self) -> str | None:
        """The GGUF's default chat template."""
        template = self._api.llama_model_chat_template(self.handle, None)
        return template.decode("utf-8", "replace") if template else None

    # The vocabulary

    @cached_property
    def bos_id(self) -> int | None:
        return _token_id(self._api.llama_vocab_bos(self.vocabulary))

    @cached_property
    def eos_id(self) -> int | None:
        return _token_id(self._api.llama_vocab_eos(self.vocabulary))

    @cached_property
    def bos_token(self) -> str:
        """The beginning-of-sequence token as text for templates; empty without one."""
        return self._token_text(self.bos_id)

    @cached_property
    def eos_token(self) -> str:
        """The end-of-sequence token as text for templates; empty without one."""
        return self._token_text(self.eos_id)

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the GGUF asks for a BOS before plain text."""
        return bool(self._api.llama_vocab_get_add_bos(self.vocabulary))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, special tokens in it parsed, nothing added."""
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        while True:
            tokens = (ctypes.c_int32 * room)()
            count = self._api.llama_tokenize(self.vocabulary, data, len(data), tokens, room, False, True)
            if count >= 0:
                return list(tokens[:count])
            if count == -(2**31):
                raise UserError("a text is too long to be tokenized", "split it")
            room = -count

    def is_eog(self, token: int) -> bool:
        """Whether `token` ends a generation: `<end_of_turn>`, the end of the sequence, ..."""
        return bool(self._api.llama_vocab_is_eog(self.vocabulary, token))

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes a token stands for; a control token's only with `special`. A character may be cut.

        Raises:
            IndexError: no such token.
        """
        known = self._pieces.get((token, special))
        if known is not None:
            return known
        if not 0 <= token < self.n_vocab:
            raise IndexError(f"token {token} of {self.n_vocab}")
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = self._api.llama_token_to_piece(self.vocabulary, token, buffer, room, 0, special)
            if count >= 0:
                self._pieces[token, special] = buffer.raw[:count]
                return buffer.raw[:count]
            room = -count

    def decode_text(self, tokens: Iterable[int], special: bool = False) -> str:
        """The text of `tokens`; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self.piece(token, special=special) for token in tokens).decode("utf-8", "replace")

    def _token_text(self, token: int | None) -> str:
        if token is None:
            return ""
        text = self._api.llama_vocab_get_text(self.vocabulary, token)
        return text.decode("utf-8", "replace") if text else ""


def _token_id(token: int) -> int | None:
    return None if token == NO_TOKEN else int(token)


def _text(read: Callable[[Any, int], int]) -> str:
    """Text from one of llama.cpp's functions that fill a buffer and return the length they needed."""
    room = 256
    while True:
        buffer = ctypes.create_string_buffer(room)
        count = read(buffer, room)
        if count < room:
            return buffer.value.decode("utf-8", "replace")
        room = count + 1


def _layer_attempts(header: Header, gpu_layers: int | Literal["auto"], vocab_only: bool, n_ctx: int) -> list[int]:
    """How many layers to offload, in the order to try."""
    if vocab_only or not native.supports_gpu():
        return [0]
    if gpu_layers != "auto":
        return [gpu_layers]
    return fewer_and_fewer(layers_that_fit(header, n_ctx or USUAL_CONTEXT, devices()))


def fewer_and_fewer(layers: int) -> list[int]:
    """`layers`, and what to try when that fails."""
    return list(dict.fromkeys([layers, layers * 3 // 4, layers // 2, layers // 4, 0]))


def _load(
    api: Any,
    header: Header,
    layers: int,
    vocab_only: bool,
    repack: bool,
    progress: Callable[[float], bool] | None,
) -> tuple[int | None, str]:
    """One attempt: the model's handle, or None and llama.cpp's reason."""
    params = api.llama_model_default_params()
    params.n_gpu_layers = layers
    params.vocab_only = vocab_only
    if header.quantized and not vocab_only:
        from ftllm.llama.probe import extra_buffers_work

        params.use_extra_bufts = repack and extra_buffers_work()
    raised: list[BaseException] = []
    stopped = False

    def report(share: float, _data: Any) -> bool:
        nonlocal stopped
        try:
            stopped = progress is not None and not progress(share)
        except BaseException as error:  # ctypes would print it and go on
            raised.append(error)
            stopped = True
        return not stopped

    callback = api.llama_progress_callback(report)
    params.progress_callback = callback
    with native.captured() as lines:
        handle = api.llama_model_load_from_file(os.fsencode(header.path), params)
    if raised:
        raise raised[0]
    if stopped:
        raise WorkError(f"loading {header.path} was stopped")
    return handle, _reason(lines)


def _reason(lines: list[str]) -> str:
    """llama.cpp's own words for why loading failed."""
    for line in lines:
        _, marker, reason = line.partition("error loading model: ")
        if marker:
            return reason.strip()
    return lines[-1].strip() if lines else "llama.cpp gave no reason"


def _load_error(header: Header, reason: str) -> UserError:
    if "unknown model architecture" in reason:
        return UserError(
            f"{header.path}: llama.cpp {native.version()} does not know the architecture {header.architecture!r}",
            "the model may be newer than this program: update ftllm",
        )
    if "alloc" in reason or "memory" in reason:
        return WorkError(f"{header.path} does not fit in memory: {reason}", "close programs, or take a smaller file")
    return UserError(f"{header.path} cannot be loaded: {reason}", "download or export it again")
