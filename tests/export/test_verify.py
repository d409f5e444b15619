"""Faults planted in files, tokenizers and adapters must be found before a file gets its name."""

from __future__ import annotations

import dataclasses
import re
import shutil
import struct
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from exact_models import gguf_name

from ftllm.export import checks, limits, stream, verifier
from ftllm.export.checks import CONTROL, USER_DEFINED
from ftllm.export.stream import Output, Part
from ftllm.export.verifier import Truth
from ftllm.files import sha256_file
from ftllm.llama.header import LongArray, read_header
from ftllm.llama.model import Model


@pytest.fixture(scope="module")
def tokens(truth: Truth) -> Any:
    return truth.tokens


@pytest.fixture(scope="module")
def verify(truth: Truth) -> Callable[..., tuple[dict[str, Any], list[str]]]:
    """The verifier's whole check on one file, against the nano model with the adapter."""
    merged = {gguf_name(module): module for module in truth.reference.changed}

    def run(path: Path, quant: str, **order: Any) -> tuple[dict[str, Any], list[str]]:
        header = read_header(path)
        part = {"path": str(path), "bytes": header.file_size, "tensors": len(header.tensors)}
        part |= {"sha256": sha256_file(path), **order}
        return verifier.verify({"files": [part], "type": quant, "merged": merged}, truth)

    return run


@pytest.mark.parametrize("quant", ["F32", "Q4_K_M"])
def test_a_right_file_passes(quant: str, lora_files: dict[str, Path], verify: Any) -> None:
    figures, faults = verify(lora_files[quant], quant)
    assert faults == []
    assert figures["adapter_layers_checked"] == 42
    assert abs(figures["adapter_share"] - 1.0) < (1e-4 if quant == "F32" else 0.05)
    assert figures["kl_divergence"] < (1e-4 if quant == "F32" else 0.3)


def test_a_dropped_rslora_scale_is_found(
    lora: Any, nano: Path, convert: Any, edited: Any, verify: Any, tmp_path: Path
) -> None:
    wrong = shutil.copytree(lora.adapter, tmp_path / "adapter")
    edited(wrong / "adapter_config.json", use_rslora=False)
    for quant, path in convert(nano, wrong, ["F32", "Q4_K_M"], tmp_path).items():
        _, faults = verify(path, quant)
        assert any("times what its adapter adds" in fault for fault in faults)
        share = float(re.search(r"holds ([0-9.]+) times", faults[0])[1])  # type: ignore[index]
        expected = (1 / sqrt(8), 1 / sqrt(4))  # the latter where the rank is 4
        assert min(abs(share - each) for each in expected) < (0.005 if quant == "F32" else 0.03)


def test_another_base_is_found(
    lora_files: dict[str, Path], nano: Path, convert: Any, verify: Any, tmp_path: Path
) -> None:
    del lora_files
    plain = convert(nano, None, ["F32"], tmp_path)["F32"]
    _, faults = verify(plain, "F32")
    assert any("0.00 times what its adapter adds" in fault for fault in faults)


@pytest.fixture
def copy(lora_files: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copy(lora_files["F32"], tmp_path / "copy.gguf"))


def test_a_norm_without_its_one_is_found(copy: Path, verify: Any) -> None:
    for info in read_header(copy).tensors:
        if info.name.endswith("attn_norm.weight"):
            values = np.fromfile(copy, dtype=np.float32, count=info.elements, offset=info.offset)
            overwrite(copy, info.offset, (values - 1.0).tobytes())
    _, faults = verify(copy, "F32")
    assert any("KL divergence" in fault for fault in faults)


def test_rows_in_another_order_are_found(copy: Path, verify: Any) -> None:
    info = next(info for info in read_header(copy).tensors if info.name == "blk.0.attn_q.weight")
    rows = np.fromfile(copy, dtype=np.float32, count=info.elements, offset=info.offset).reshape(4, 2, 32, -1)
    overwrite(copy, info.offset, np.ascontiguousarray(rows.swapaxes(1, 2)).tobytes())
    _, faults = verify(copy, "F32")
    assert faults


def test_one_corrupted_block_is_found(lora_files: dict[str, Path], verify: Any, tmp_path: Path) -> None:
    path = Path(shutil.copy(lora_files["Q4_K_M"], tmp_path))
    before = sha256_file(path)
    info = read_header(path).tensors[40]
    overwrite(path, info.offset + 144 * 3, bytes(144))
    assert verify(path, "Q4_K_M", sha256=before)[1] == ["its bytes on disk are not those that were written"]


def test_a_cut_file_is_found(copy: Path, verify: Any) -> None:
    from ftllm.errors import UserError

    with copy.open("r+b") as file:
        file.truncate(copy.stat().st_size - 1000)
    with pytest.raises(UserError, match="cut short"):
        verify(copy, "F32")


def test_nan_is_found_in_weights_and_in_predictions(copy: Path, verify: Any, tmp_path: Path) -> None:
    from ftllm.errors import WorkError
    from ftllm.export.plan import Plan, Planned

    info = next(info for info in read_header(copy).tensors if info.name == "output_norm.weight")
    overwrite(copy, info.offset, struct.pack("<f", float("nan")))
    assert any("NaN" in fault for fault in verify(copy, "F32")[1])
    plan = Plan("Q8_0", (Planned("w", (2, 32), 8),), 0)
    rows = np.full((2, 32), np.inf, np.float32)
    with (tmp_path / "x").open("wb") as file, pytest.raises(WorkError, match="w holds NaN or infinite"):
        stream_rows(rows, Output(plan, [Part(tmp_path / "x", b"", 1, file)]))


