"""Faults planted in real files must be found before a file gets its name, and called what they are."""

from __future__ import annotations

import logging
import re
import shutil
import struct
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

from ftllm.export import checks, verifier
from ftllm.export.checks import CONTROL, USER_DEFINED
from ftllm.export.tokens import Tokens, read_tokens
from ftllm.export.verifier import Truth
from ftllm.files import sha256_file, xxh3_file
from ftllm.llama.header import TensorInfo, read_header
from ftllm.llama.model import Model

QUANTS = ("F32", "Q4_K_M")
Check = Callable[..., list[str]]


def checker(truth: Truth, order: dict[str, Any]) -> Check:
    """The verifier's whole check on one file; its faults."""

    def check(path: Path, quant: str, **changed: Any) -> list[str]:
        header = read_header(path)
        part = {"path": str(path), "bytes": header.file_size, "tensors": len(header.tensors)}
        part |= {"sha256": sha256_file(path), "xxh3": xxh3_file(path), **changed}
        return verifier.verify({"files": [part], "type": quant, **order}, truth)[1]

    return check


@pytest.fixture(scope="module")
def of_nano(truth: Truth, lora_files: Any) -> Check:
    return checker(truth, lora_files.order)


@pytest.fixture(scope="module")
def of_llama(llama_truth: Truth, llama_files: Any) -> Check:
    return checker(llama_truth, llama_files.order)


@pytest.fixture
def copies(lora_files: Any, tmp_path: Path) -> dict[str, Path]:
    return {quant: Path(shutil.copy(lora_files[quant], tmp_path)) for quant in QUANTS}


@pytest.fixture
def llama_copies(llama_files: Any, tmp_path: Path) -> dict[str, Path]:
    return {quant: Path(shutil.copy(llama_files[quant], tmp_path)) for quant in QUANTS}


@pytest.mark.parametrize("quant", QUANTS)
def test_right_files_have_no_faults(
    quant: str, lora_files: Any, llama_files: Any, of_nano: Check, of_llama: Check
) -> None:
    assert of_nano(lora_files[quant], quant) == []
    assert of_llama(llama_files[quant], quant) == []


@pytest.mark.parametrize("quant", QUANTS)
def test_one_norm_without_its_one(quant: str, copies: dict[str, Path], of_nano: Check) -> None:
    """Of one layer only: too little for a four-bit file's divergence to show."""
    info = tensor(copies[quant], "blk.3.ffn_norm.weight")
    values = np.fromfile(copies[quant], dtype=np.float32, count=info.elements, offset=info.offset)
    overwrite(copies[quant], info.offset, (values - 1.0).tobytes())
    assert "blk.3.ffn_norm.weight lacks the 1 that the model adds to it" in said(of_nano(copies[quant], quant))


def test_another_norm(copies: dict[str, Path], of_nano: Check) -> None:
    info = tensor(copies["Q4_K_M"], "output_norm.weight")
    (first,) = np.fromfile(copies["Q4_K_M"], dtype=np.float32, count=1, offset=info.offset)
    overwrite(copies["Q4_K_M"], info.offset, struct.pack("<f", first + 0.5))
    assert "output_norm.weight is not the model's norm: it differs by up to 0.5" in said(
        of_nano(copies["Q4_K_M"], "Q4_K_M")
    )


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("name", ["blk.0.attn_q.weight", "blk.1.attn_k.weight"])
def test_unpermuted_rows_of_a_llama(quant: str, name: str, llama_copies: dict[str, Path], of_llama: Check) -> None:
    """As a converter without `LlamaModel.permute` writes them."""
    rotate_back(llama_copies[quant], name, heads=4 if "attn_q" in name else 2)
    assert f"{name}: its rows are not permuted, as llama.cpp wants them for llama" in said(
        of_llama(llama_copies[quant], quant)
    )


def test_permuted_rows_of_a_gemma(copies: dict[str, Path], of_nano: Check) -> None:
    rotate_back(copies["Q4_K_M"], "blk.0.attn_q.weight", heads=4)
    assert "blk.0.attn_q.weight: its rows are permuted, and must not be for gemma3" in said(
        of_nano(copies["Q4_K_M"], "Q4_K_M")
    )


def test_a_dropped_rslora_scale(
    lora: Any, nano: Path, convert: Any, edited: Any, of_nano: Check, tmp_path: Path
) -> None:
    """Upstream's own LoRA converter drops it."""
    wrong = shutil.copytree(lora.adapter, tmp_path / "adapter")
    edited(wrong / "adapter_config.json", use_rslora=False)
    files = convert(nano, wrong, list(QUANTS), tmp_path)
    expected = (1 / sqrt(8), 1 / sqrt(4))  # the latter where the rank is 4
    for quant, tolerance in zip(QUANTS, (0.005, 0.03), strict=True):
        faults = said(of_nano(files[quant], quant))
        share = float(re.search(r"holds ([0-9.]+) times what its adapter adds", faults)[1])  # type: ignore[index]
        assert min(abs(share - each) for each in expected) < tolerance


@pytest.mark.slow
def test_a_file_without_the_adapter(nano: Path, convert: Any, of_nano: Check, tmp_path: Path) -> None:
    plain = convert(nano, None, ["F32"], tmp_path)["F32"]
    assert "0.00 times what its adapter adds" in said(of_nano(plain, "F32"))


