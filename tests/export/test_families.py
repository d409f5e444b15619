"""Each family of models, whole: a random checkpoint with a real vocabulary and an adapter, exported and verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_models import KINDS, make

from ftllm.export.pipeline import ExportRequest, ExportResult, export
from ftllm.llama.header import read_header
from ftllm.progress import Reporter


def verified(given: Path, out: Path, *quants: str, **request: Any) -> ExportResult:
    """Export with the quick verification; a fault raises."""
    return export(ExportRequest(str(given), quants=quants, out=out, offline=True, **request), Reporter(quiet=True))


@pytest.mark.slow
@pytest.mark.parametrize("family", KINDS)
def test_family_with_an_adapter(family: str, converter: Any, tmp_path: Path) -> None:
    del converter
    tiny = make(family, tmp_path)
    result = verified(tiny.adapter, tmp_path / "out", "F32", "Q8_0", "Q4_K_M")
    exact, eight, four = (file.figures for file in result.files)
    assert exact["kl_divergence"] < 1e-5
    assert exact["same_top"] > 0.98
    assert abs(exact["adapter_share"] - 1.0) < 1e-4
    assert exact["adapter_layers_checked"] >= 6
    assert exact["kl_divergence"] < eight["kl_divergence"] < four["kl_divergence"]


@pytest.mark.slow
def test_a_plain_model_whose_vocabulary_is_padded(converter: Any, tmp_path: Path) -> None:
    """Qwen's embedding has rows for tokens that its tokenizer does not have."""
    del converter
    tiny = make("qwen2", tmp_path)
    result = verified(tiny.base, tmp_path / "out", "F32")
    assert result.files[0].figures["kl_divergence"] < 1e-5
    header = read_header(result.files[0].path)
    assert header.metadata["tokenizer.ggml.tokens"].length == 151936
