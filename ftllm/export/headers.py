"""Headers of the files an export writes. Only the worker imports this: upstream's `gguf` must be on its path.

The metadata, a vocabulary of 262k tokens for the most part, is packed once and shared by all files. As
`llama_model_quantize` does, the keys that say how a file is quantized come last.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import gguf
import numpy as np

from ftllm.export.plan import ALIGNMENT, Planned, padded

LONG = 1024
QUANTIZATION = (gguf.Keys.General.QUANTIZATION_VERSION, gguf.Keys.General.FILE_TYPE)
VOCABULARY = {
    gguf.Keys.Tokenizer.LIST,
    gguf.Keys.Tokenizer.TOKEN_TYPE,
    gguf.Keys.Tokenizer.SCORES,
    gguf.Keys.Tokenizer.MERGES,
}
Kind = gguf.GGUFValueType
Value = tuple[Any, Any]  # a value and its GGUFValueType


class Headers:
    """Makes headers from the metadata that upstream's converter prepared."""

    def __init__(self, source: Any) -> None:
        """Args: source: the converter's `GGUFWriter`, all metadata added."""
        self._packer = _Packer(None, source.arch, endianess=source.endianess)
        values = {key: value for key, value in source.kv_data[0].items() if key not in QUANTIZATION}
        self._count = len(values)
        packed = {key: self._pack(key, value.value, value.type, value.sub_type) for key, value in values.items()}
        self._packed = b"".join(packed.values())
        few = [packed[key] for key in packed if key not in VOCABULARY]
        self._few, self._few_count = b"".join(few), len(few)

    def headers(
        self, shards: Sequence[Sequence[Planned]], file_type: int, extra: Mapping[str, Value] | None = None
    ) -> list[bytes]:
        """The header of each shard, padded to where the data begins; `extra` values follow all others.

        As llama-gguf-split does, the first shard holds the metadata and the others only which they are.
        """
        own = {
            QUANTIZATION[0]: (gguf.GGML_QUANT_VERSION, Kind.UINT32),
            QUANTIZATION[1]: (file_type, Kind.UINT32),
            **(extra or {}),
        }
        if len(shards) == 1:
            return [self._build(self._count + len(own), self._packed + self._values(own), shards[0])]
        made = []
        for number, tensors in enumerate(shards):
            split = {
                gguf.Keys.Split.LLM_KV_SPLIT_NO: (number, Kind.UINT16),
                gguf.Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT: (sum(map(len, shards)), Kind.INT32),
                gguf.Keys.Split.LLM_KV_SPLIT_COUNT: (len(shards), Kind.UINT16),
            }
            if number == 0:
                values = own | split
                made.append(self._build(self._count + len(values), self._packed + self._values(values), tensors))
            else:
                made.append(self._build(len(split), self._values(split), tensors))
        return made

    def skeleton(self, tensors: Sequence[Planned], file_type: int) -> bytes:
        """A header without the lists of a vocabulary, which take long to read and are nothing to a type plan."""
        own = {QUANTIZATION[1]: (file_type, Kind.UINT32)}
        return self._build(self._few_count + 1, self._few + self._values(own), tensors)

    @staticmethod
    def kind(name: str) -> Any:
        """The GGUF value type called so."""
        return Kind[name]

    def _build(self, count: int, values: bytes, tensors: Sequence[Planned]) -> bytes:
        out = io.BytesIO()
        out.write(struct.pack("<IIQQ", gguf.GGUF_MAGIC, gguf.GGUF_VERSION, len(tensors), count))
        out.write(values)
        offset = 0
        for tensor in tensors:
            name = tensor.name.encode("utf-8")
            out.write(struct.pack("<Q", len(name)) + name)
            dimensions = tensor.shape[::-1]
            out.write(struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, tensor.kind, offset))
            offset += padded(tensor.nbytes)
        return out.getvalue() + bytes(-out.tell() % ALIGNMENT)

    def _values(self, values: Mapping[str, Value]) -> bytes:
        return b"".join(self._pack(key, value, kind) for key, (value, kind) in values.items())

    def _pack(self, key: str, value: Any, kind: Any, sub_type: Any = None) -> bytes:
        packer = self._packer
        return bytes(
            packer._pack_val(key, Kind.STRING, add_vtype=False)
            + packer._pack_val(value, kind, add_vtype=True, sub_type=sub_type)
        )


class _Packer(gguf.GGUFWriter):  # type: ignore[misc]
    """Upstream's packing, without a call for every element of a long list."""

    def _pack_val(self, val: Any, vtype: Any, add_vtype: bool, sub_type: Any = None) -> bytes:
        plain = vtype == Kind.ARRAY and sub_type is None and isinstance(val, list) and len(val) > LONG
        kinds = set(map(type, val)) if plain else set()
        if kinds and kinds <= {str, bytes, bytearray}:
            encoded = [item.encode("utf-8") if isinstance(item, str) else item for item in val]
            lengths = map(struct.Struct("<Q").pack, map(len, encoded))
            data = b"".join(chain.from_iterable(zip(lengths, encoded, strict=True)))
            kind = Kind.STRING
        elif kinds == {float}:
            kind, data = Kind.FLOAT32, np.array(val, dtype="<f4").tobytes()
        elif kinds and all(issubclass(known, int) and known is not bool for known in kinds):  # enumerations, too
            kind, data = Kind.INT32, np.fromiter(val, "<i4", len(val)).tobytes()
        else:
            return bytes(super()._pack_val(val, vtype, add_vtype, sub_type))
        prefix = struct.pack("<I", vtype) if add_vtype else b""
        return prefix + struct.pack("<IQ", kind, len(val)) + data
