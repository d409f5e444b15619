"""`--adapter-only`: a LoRA GGUF that makes of the base what the merged file is."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ftllm.errors import UserError
from ftllm.export.adapter_check import check_adapter
from ftllm.export.extras import export_adapter
from ftllm.export.pipeline import ExportRequest
from ftllm.export.verifier import predictions
from ftllm.files import sha256_file
from ftllm.llama.header import read_header
from ftllm.llama.model import Model
from ftllm.llama.perplexity import Comparison
from ftllm.progress import Reporter

IDS = (2, 4, 10, 300, 77, 5, *range(40, 90))


def exported(given: Path, out: Path, *quants: str, **request: Any) -> Any:
    wanted = ExportRequest(str(given), quants=quants, out=out, offline=True, **request)
    return export_adapter(wanted, Reporter(quiet=True))


@pytest.fixture(scope="module")
def alone(llama: Any, converter: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Llama's adapter: rsLoRA, an alpha of its own for the output layer, permuted q and k."""
    del converter
    (file,) = exported(llama.adapter, tmp_path_factory.mktemp("alone")).files
    path: Path = file.path
    return path


@pytest.fixture
def names(llama_files: Any) -> Any:
    return llama_files.order["merged"]


def test_base_and_adapter_predict_what_the_merged_file_predicts(
    alone: Path, llama: Any, llama_files: Any, convert: Any, tmp_path: Path
) -> None:
    base = convert(llama.base, None, ["F32"], tmp_path)["F32"]
    with Model.load(base) as model, Model.load(llama_files["F32"]) as merged:
        plain, wanted = predictions(model, IDS), predictions(merged, IDS)
    with Model.load(base, adapters=[(alone, 1.0)]) as model:
        found = predictions(model, IDS)
    assert distance(wanted, found).kl_divergence < 1e-6
    assert distance(wanted, found).same_top == 1.0
    assert distance(wanted, plain).kl_divergence > 0.01  # it matters


def test_its_name_and_its_record(alone: Path, llama: Any) -> None:
    assert alone.name == "base-adapter-LoRA-F32.gguf"
    header = read_header(alone)
    assert (header.kind, header.architecture) == ("adapter", "llama")
    assert len(header.tensors) == 2 * (2 * 7 + 1)
    assert header.metadata["adapter.lora.alpha"] == 16.0
    entry = json.loads((alone.parent / "export.json").read_text())["beside"][alone.name]
    assert (entry["kind"], entry["type"], entry["verify"]) == ("adapter", "F32", "quick")
    assert entry["sha256"] == sha256_file(alone)
    assert entry["source"]["adapter_sha256"] == sha256_file(llama.adapter / "adapter_model.safetensors")
    assert sorted(path.name for path in alone.parent.iterdir()) == [alone.name, "export.json"]


def test_a_dropped_scale_is_found(alone: Path, llama: Any, names: Any, tmp_path: Path) -> None:
    """What upstream's program writes of an rsLoRA adapter: the scale is sqrt(8) times too small."""
    path = Path(shutil.copy(alone, tmp_path))
    assert check_adapter(path, llama.base, llama.adapter, names) == []
    key = b"adapter.lora.alpha"
    at = path.read_bytes().index(key) + len(key) + 4
    overwrite(path, at, struct.pack("<f", 16.0 / 8**0.5))
    (fault,) = check_adapter(path, llama.base, llama.adapter, names)
    assert "holds 0.35 times what the adapter adds" in fault


def test_unpermuted_rows_are_found(alone: Path, llama: Any, names: Any, tmp_path: Path) -> None:
    path = Path(shutil.copy(alone, tmp_path))
    info = next(info for info in read_header(path).tensors if info.name == "blk.0.attn_q.weight.lora_b")
    rows = np.fromfile(path, dtype=np.float32, count=info.elements, offset=info.offset).reshape(4, 32, 2, -1)
    overwrite(path, info.offset, np.ascontiguousarray(rows.swapaxes(1, 2)).tobytes())
    (fault,) = check_adapter(path, llama.base, llama.adapter, names)
    assert fault.startswith("model.layers.0.self_attn.q_proj is not what the adapter adds")


def test_a_layer_that_is_missing_is_found(alone: Path, llama: Any, names: Any) -> None:
    faults = check_adapter(alone, llama.base, llama.adapter, {**names, "blk.9.attn_q.weight": "model.layers.9.q_proj"})
    assert faults == ["it lacks the change of model.layers.9.q_proj"]


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"quants": ("Q4_K_M",)}, "an adapter is not written as Q4_K_M"),
        ({"imatrix": "x.gguf"}, "--imatrix has no meaning with --adapter-only"),
        ({"split_max_size": "5G"}, "--split-max-size has no meaning"),
    ],
)
def test_what_an_adapter_cannot_be(request_: dict[str, Any], says: str, llama: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        export_adapter(ExportRequest(str(llama.adapter), out=tmp_path, **request_), Reporter(quiet=True))


def test_a_whole_model_has_none(nano: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a whole model, without an adapter"):
        exported(nano, tmp_path)


def test_a_dry_run_says_how_large_it_would_be(alone: Path, llama: Any, tmp_path: Path) -> None:
    (planned,) = exported(llama.adapter, tmp_path / "out", dry_run=True).files
    assert planned.bytes == alone.stat().st_size
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_sixteen_bits(llama: Any, converter: Any, tmp_path: Path) -> None:
    del converter
    half, brain = exported(llama.adapter, tmp_path, "F16,BF16").files
    assert half.bytes < brain.bytes + 1000
    assert {info.type for info in read_header(half.path).tensors} == {"F16"}


def distance(truth: Any, guess: Any) -> Any:
    comparison = Comparison()
    comparison.add(truth, guess, [])
    return comparison.result()


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
