"""Headers of whole, cut, mutilated and foreign files."""

from __future__ import annotations

import ctypes
import random
import struct
from pathlib import Path

import gguf
import pytest

from ftllm.errors import UserError
from ftllm.llama import native
from ftllm.llama.header import LongArray, read_header
from ftllm.llama.types import FILE_TYPES, TENSOR_TYPES


def test_values_are_those_written(gemma_path: Path) -> None:
    header = read_header(gemma_path)
    assert header.architecture == "gemma3"
    assert header.name == "Tiny test"
    assert header.kind == "model"
    assert header.file_type == "F32"
    assert header.n_ctx_train == 512
    assert header.n_layer == 7
    assert header.metadata["general.sampling.top_k"] == 40
    assert header.metadata["general.sampling.temp"] == 0.25
    assert header.metadata["tokenizer.ggml.tokens"][4] == "<start_of_turn>"
    assert header.chat_template is not None
    assert header.bits_per_weight == 32
    assert not header.quantized
    # K and V of one head of 64 values in 16 bits, in each of 7 layers
    assert header.kv_bytes_per_token() == 7 * 2 * 64 * 2


def test_tensors_are_those_of_the_gguf_package(gemma_path: Path) -> None:
    header = read_header(gemma_path)
    theirs = gguf.GGUFReader(gemma_path)
    assert [
        (tensor.name, list(tensor.shape), tensor.type, tensor.offset, tensor.nbytes) for tensor in header.tensors
    ] == [
        (tensor.name, [int(n) for n in tensor.shape], tensor.tensor_type.name, tensor.data_offset, tensor.n_bytes)
        for tensor in theirs.tensors
    ]
    assert header.n_params == sum(int(tensor.n_elements) for tensor in theirs.tensors)


def test_tensor_types_are_those_of_this_ggml() -> None:
    name_of = native.ggml("ggml_type_name", ctypes.c_char_p, ctypes.c_int)
    block_of = native.ggml("ggml_blck_size", ctypes.c_int64, ctypes.c_int)
    bytes_of = native.ggml("ggml_type_size", ctypes.c_size_t, ctypes.c_int)
    theirs = {
        number: (name_of(number).decode().upper(), block_of(number), bytes_of(number))
        for number in range(native.api().GGML_TYPE_COUNT)
        if block_of(number)
    }
    assert {number: (kind.name, kind.block, kind.bytes) for number, kind in TENSOR_TYPES.items()} == theirs


def test_file_types_are_those_of_this_llama_cpp() -> None:
    api = native.api()
    prefix = "LLAMA_FTYPE_MOSTLY_"
    theirs = {name.removeprefix(prefix): getattr(api, name) for name in dir(api) if name.startswith(prefix)}
    assert theirs | {"F32": 0} == FILE_TYPES


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"GG", "is not a GGUF file"),
        (b"{'not': 'a gguf'}" * 100, "is not a GGUF file"),
        (b"GGUF" + struct.pack("<I", 3), "is cut short"),
        (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "newer than 3"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "no longer reads"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**63) + b"k", "is cut short"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 77), "is damaged"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 2**62), "is cut short"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<IQIQ", 1, 32, 99, 0), "does not know"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<IQIQ", 1, 33, 2, 0), "impossible shape"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<IQIQ", 1, 32, 0, 0), "64 of 192 bytes"),
    ],
)
def test_bad_files_are_one_clear_line(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content.ljust(64, b"\0") if complaint.startswith("64 of") else content)
    with pytest.raises(UserError, match=complaint) as caught:
        read_header(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_missing_and_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(UserError, match="is a directory"):
        read_header(tmp_path)


def test_every_cut_is_seen(gemma_path: Path, tmp_path: Path) -> None:
    whole = gemma_path.read_bytes()
    header = read_header(gemma_path)
    path = tmp_path / "cut.gguf"
    generator = random.Random(0)
    lengths = [1, 7, 30, header.data_offset - 1, header.data_offset, len(whole) // 2, len(whole) - 33]
    lengths += [generator.randrange(1, header.data_offset) for _ in range(12)]
    for length in lengths:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="is cut short" if length >= 4 else "not a GGUF"):
            read_header(path)


def test_garbage_is_never_more_than_a_user_error(gemma_path: Path, tmp_path: Path) -> None:
    header = read_header(gemma_path)
    whole = gemma_path.read_bytes()[: header.data_offset]
    generator = random.Random(1)
    path = tmp_path / "garbage.gguf"
    for _ in range(80):
        mutilated = bytearray(whole)
        for _ in range(generator.randrange(1, 6)):
            mutilated[generator.randrange(4, len(whole))] = generator.choice([0, 1, 8, 9, 127, 255])
        path.write_bytes(mutilated)
        with pytest.raises(UserError):  # at the least, its tensors are missing
            read_header(path)


def test_long_vocabularies_are_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list([f"token {i}" for i in range(5000)])
    writer.add_token_scores([0.0] * 5000)
    writer.add_context_length(77)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(path)
    tokens = header.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, LongArray)
    assert tokens.length == 5000
    assert path.read_bytes()[tokens.offset : tokens.offset + 15] == struct.pack("<Q", 7) + b"token 0"
    assert header.n_ctx_train == 77
    assert header.tensors == ()
