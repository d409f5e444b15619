"""The one-pass export against upstream's converter, llama.cpp's quantizer, and peft."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exact_models import Exact, gguf_name, upstream
from safetensors.numpy import load_file, save_file

from ftllm.export import blocks, fetch
from ftllm.export.pipeline import ExportRequest, export
from ftllm.llama.header import read_header
from ftllm.llama.quantize import quantize
from ftllm.progress import Reporter

TYPES = ["Q4_K_M", "Q5_K_S", "Q6_K", "Q8_0", "Q3_K_L", "Q2_K", "IQ4_XS", "IQ3_S"]


def tensors(path: Path) -> dict[str, Any]:
    """A GGUF's tensors in float32, by name."""
    found = {}
    for info in read_header(path).tensors:
        data = np.fromfile(path, dtype=np.uint8, count=info.nbytes, offset=info.offset)
        found[info.name] = blocks.dequantize(blocks.NUMBERS[info.type], data, info.shape[0])
    return found


@pytest.mark.slow
def test_files_are_those_llama_quantize_writes(
    converter: fetch.Converter, nano: Path, convert: Callable[..., dict[str, Path]], tmp_path: Path
) -> None:
    source = upstream(converter, nano, tmp_path / "upstream.gguf", "auto")
    ours = convert(nano, None, TYPES, tmp_path)
    assert_quantized(source, ours, tmp_path)


def test_files_of_an_adapter_are_those_of_its_merged_model(
    exact: Exact, convert: Callable[..., dict[str, Path]], tmp_path: Path
) -> None:
    """The merge is exact in 16 bits, so the bytes must agree."""
    ours = convert(exact.base, exact.adapter, TYPES, tmp_path)
    assert_quantized(exact.upstream, ours, tmp_path)


def assert_quantized(source: Path, ours: dict[str, Path], place: Path) -> None:
    """Our files are what `llama_model_quantize` makes of upstream's 16-bit file."""
    assert set(ours) == set(TYPES)
    for kind, path in ours.items():
        theirs = place / f"upstream-{kind}.gguf"
        quantize(source, theirs, kind)
        assert path.read_bytes() == theirs.read_bytes(), kind


