"""A GGUF's header, read without llama.cpp: what it is, and whether all of it is there.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and gguf.cpp in llama.cpp. Strings of a
262k-token vocabulary are walked, not decoded, so reading stays quick; garbage of any kind is a `UserError`.
"""

from __future__ import annotations

import errno
import mmap
import struct
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from ftllm.errors import UserError, WorkError
from ftllm.llama.types import FILE_TYPE_NAMES, TENSOR_TYPES
from ftllm.values import dataclass

MAGIC = b"GGUF"
NEWEST_VERSION = 3
SHORT_ARRAY = 1024  # longer arrays (vocabularies) are kept as their length only
MAX_DIMENSIONS = 4

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
LAYOUTS = {code: struct.Struct("<" + code) for code in SCALARS.values()}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class LongArray:
    """An array too long to keep: how many elements, and where in the file they begin."""

    length: int
    kind: int
    offset: int


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header describes it.

    Attributes:
        shape: in ggml's order, the row length first.
        offset: of its bytes from the start of the file.
        nbytes: its size in the file.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int

    @property
    def elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a GGUF says about itself."""

    path: Path
    version: int
    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    file_size: int

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def kind(self) -> str:
        """`model`, `adapter`, `imatrix`, `mmproj`, ... as `general.type` has it."""
        return str(self.metadata.get("general.type", "model"))

    @property
    def name(self) -> str:
        return str(self.metadata.get("general.name", ""))

    @property
    def file_type(self) -> str | None:
        """`Q4_K_M`, ... as `general.file_type` has it; None when absent or unknown."""
        number = self.metadata.get("general.file_type")
        return FILE_TYPE_NAMES.get(number & ~1024) if isinstance(number, int) else None

    @property
    def chat_template(self) -> str | None:
        value = self.metadata.get("tokenizer.chat_template")
        return value if isinstance(value, str) else None

    @property
    def n_ctx_train(self) -> int:
        return self.integer("context_length")

    @property
    def n_layer(self) -> int:
        return self.integer("block_count")

    @property
    def n_params(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight over all tensors; 0 without tensors."""
        return 8 * self.tensor_bytes / self.n_params if self.tensors else 0.0

    @property
    def quantized(self) -> bool:
        """Whether any tensor is of a block type."""
        return any(BY_NAME[tensor.type].quantized for tensor in self.tensors)

    def integer(self, key: str, default: int = 0) -> int:
        """`<architecture>.<key>` where it is an integer (the largest, where it is one a layer)."""
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if isinstance(value, tuple) and value and all(isinstance(item, int) for item in value):
            value = max(value)
        return value if isinstance(value, int) else default

    def kv_bytes_per_token(self) -> int:
        """Bytes one position takes in a full 16-bit KV cache; 0 where the header does not tell."""
        heads = self.integer("attention.head_count_kv", self.integer("attention.head_count"))
        width = self.integer("embedding_length") // max(self.integer("attention.head_count", 1), 1)
        key = self.integer("attention.key_length", width)
        value = self.integer("attention.value_length", width)
        return 2 * self.n_layer * heads * (key + value)


BY_NAME = {kind.name: kind for kind in TENSOR_TYPES.values()}


