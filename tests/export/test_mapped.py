"""A reference on mapped 16-bit weights must be the model that transformers loads in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, Qwen2Config, Qwen3MoeConfig

from ftllm.export import mapped
from ftllm.export.reference import Reference
from ftllm.export.samples import POSITIONS

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS: dict[str, Any] = {
    "gpt2": GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=300),  # weights as [in, out], learned positions
    "biases": Qwen2Config(**SMALL, num_key_value_heads=2, vocab_size=300),
    "experts": Qwen3MoeConfig(
        **SMALL, num_key_value_heads=2, vocab_size=300, head_dim=16, moe_intermediate_size=48, num_experts=4,
        num_experts_per_tok=2,
    ),
}  # fmt: skip
IDS = tuple(range(3, 3 + POSITIONS))


@pytest.fixture(params=["nano", *CONFIGS])
def checkpoint(request: pytest.FixtureRequest, nano: Path, tmp_path: Path) -> Path:
    if request.param == "nano":  # an embedding that scales, shared with the output layer
        return nano
    torch.manual_seed(3407)
    model: Any = AutoModelForCausalLM.from_config(CONFIGS[request.param])
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.1)
    model.to(torch.float16 if request.param == "gpt2" else torch.bfloat16).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("few", [POSITIONS + 1, 1], ids=["few", "many"])
def test_it_predicts_what_a_model_in_float32_predicts(
    few: int, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "FEW", few)
    monkeypatch.setattr(mapped, "SMALL", 128)  # so that all matrices are mapped
    monkeypatch.setattr(mapped, "PIECE", 1000)  # and taken in several pieces
    reference = Reference(checkpoint, None)
    whole: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        wanted = whole(input_ids=torch.tensor([IDS])).logits[0].numpy()
    for _ in range(2):  # what is put back leaves no trace
        (states,) = reference.hidden([IDS])
        np.testing.assert_allclose(reference.logits(states), wanted, rtol=1e-4, atol=1e-4)
    assert all(value.dtype == torch.float32 for value in reference.model.parameters())
    assert sum(bool(value.isnan().any()) for value in reference.model.parameters()) >= 5  # not held in float32


def test_a_checkpoint_of_several_types_is_held_in_float32(checkpoint: Path, tmp_path: Path) -> None:
    """Loading it in one of them would round the others."""
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")
    model.get_input_embeddings().float()
    with torch.no_grad():
        model.get_input_embeddings().weight += 1e-6
    model.save_pretrained(tmp_path / "mixed")
    held = Reference(tmp_path / "mixed", None).model.get_input_embeddings().weight
    assert torch.equal(held, model.get_input_embeddings().weight)
