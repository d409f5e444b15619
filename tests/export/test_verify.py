"""The verification of right files, and what is found before there is a file. Faulty ones: `test_planted`."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ftllm.export import checks, limits, stream, verifier
from ftllm.export.checks import CONTROL, USER_DEFINED
from ftllm.export.stream import Output, Part
from ftllm.export.verifier import Truth
from ftllm.files import xxh3_file
from ftllm.llama.header import read_header
from ftllm.llama.model import Model


@pytest.fixture(scope="module")
def tokens(truth: Truth) -> Any:
    return truth.tokens


@pytest.fixture(scope="module")
def verify(truth: Truth, lora_files: Any) -> Callable[..., tuple[dict[str, Any], list[str]]]:
    """The verifier's whole check on one file, against the nano model with the adapter."""

    def run(path: Path, quant: str, **order: Any) -> tuple[dict[str, Any], list[str]]:
        header = read_header(path)
        part = {"path": str(path), "bytes": header.file_size, "tensors": len(header.tensors)}
        part |= {"xxh3": xxh3_file(path), **order}
        return verifier.verify({"files": [part], "type": quant, **lora_files.order}, truth)

    return run


@pytest.mark.parametrize("quant", ["F32", "Q4_K_M"])
def test_a_right_file_passes(quant: str, lora_files: dict[str, Path], verify: Any) -> None:
    figures, faults = verify(lora_files[quant], quant)
    assert faults == []
    assert figures["adapter_layers_checked"] == 42
    assert abs(figures["adapter_share"] - 1.0) < (1e-4 if quant == "F32" else 0.05)
    assert figures["kl_divergence"] < (1e-4 if quant == "F32" else 0.3)


@pytest.fixture
def copy(lora_files: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copy(lora_files["F32"], tmp_path / "copy.gguf"))


def test_a_cut_file_is_found(copy: Path, verify: Any) -> None:
    from ftllm.errors import UserError

    with copy.open("r+b") as file:
        file.truncate(copy.stat().st_size - 1000)
    with pytest.raises(UserError, match="cut short"):
        verify(copy, "F32")


def test_nan_is_found_in_weights(tmp_path: Path) -> None:
    from ftllm.errors import UserError
    from ftllm.export.plan import Plan, Planned

    plan = Plan("Q8_0", (Planned("w", (2, 32), 8),), 0)
    rows = np.full((2, 32), np.inf, np.float32)
    with (tmp_path / "x").open("wb") as file, pytest.raises(UserError, match="w holds NaN or infinite"):
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


def stream_rows(rows: Any, output: Output) -> None:
    """Stream one matrix, given as `ftllm.export.rows.Rows` would (whose module wants upstream's converter)."""
    read = lambda start, stop: rows[start:stop].copy()  # noqa: E731
    source: Any = SimpleNamespace(count=len(rows), columns=rows.shape[1], group=len(rows), read=read)
    stream.stream([output], lambda _: source, check=True, progress=lambda *_: None)


def test_limits_by_the_bits_of_a_type() -> None:
    assert limits.limits("Q4_K_M") == limits.limits("IQ4_XS") == limits.LIMITS["Q4"]
    assert limits.limits("Q8_0") == limits.LIMITS["Q8_0"]
    assert limits.limits("TQ1_0") == limits.LIMITS["Q2"]
    assert limits.limits("MXFP4_MOE") == limits.LIMITS["Q4"]