def test_a_wrong_quantizer_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ftllm.errors import WorkError
    from ftllm.export import blocks
    from ftllm.export.plan import Plan, Planned

    rows = np.random.default_rng(0).standard_normal((16, 256)).astype(np.float32)
    plan = Plan("Q4_K_M", (Planned("w", (16, 256), blocks.NUMBERS["Q4_K"]),), 0)
    right = blocks.quantize
    monkeypatch.setattr(blocks, "quantize", lambda kind, values, _: right(kind, values[::-1]))
    with (tmp_path / "x").open("wb") as file, pytest.raises(WorkError, match="w as Q4_K is off by"):
        stream_rows(rows, Output(plan, [Part(tmp_path / "x", b"", 1, file)]))


def test_ordinary_control_tokens_are_found(copy: Path, tokens: Any) -> None:
    header = read_header(copy)
    kinds = header.metadata["tokenizer.ggml.token_type"]
    assert isinstance(kinds, LongArray)
    found = checks.token_types(header)
    assert found is not None
    start = next(index for index, text in tokens.special.items() if text == "<start_of_turn>")
    assert found[start] == CONTROL
    overwrite(copy, kinds.offset + 4 * start, struct.pack("<i", checks.NORMAL))
    faults = token_faults(copy, tokens)
    assert any("<start_of_turn>" in fault for fault in faults)


def test_a_control_token_of_the_wrong_kind_is_found(copy: Path, tokens: Any) -> None:
    header = read_header(copy)
    start = next(index for index, text in tokens.special.items() if text == "<start_of_turn>")
    overwrite(copy, header.metadata["tokenizer.ggml.token_type"].offset + 4 * start, struct.pack("<i", USER_DEFINED))
    assert any("is an ordinary token" in fault for fault in token_faults(copy, tokens))


def test_a_template_with_two_bos_is_found(copy: Path, copy_of_nano: Path, tokens: Any) -> None:
    from ftllm.export.tokens import read_tokens

    template = copy_of_nano / "chat_template.jinja"
    template.write_text("{{- bos_token -}}" + template.read_text())
    faults = token_faults(copy, read_tokens(copy_of_nano, tokens.embedded))
    assert any("begins with 2 BOS" in fault for fault in faults)


def test_an_end_of_turn_that_never_fires_is_found(copy: Path, tokens: Any) -> None:
    start = next(index for index, text in tokens.special.items() if text == "<start_of_turn>")
    never = dataclasses.replace(tokens, tail=("<start_of_turn>\n", (start, 6)))
    assert any("never stops" in fault for fault in token_faults(copy, never))
    plain = dataclasses.replace(tokens, tail=("\n", (6,)))
    assert any("never stops" in fault for fault in token_faults(copy, plain))


def test_another_template_is_found(copy: Path, tokens: Any) -> None:
    chat = next(sample for sample in tokens.samples if sample.chat)
    other = dataclasses.replace(tokens, samples=(dataclasses.replace(chat, text=chat.text + "\n"),))
    with Model.load(copy, vocab_only=True) as model:
        assert checks.check_template(model, tokens) == []
        assert any("renders" in fault for fault in checks.check_template(model, other))


def test_thought_tags_that_are_control_tokens_become_text() -> None:
    from ftllm.export.worker import spare_thought_tags

    value = lambda items: SimpleNamespace(value=items)  # noqa: E731
    keys = {"tokenizer.ggml.tokens": value(["a", "<think>", b"</think>", "<eos>"])}
    keys["tokenizer.ggml.token_type"] = value([1, CONTROL, CONTROL, CONTROL])
    spare_thought_tags(SimpleNamespace(kv_data=[keys]))
    assert keys["tokenizer.ggml.token_type"].value == [1, USER_DEFINED, USER_DEFINED, CONTROL]


def test_vanishing_thought_tags_are_found(copy: Path, tokens: Any) -> None:
    vanishing = dataclasses.replace(tokens, tags=("<start_of_turn>", "</think>"))
    assert any("<start_of_turn> vanishes" in fault for fault in token_faults(copy, vanishing))


def stream_rows(rows: Any, output: Output) -> None:
    """Stream one matrix, given as `ftllm.export.rows.Rows` would (whose module wants upstream's converter)."""
    read = lambda start, stop: rows[start:stop].copy()  # noqa: E731
    source: Any = SimpleNamespace(count=len(rows), columns=rows.shape[1], group=len(rows), read=read)
    stream.stream([output], lambda _: source, check=True, progress=lambda *_: None)


def token_faults(path: Path, tokens: Any) -> list[str]:
    with Model.load(path, vocab_only=True) as model:
        return checks.check_tokens(model, read_header(path), tokens)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_limits_by_the_bits_of_a_type() -> None:
    assert limits.limits("Q4_K_M") == limits.limits("IQ4_XS") == limits.LIMITS["Q4"]
    assert limits.limits("Q8_0") == limits.LIMITS["Q8_0"]
    assert limits.limits("TQ1_0") == limits.LIMITS["Q2"]
    assert limits.limits("MXFP4_MOE") == limits.LIMITS["Q4"]