def test_merge_equals_peft_merge(lora: Any, lora_files: dict[str, Path]) -> None:
    theirs = load_file(lora.merged / "model.safetensors")
    ours = tensors(lora_files["F32"])
    names = [name for name in theirs if name.endswith("_proj.weight")]
    assert len(names) == 42
    for name in names:
        merged = ours[gguf_name(name.removesuffix(".weight"))]
        np.testing.assert_allclose(merged, theirs[name], rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.slow
def test_merge_equals_peft_merge_converted_upstream(
    converter: fetch.Converter, lora: Any, lora_files: dict[str, Path], tmp_path: Path
) -> None:
    theirs = tensors(upstream(converter, lora.merged, tmp_path / "merged.gguf", "f32"))
    ours = tensors(lora_files["F32"])
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("whole", [True, False])
def test_reference_predicts_what_peft_predicts(whole: bool, lora: Any, nano: Path, tmp_path: Path) -> None:
    """Mapped, and read from disk layer by layer: the same numbers, whichever sequences run beside each other."""
    from safetensors.torch import load_file

    from ftllm.export.reference import Reference

    truth = Reference(nano, lora.adapter, offload=None if whole else tmp_path)
    assert any(weight.is_meta for weight in truth.model.parameters()) is not whole
    states = truth.hidden(lora.samples)
    for state, logits in zip(states, lora.logits, strict=True):
        np.testing.assert_allclose(truth.logits(state), logits, atol=1e-3)
    stored, merged = (load_file(place / "model.safetensors") for place in (nano, lora.merged))
    norm, matrix = "model.layers.2.input_layernorm", "model.layers.1.self_attn.q_proj.weight"
    np.testing.assert_allclose(truth.norm(norm), 1.0 + stored[norm + ".weight"].float().numpy(), rtol=1e-5)
    assert truth.norm("model.layers.1.self_attn.q_proj") is None
    np.testing.assert_allclose(truth.rows(matrix, np.array([3, 9])), merged[matrix][[3, 9]].numpy(), atol=1e-6)
    assert truth.rotates_halves is True


def test_f32_file_predicts_what_transformers_predicts(lora: Any, lora_files: dict[str, Path]) -> None:
    from ftllm.export.verifier import predictions
    from ftllm.llama.model import Model
    from ftllm.llama.perplexity import Comparison

    comparison = Comparison()
    with Model.load(lora_files["F32"], gpu_layers=0) as model:
        for ids, logits in zip(lora.samples, lora.logits, strict=True):
            comparison.add(logits, predictions(model, ids), [])
    apart = comparison.result()
    assert apart.kl_divergence < 1e-4  # what is left is llama.cpp's 16-bit KV cache
    assert apart.same_top > 0.98


def test_blocks_survive_a_round_trip() -> None:
    rows = np.random.default_rng(1).standard_normal((8, 512)).astype(np.float32)
    for name, largest in [("F32", 0.0), ("F16", 1e-3), ("BF16", 5e-3), ("Q8_0", 0.01), ("Q6_K", 0.03), ("Q4_K", 0.1)]:
        kind = blocks.NUMBERS[name]
        data = blocks.quantize(kind, rows)
        assert data.size == 8 * blocks.row_bytes(kind, 512)
        error = np.linalg.norm(blocks.dequantize(kind, data, 512) - rows) / np.linalg.norm(rows)
        assert error <= largest, name


@pytest.mark.parametrize("what", ["usual", "ties", "zeros", "16 bits", "tiny", "vanishing", "huge"])
def test_eight_bits_are_those_of_ggml(what: str) -> None:
    random = np.random.default_rng(5)
    for number in range(30):
        rows = (random.standard_normal((64, 1152)) * 10.0 ** random.uniform(-4, 1)).astype(np.float32)
        if what == "ties":  # between two multiples of a scale of 1/2, 1, 2, ...
            rows = np.round(rows / np.abs(rows).max() * 254)
            rows[:, ::32] = 254
            rows = (rows * 2.0 ** (number % 5 - 2)).astype(np.float32)
        elif what == "zeros":
            rows[random.random(rows.shape) < 0.9] = 0.0
            rows[: number + 1, :64] = -0.0
        elif what == "16 bits":
            rows = rows.astype(np.float16).astype(np.float32)
        elif what in ("tiny", "vanishing"):  # vanishing: ggml divides by a scale whose inverse is infinite
            rows *= np.float32(1e-30 if what == "tiny" else 1e-36)
            rows[:, ::7] *= np.float32(1e-5)
        elif what == "huge":
            rows *= np.float32(1e5)
        assert np.array_equal(blocks.quantize(blocks.Q8_0, rows), blocks._quantized(blocks.Q8_0, rows, None))


def test_rows_that_do_not_divide_take_a_larger_type(
    nano: Path, edited: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """288 is no multiple of 256: llama.cpp itself falls back, and both the plan and a warning say so."""
    base = tmp_path / "wide"
    base.mkdir()
    for name in ("config.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja", "tokenizer.json"):
        shutil.copy(nano / name, base)
    edited(base / "config.json", hidden_size=288, num_hidden_layers=1, layer_types=["full_attention"])
    save_file(random_layer(288, 2048), base / "model.safetensors")
    result = export(ExportRequest(str(base), dry_run=True, out=tmp_path / "out"), Reporter(quiet=True))
    (file,) = result.plan["files"]
    assert file["fallbacks"] == 5  # q, k, v, gate and up; o and down have rows of 256 and 768, the embedding is Q8_0
    assert file["types"] == {"Q8_0": 2, "F32": 7, "Q5_0": 4, "Q4_K": 1, "Q6_K": 1}
    assert "5 of 15 tensors" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def random_layer(width: int, vocabulary: int) -> dict[str, Any]:
    """A one-layer Gemma 3 checkpoint of the nano model's other dimensions."""
    rng = np.random.default_rng(0)
    shapes = {
        "model.embed_tokens.weight": (vocabulary, width),
        "model.norm.weight": (width,),
        "model.layers.0.self_attn.q_proj.weight": (256, width),
        "model.layers.0.self_attn.k_proj.weight": (128, width),
        "model.layers.0.self_attn.v_proj.weight": (128, width),
        "model.layers.0.self_attn.o_proj.weight": (width, 256),
        "model.layers.0.self_attn.q_norm.weight": (64,),
        "model.layers.0.self_attn.k_norm.weight": (64,),
        "model.layers.0.mlp.gate_proj.weight": (768, width),
        "model.layers.0.mlp.up_proj.weight": (768, width),
        "model.layers.0.mlp.down_proj.weight": (width, 768),
        "model.layers.0.input_layernorm.weight": (width,),
        "model.layers.0.post_attention_layernorm.weight": (width,),
        "model.layers.0.pre_feedforward_layernorm.weight": (width,),
        "model.layers.0.post_feedforward_layernorm.weight": (width,),
    }
    return {name: (rng.standard_normal(shape) * 0.02).astype(np.float16) for name, shape in shapes.items()}