def read_header(path: Path) -> Header:
    """Read and check the header of a GGUF file, tensor data's extent included.

    Raises:
        UserError: the file is missing, empty, not a GGUF, damaged, cut short, or of a newer version.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size == 0:
                raise UserError(f"{path} is empty", "download or export it again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                return _parse(path, view, size)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", "give the path of a GGUF file") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a directory, not a GGUF file", "give the path of a file in it") from None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise WorkError(f"{path} does not fit in memory", "close programs, or take a smaller file") from None
        raise UserError(f"{path} cannot be read: {error}", "check that it is a file you may read") from None


def array_items(header: Header, key: str, indices: Iterable[int] | None = None) -> dict[int, Any]:
    """Elements of an array in the metadata by index, read from the file where it is long; empty where there is none.

    Args:
        indices: which; None is all. Those beyond the array's end are left out.
    """
    value = header.metadata.get(key)
    if isinstance(value, tuple):
        wanted = range(len(value)) if indices is None else sorted(indices)
        return {index: value[index] for index in wanted if 0 <= index < len(value)}
    if not isinstance(value, LongArray):
        return {}
    chosen = set(range(value.length) if indices is None else indices)
    last = max((index for index in chosen if index < value.length), default=-1)
    with header.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        cursor = _Cursor(view, header.file_size)
        cursor.at = value.offset
        items = (cursor.value(value.kind) for _ in range(last + 1))
        return {index: item for index, item in enumerate(items) if index in chosen}


class _CutShortError(Exception):
    """The header goes on past the end of the file."""


class _DamagedError(Exception):
    """The header says something no GGUF says."""


class _Cursor:
    """Little-endian reads over a file's bytes that never leave them."""

    def __init__(self, view: mmap.mmap, size: int) -> None:
        self.view = view
        self.size = size
        self.at = 0

    def take(self, count: int) -> int:
        """Move over `count` bytes; return where they began."""
        begin = self.at
        if count > self.size - begin:
            raise _CutShortError
        self.at = begin + count
        return begin

    def scalar(self, code: str) -> Any:
        layout = LAYOUTS[code]
        return layout.unpack_from(self.view, self.take(layout.size))[0]

    def string(self) -> str:
        length = self.scalar("Q")
        begin = self.take(length)
        return self.view[begin : begin + length].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self.array()
        if kind not in SCALARS:
            raise _DamagedError(f"a value of unknown kind {kind}")
        return self.scalar(SCALARS[kind])

    def array(self) -> tuple[Any, ...] | LongArray:
        kind, length = self.scalar("I"), self.scalar("Q")
        begin = self.at
        if kind in SCALARS:
            layout = SCALARS[kind]
            begin = self.take(length * LAYOUTS[layout].size)
            if length > SHORT_ARRAY:
                return LongArray(length, kind, begin)
            return struct.unpack_from(f"<{length}{layout}", self.view, begin)
        if kind != STRING:
            raise _DamagedError(f"an array of unknown kind {kind}")
        if length > (self.size - begin) // 8:
            raise _CutShortError
        if length <= SHORT_ARRAY:
            return tuple(self.string() for _ in range(length))
        self.skip_strings(length)
        return LongArray(length, kind, begin)

    def skip_strings(self, count: int) -> None:
        at, size, view = self.at, self.size, self.view
        unpack = struct.Struct("<Q").unpack_from
        try:
            for _ in range(count):
                at += 8 + unpack(view, at)[0]
        except (struct.error, OverflowError):
            raise _CutShortError from None
        if at > size:
            raise _CutShortError
        self.at = at


def _parse(path: Path, view: mmap.mmap, size: int) -> Header:
    if view[:4] != MAGIC:
        raise UserError(f"{path} is not a GGUF file", "give a model exported or downloaded as .gguf")
    cursor = _Cursor(view, size)
    cursor.take(4)
    try:
        version = cursor.scalar("I")
        if version & 0xFFFF == 0:
            raise UserError(f"{path} is a big-endian GGUF", "convert it for this machine")
        if version > NEWEST_VERSION:
            raise UserError(f"{path} is GGUF version {version}, newer than {NEWEST_VERSION}", "update ftllm")
        if version < 2:
            raise UserError(f"{path} is GGUF version {version}, which llama.cpp no longer reads", "convert it again")
        n_tensors, n_values = cursor.scalar("Q"), cursor.scalar("Q")
        metadata: dict[str, Any] = {}
        for _ in range(n_values):
            key = cursor.string()
            metadata[key] = cursor.value(cursor.scalar("I"))
        infos = [_tensor(path, cursor) for _ in range(n_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise _DamagedError(f"an alignment of {alignment}")
    except _CutShortError:
        raise _cut_short(path, f"its header does not end within its {size:,} bytes") from None
    except _DamagedError as error:
        raise UserError(f"{path} is damaged: its header holds {error}", "download or export it again") from None
    begin = -(-cursor.at // alignment) * alignment
    tensors = tuple(TensorInfo(info.name, info.shape, info.type, begin + info.offset, info.nbytes) for info in infos)
    end = max((tensor.offset + tensor.nbytes for tensor in tensors), default=0)
    if end > size:
        raise _cut_short(path, f"it holds {size:,} of {end:,} bytes")
    return Header(path, version, metadata, tensors, begin, size)


def _tensor(path: Path, cursor: _Cursor) -> TensorInfo:
    """One tensor's description, its offset still relative to the data."""
    name = cursor.string()
    n_dimensions = cursor.scalar("I")
    if not 0 < n_dimensions <= MAX_DIMENSIONS:
        raise _DamagedError(f"a tensor of {n_dimensions} dimensions")
    shape = tuple(cursor.scalar("Q") for _ in range(n_dimensions))
    number, offset = cursor.scalar("I"), cursor.scalar("Q")
    kind = TENSOR_TYPES.get(number)
    if kind is None:
        raise UserError(f"{path}: tensor {name} has type {number}, which this llama.cpp does not know", "update ftllm")
    elements = prod(shape)
    if elements >= 2**63 or shape[0] % kind.block:
        raise _DamagedError(f"a tensor {name} of impossible shape {shape}")
    return TensorInfo(name, shape, kind.name, offset, elements // kind.block * kind.bytes)


def _cut_short(path: Path, how: str) -> UserError:
    return UserError(f"{path} is cut short: {how}", "download or export it again")