@pytest.mark.parametrize("noted", ["xxh3", "sha256"])
def test_one_corrupted_block(noted: str, copies: dict[str, Path], of_nano: Check) -> None:
    """Found by the writer's checksum, or by the hash of a file that was made earlier."""
    path = copies["Q4_K_M"]
    before = {"xxh3": xxh3_file(path)} if noted == "xxh3" else {"sha256": sha256_file(path), "xxh3": None}
    info = tensor(path, "blk.2.ffn_up.weight")
    assert info.type == "Q4_K"
    overwrite(path, info.offset + 144 * 3, bytes(144))
    assert of_nano(path, "Q4_K_M", **before) == ["its bytes on disk are not those that were written"]


def test_nan_in_a_weight(copies: dict[str, Path], of_nano: Check) -> None:
    overwrite(copies["F32"], tensor(copies["F32"], "output_norm.weight").offset, struct.pack("<f", float("nan")))
    assert "NaN" in said(of_nano(copies["F32"], "F32"))


# Vocabularies and templates: no weights are needed to see these.


@pytest.mark.parametrize("kind", [checks.NORMAL, USER_DEFINED])
def test_control_tokens_as_ordinary_ones(kind: int, copies: dict[str, Path], truth: Truth) -> None:
    set_token_type(copies["F32"], truth.tokens, "<start_of_turn>", kind)
    faults = said(token_faults(copies["F32"], truth.tokens))
    assert f"the special token <start_of_turn> is an ordinary token (type {kind}, should be {CONTROL})" in faults


def test_thought_tags_that_vanish(llama_files: Any, llama_truth: Truth, tmp_path: Path) -> None:
    """The base has them as special tokens, and upstream writes those as control tokens."""
    tags = llama_truth.tokens.tags
    assert tags == ("<think>", "</think>")
    with Model.load(llama_files["F32"], vocab_only=True) as model:
        assert all(len(model.encode(tag)) == 1 for tag in tags)
    assert token_faults(llama_files["F32"], llama_truth.tokens) == []
    path = Path(shutil.copy(llama_files["F32"], tmp_path))
    set_token_type(path, llama_truth.tokens, "</think>", CONTROL)
    assert "the thought tag </think> vanishes" in said(token_faults(path, llama_truth.tokens))


def test_a_template_that_adds_a_second_bos(copies: dict[str, Path], copy_of_nano: Path, truth: Truth) -> None:
    """In the file alone, and in the base it was made from."""
    template = copy_of_nano / "chat_template.jinja"
    template.write_text("{{- bos_token -}}" + template.read_text())
    path = with_template(copies["F32"], template.read_text())
    with Model.load(path, vocab_only=True) as model:
        assert "begins with 2 BOS tokens" in said(checks.check_template(model, truth.tokens))
    tokens = read_tokens(copy_of_nano, truth.tokens.embedded)
    assert "the chat template begins with 2 BOS tokens" in said(token_faults(path, tokens))


@pytest.mark.parametrize("ending", ["<start_of_turn>", ""])
def test_an_end_of_turn_that_never_fires(
    ending: str, copies: dict[str, Path], copy_of_nano: Path, truth: Truth
) -> None:
    """After an answer the template writes a token that ends nothing, or none at all."""
    template = copy_of_nano / "chat_template.jinja"
    template.write_text(template.read_text().replace("<end_of_turn>", ending))
    path = with_template(copies["F32"], template.read_text())
    tokens = read_tokens(copy_of_nano, truth.tokens.embedded)
    assert "it never stops" in said(token_faults(path, tokens))
    with Model.load(path, vocab_only=True) as model:  # against the right base it is the template that differs
        assert "its chat template renders" in said(checks.check_template(model, truth.tokens))


def test_a_file_without_a_template(copies: dict[str, Path], truth: Truth) -> None:
    path = with_template(copies["F32"], None)
    with Model.load(path, vocab_only=True) as model:
        assert checks.check_template(model, truth.tokens) == ["it has no chat template, the original has one"]


def said(faults: list[str]) -> str:
    return "\n".join(faults)


def tensor(path: Path, name: str) -> TensorInfo:
    return next(info for info in read_header(path).tensors if info.name == name)


def rotate_back(path: Path, name: str, heads: int) -> None:
    """Put rows where the two halves of each head alternate one half after the other, or the other way about.

    A row is quantized by itself, so its bytes can be moved as they are.
    """
    info = tensor(path, name)
    data = np.fromfile(path, dtype=np.uint8, count=info.nbytes, offset=info.offset)
    if "llama" in str(read_header(path).architecture):
        turned = data.reshape(heads, info.shape[1] // heads // 2, 2, -1).swapaxes(1, 2)
    else:
        turned = data.reshape(heads, 2, info.shape[1] // heads // 2, -1).swapaxes(1, 2)
    overwrite(path, info.offset, np.ascontiguousarray(turned).tobytes())


def set_token_type(path: Path, tokens: Tokens, text: str, kind: int) -> None:
    token = next(index for index, special in tokens.special.items() if special == text)
    kinds = read_header(path).metadata["tokenizer.ggml.token_type"]
    overwrite(path, kinds.offset + 4 * token, struct.pack("<i", kind))


def with_template(path: Path, template: str | None) -> Path:
    """The same file with another chat template, as upstream's `gguf_new_metadata` writes it."""
    out = path.with_name("new.gguf")
    logging.getLogger("gguf-new-metadata").setLevel(logging.ERROR)
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(out, arch=str(read_header(path).architecture))
    key = "tokenizer.chat_template"
    new = {} if template is None else {key: MetadataDetails(gguf.GGUFValueType.STRING, template)}
    copy_with_new_metadata(reader, writer, new, [key] if template is None else [])
    return out


def token_faults(path: Path, tokens: Tokens) -> list[str]:
    with Model.load(path, vocab_only=True) as model:
        return checks.check_tokens(model, read_header(path), tokens)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
