"""Importance matrices and tensor types: what we write is what `llama_model_quantize` writes with the same."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exact_models import Exact

from ftllm.errors import UserError
from ftllm.export import importance
from ftllm.export.blocks import NUMBERS
from ftllm.llama import native
from ftllm.llama.header import read_header
from ftllm.llama.types import FILE_TYPES


def native_quantize(
    source: Path,
    target: Path,
    kind: str,
    matrix: importance.Importance | None = None,
    overrides: Sequence[tuple[str, int]] = (),
) -> None:
    """llama.cpp's own quantizer, given what llama-quantize's main function gives it."""
    api = native.api()
    params = api.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[kind]
    params.nthread = 1
    if matrix is not None:
        entry = api.llama_model_imatrix_data
        rows = [
            entry(name.encode(), values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), values.size)
            for name, values in matrix.values.items()
        ]
        params.imatrix = (entry * (len(rows) + 1))(*rows, entry(None, None, 0))
        keys = [_override(api, key, value) for key, value in matrix.metadata().items()]
        params.kv_overrides = (api.llama_model_kv_override * (len(keys) + 1))(*keys)
    if overrides:
        patterns = [(text.encode(), number) for text, number in overrides]
        params.tt_overrides = (api.llama_model_tensor_override * (len(patterns) + 1))(*patterns)
    assert api.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(params)) == 0


def _override(api: Any, key: str, value: str | int) -> Any:
    made = api.llama_model_kv_override()
    made.key = key.encode()
    if isinstance(value, str):
        made.tag, made.value.val_str = 3, value.encode()
    else:
        made.tag, made.value.val_i64 = 0, value
    return made


@pytest.fixture(scope="module")
def matrix(exact: Exact, tmp_path_factory: pytest.TempPathFactory) -> importance.Importance:
    """A matrix of made-up values for every layer's matrices, very different from column to column."""
    rng = np.random.default_rng(5)
    matrices = [t for t in read_header(exact.upstream).tensors if len(t.shape) == 2 and t.name.startswith("blk.")]
    sums = {t.name: np.exp(rng.normal(0, 2, (1, t.shape[0]))).astype(np.float32) * 700 for t in matrices}
    counts = {name: np.full(1, 700, np.float32) for name in sums}
    path = tmp_path_factory.mktemp("matrix") / "made-imatrix.gguf"
    importance.save(path, sums, counts, dataset="made up", chunks=3, chunk_size=512)
    return importance.load(path)


@pytest.mark.parametrize(
    "kinds",
    [["Q2_K_S", "Q4_K_M"], pytest.param(["IQ1_S", "IQ2_XS", "IQ3_XXS", "IQ4_XS"], marks=pytest.mark.slow)],
    ids=" ".join,
)
def test_files_with_a_matrix_are_those_llama_quantize_writes(
    kinds: list[str], exact: Exact, matrix: importance.Importance, convert: Any, tmp_path: Path
) -> None:
    for kind, ours in convert(exact.base, exact.adapter, kinds, tmp_path, importance=matrix.path).items():
        native_quantize(exact.upstream, tmp_path / "theirs.gguf", kind, matrix)
        assert ours.read_bytes() == (tmp_path / "theirs.gguf").read_bytes(), kind
        assert read_header(ours).metadata["quantize.imatrix.chunks_count"] == 3


def test_tensor_types_are_those_llama_quantize_takes(exact: Exact, convert: Any, tmp_path: Path) -> None:
    overrides = [(r"blk\.[0]\.ffn_down", NUMBERS["Q8_0"]), ("attn_v", NUMBERS["Q6_K"])]
    native_quantize(exact.upstream, tmp_path / "theirs.gguf", "Q4_K_M", overrides=overrides)
    ours = convert(exact.base, exact.adapter, ["Q4_K_M"], tmp_path, overrides=overrides)["Q4_K_M"]
    assert ours.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    types = {tensor.name: tensor.type for tensor in read_header(ours).tensors}
    assert types["blk.0.ffn_down.weight"] == "Q8_0"
    assert types["blk.1.ffn_down.weight"] != "Q8_0"
    assert types["blk.1.attn_v.weight"] == "Q6_K"


def test_means_are_sums_over_counts_and_ones_where_nothing_was_counted(tmp_path: Path) -> None:
    sums = {"blk.0.ffn_up_exps.weight": np.array([[2, 4], [9, 9], [6, 3]], np.float32)}
    counts = {"blk.0.ffn_up_exps.weight": np.array([2, 0, 3], np.float32)}
    importance.save(tmp_path / "m.gguf", sums, counts, dataset="chats", chunks=7, chunk_size=512)
    found = importance.load(tmp_path / "m.gguf")
    assert found.values["blk.0.ffn_up_exps.weight"].tolist() == [1, 2, 1, 1, 2, 1]
    assert (found.dataset, found.chunks) == ("chats", 7)
    assert found.metadata() == {
        "quantize.imatrix.file": "m.gguf",
        "quantize.imatrix.dataset": "chats",
        "quantize.imatrix.entries_count": 1,
        "quantize.imatrix.chunks_count": 7,
    }


def test_what_is_no_matrix_is_refused(tmp_path: Path, exact: Exact) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "old.dat").write_bytes(bytes(100))
    for path, says in [
        (tmp_path / "none", "does not exist"),
        (tmp_path / "empty", "is empty"),
        (tmp_path / "old.dat", "is not a GGUF file"),
        (exact.upstream, "of kind 'model'"),
    ]:
        with pytest.raises(UserError, match=says):
            importance.load(path)
    whole = tmp_path / "m.gguf"
    one = {"a": np.ones((1, 64), np.float32)}
    importance.save(whole, one, {"a": np.zeros(1, np.float32)}, dataset="x", chunks=1, chunk_size=1)
    whole.write_bytes(whole.read_bytes()[:-64])
    with pytest.raises(UserError, match="cut short"):
        importance.load(whole)


def test_a_matrix_of_another_model_is_refused(matrix: importance.Importance) -> None:
    from ftllm.export.plan import Plan, Planned

    narrow = Plan("Q4_K_M", (Planned("blk.0.ffn_down.weight", (256, 512), NUMBERS["Q4_K"]),))
    with pytest.raises(UserError, match=r"another model: it has 768 values for blk.0.ffn_down.weight, not 512"):
        matrix.check(narrow)
    deeper = Plan("IQ2_XS", (Planned("blk.9.ffn_down.weight", (256, 768), NUMBERS["IQ2_XS"]),))
    with pytest.raises(UserError, match=r"nothing for blk.9.ffn_down.weight, which as IQ2_XS needs it"):
        matrix.check(deeper)
