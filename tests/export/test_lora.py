"""What an adapter holds, and what about it is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ftllm.errors import UserError
from ftllm.export.checkpoint import read_header
from ftllm.export.lora import read_adapter, scale

A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = A.replace("lora_A", "lora_B")


def adapter(place: Path, tensors: dict[str, Any] | None = None, **config: Any) -> Path:
    """A small adapter directory."""
    place.mkdir(parents=True, exist_ok=True)
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", **config}
    (place / "adapter_config.json").write_text(json.dumps(settings))
    if tensors is None:
        tensors = {A: np.ones((4, 16), np.float32), B: np.ones((32, 4), np.float32)}
    save_file(tensors, place / "adapter_model.safetensors")
    return place


def test_pairs_are_read_without_their_weights(tmp_path: Path) -> None:
    (pair,) = read_adapter(adapter(tmp_path)).pairs
    assert (pair.module, pair.rank, pair.shape, pair.scale) == ("model.layers.0.self_attn.q_proj", 4, (32, 16), 2.0)


def test_scales() -> None:
    config = {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"layers.1.mlp.down_proj": 16},
        "alpha_pattern": {"q_proj": 2, r"layers\.\d.*k_proj": 12},
    }
    assert scale(config, "model.layers.0.mlp.up_proj") == 2.0
    assert scale(config, "model.layers.1.mlp.down_proj") == 0.5
    assert scale(config, "model.layers.0.self_attn.q_proj") == 0.5
    assert scale(config, "model.layers.3.self_attn.k_proj") == 3.0
    assert scale({**config, "use_rslora": True}, "model.layers.0.mlp.up_proj") == 4.0
    assert scale({**config, "use_rslora": True}, "model.layers.1.mlp.down_proj") == 2.0


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters"),
        ({"trainable_token_indices": [3]}, "trained embeddings"),
        ({"bias": "all"}, "trained biases"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 2]]}, "replicated layers"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"something_new": 3}, "something_new=3"),
        ({"init_lora_weights": ["pissa"]}, "pissa"),
        ({"r": "four"}, "the rank of r is 'four', not a whole number"),
        ({"r": 0}, "the rank of r is 0"),
        ({"rank_pattern": {"q_proj": 2.5}}, "the rank of q_proj is 2.5"),
        ({"rank_pattern": ["q_proj"]}, r"rank_pattern is \['q_proj'\], not numbers by module"),
        ({"rank_pattern": {"(": 4}}, "no regular expression"),
        ({"lora_alpha": None}, "the alpha of lora_alpha is None"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "the alpha of q_proj is inf"),
    ],
)
def test_settings_that_cannot_be_merged_are_named(config: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        read_adapter(adapter(tmp_path, **config))


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", (32,), "DoRA"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", (4, 16), "embedding"),
        ("base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight", (4, 16), "fused experts"),
        ("base_model.model.model.layers.0.self_attn.q_proj.bias", (32,), "bias"),
        ("something.else", (3,), "something.else"),
    ],
)
def test_tensors_that_cannot_be_merged_are_named(name: str, shape: tuple[int, ...], says: str, tmp_path: Path) -> None:
    tensors = {A: np.ones((4, 16), np.float32), B: np.ones((32, 4), np.float32), name: np.ones(shape, np.float32)}
    with pytest.raises(UserError, match=says):
        read_adapter(adapter(tmp_path, tensors))


def test_experts_one_by_one_are_layers(tmp_path: Path) -> None:
    """As adapters of transformers 4 have them, and checkpoints."""
    name = "base_model.model.model.layers.0.mlp.experts.3.up_proj.lora_A.weight"
    pair = {name: np.ones((4, 16), np.float32), name.replace("lora_A", "lora_B"): np.ones((32, 4), np.float32)}
    found = read_adapter(adapter(tmp_path / "experts", pair))
    assert [pair.module for pair in found.pairs] == ["model.layers.0.mlp.experts.3.up_proj"]


def test_a_pair_must_be_whole_and_of_its_rank(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lora_A only"):
        read_adapter(adapter(tmp_path / "a", {A: np.ones((4, 16), np.float32)}))
    with pytest.raises(UserError, match=r"rank 4 where adapter_config\.json says 8"):
        read_adapter(adapter(tmp_path / "b", r=8))
    with pytest.raises(UserError, match="holds no LoRA"):
        read_adapter(adapter(tmp_path / "c", {}))


def test_a_cut_file_is_recognised_at_every_length(tmp_path: Path) -> None:
    whole = adapter(tmp_path) / "adapter_model.safetensors"
    data = whole.read_bytes()
    assert set(load_file(whole)) == set(read_header(whole))
    for length in (0, 4, 8, 20, len(data) // 2, len(data) - 1):
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(data[:length])
        with pytest.raises(UserError, match=r"cut short|not a safetensors"):
            read_header(cut)
    shutil.copy(whole, tmp_path / "longer.safetensors")
    with (tmp_path / "longer.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="cut short"):
        read_header(tmp_path / "longer.safetensors")
