"""llama.cpp's quantizer, its types by name, and how it fails."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from ftllm.errors import UserError, WorkError
from ftllm.llama import quantize as module
from ftllm.llama.header import read_header
from ftllm.llama.quantize import file_type_name, quantize


@pytest.mark.parametrize(
    ("given", "proper"), [("Q4_K_M", "Q4_K_M"), ("q4_k_m", "Q4_K_M"), (" iq4-xs ", "IQ4_XS"), ("bf16", "BF16")]
)
def test_names(given: str, proper: str) -> None:
    assert file_type_name(given) == proper


@pytest.mark.parametrize(("given", "meant"), [("Q4_KM", "Q4_K_M"), ("Q4KM", "Q4_K_M"), ("Q8", "Q8_0"), ("f32x", "F32")])
def test_near_misses(given: str, meant: str) -> None:
    with pytest.raises(UserError, match="no quantization type") as caught:
        file_type_name(given)
    assert caught.value.hint == f"did you mean {meant}?"


def test_far_misses_list_what_there_is() -> None:
    with pytest.raises(UserError) as caught:
        file_type_name("small")
    assert "Q4_K_M" in caught.value.hint


def test_q8_0_has_the_bytes_of_ggufs_own_quantizer(gemma_path: Path, tmp_path: Path) -> None:
    target = tmp_path / "q8.gguf"
    quantize(gemma_path, target, "q8_0", threads=1)
    header = read_header(target)
    assert header.file_type == "Q8_0"
    assert header.chat_template == read_header(gemma_path).chat_template
    source = {tensor.name: tensor for tensor in gguf.GGUFReader(gemma_path).tensors}
    quantized = [tensor for tensor in gguf.GGUFReader(target).tensors if tensor.tensor_type.name == "Q8_0"]
    assert len(quantized) == 7 * 7 + 2
    for tensor in quantized[:10]:
        values = np.asarray(source[tensor.name].data)
        expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        assert np.array_equal(tensor.data, expected), tensor.name


def test_q4_k_m_mixes_types_and_tells_how_it_goes(gemma_path: Path, tmp_path: Path) -> None:
    target = tmp_path / "q4.gguf"
    lines: list[str] = []
    quantize(gemma_path, target, "Q4_K_M", threads=1, log=lines.append)
    header = read_header(target)
    assert header.file_type == "Q4_K_M"
    assert header.quantized
    assert {tensor.type for tensor in header.tensors} == {"F32", "Q4_K", "Q6_K"}
    assert 4.5 < header.bits_per_weight < 5.5
    assert sum(f"/  {len(header.tensors)}]" in line or f"/ {len(header.tensors)}]" in line for line in lines) == len(
        header.tensors
    )
    assert any("quant size" in line for line in lines)
    with pytest.raises(UserError, match="is quantized already"):
        quantize(target, tmp_path / "again.gguf", "Q4_0")
    assert not (tmp_path / "again.gguf").exists()


def test_failures_leave_nothing(gemma_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="IQ2_XXS needs an importance matrix"):
        quantize(gemma_path, tmp_path / "iq2.gguf", "IQ2_XXS")
    with pytest.raises(UserError, match="does not exist"):
        quantize(tmp_path / "none.gguf", tmp_path / "x.gguf", "Q8_0")
    with pytest.raises(WorkError, match="could not be quantized"):
        quantize(gemma_path, tmp_path / "no" / "such" / "directory.gguf", "Q8_0")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_log_leaves_nothing(gemma_path: Path, tmp_path: Path) -> None:
    def log(line: str) -> None:
        raise KeyboardInterrupt(line)

    with pytest.raises(KeyboardInterrupt):
        quantize(gemma_path, tmp_path / "q8.gguf", "Q8_0", threads=1, log=log)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told(gemma_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "full.gguf"
    target.symlink_to("/dev/full")
    monkeypatch.setattr(module, "NEARLY_FULL", 2**62)
    with pytest.raises(WorkError, match="no space left"):
        quantize(gemma_path, target, "Q8_0", threads=1)
    assert list(tmp_path.iterdir()) == []
