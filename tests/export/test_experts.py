"""A LoRA on single experts, as transformers 4 and checkpoints have them: merged, and verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_adapter_only import exported, overwrite
from test_families import verified
from tiny_models import make
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen3MoeConfig

from ftllm.errors import UserError, WorkError
from ftllm.export import mapped
from ftllm.export.adapter_check import check_adapter
from ftllm.export.checks import check_changes
from ftllm.export.reference import Reference, factors_of
from ftllm.export.shares import shares
from ftllm.llama.header import read_header

SMALL = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300,
    "head_dim": 16, "num_experts_per_tok": 2,
}  # fmt: skip
INNER = 48
CONFIGS: dict[str, Any] = {
    "qwen3_moe": Qwen3MoeConfig(**SMALL, intermediate_size=96, moe_intermediate_size=INNER, num_experts=4),
    "mixtral": MixtralConfig(**SMALL, intermediate_size=INNER, num_local_experts=4),
}
# An expert's matrices as the checkpoint calls them: gate, up and down.
NAMES = {
    "qwen3_moe": ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj", "mlp.experts.{}.down_proj"),
    "mixtral": ("block_sparse_moe.experts.{}.w1", "block_sparse_moe.experts.{}.w3", "block_sparse_moe.experts.{}.w2"),
}
RANK, ALPHA = 4, 8
IDS = tuple(range(3, 43))


def write_adapter(place: Path, base: Path, names: tuple[str, ...], hidden: int, inner: int, experts: int) -> Path:
    """A LoRA on every matrix of every expert of two layers, and on one layer of the attention."""
    torch.manual_seed(7)
    shapes = {names[0]: (inner, hidden), names[1]: (inner, hidden), names[2]: (hidden, inner)}
    tensors = {}
    for layer in range(2):
        for name, (out, into) in shapes.items():
            for expert in range(experts):
                stem = f"base_model.model.model.layers.{layer}.{name.format(expert)}"
                tensors[f"{stem}.lora_A.weight"] = torch.randn(RANK, into) / into**0.5
                tensors[f"{stem}.lora_B.weight"] = torch.randn(out, RANK) * 0.1
    place.mkdir()
    save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "bias": "none",
              "target_modules": ["gate_proj"], "base_model_name_or_path": str(base)}  # fmt: skip
    (place / "adapter_config.json").write_text(json.dumps(config))
    return place


@pytest.mark.parametrize("several", [False, True], ids=["mapped", "held"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_reference_is_the_model_merged_by_hand(
    kind: str, several: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers has gate and up of all experts in one parameter `[experts, 2 * inner, hidden]`, gate first."""
    monkeypatch.setattr(mapped, "SMALL", 128)
    torch.manual_seed(3407)
    model: Any = AutoModelForCausalLM.from_config(CONFIGS[kind])
    for value in model.parameters():
        if value.ndim > 1:
            torch.nn.init.normal_(value, std=0.2)
    model.to(torch.bfloat16)
    if several:
        model.model.norm.float()
    base = tmp_path / "base"
    model.save_pretrained(base)
    adapter = write_adapter(tmp_path / "adapter", base, NAMES[kind], 64, INNER, 4)
    reference = Reference(base, adapter)
    whole: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    ids = torch.tensor([IDS])
    with torch.inference_mode():
        unchanged = whole(input_ids=ids).logits[0].numpy()
        for name, (a, b, scale) in reference._factors.items():
            assert scale == ALPHA / RANK
            layer, number, matrix = (name.split(".")[index] for index in (2, 5, 6))
            experts, number = whole.model.layers[int(layer)].mlp.experts, int(number)
            if matrix in ("down_proj", "w2"):
                experts.down_proj[number] += scale * b @ a
            else:
                start = 0 if matrix in ("gate_proj", "w1") else INNER
                experts.gate_up_proj[number, start : start + INNER] += scale * b @ a
        wanted = whole(input_ids=ids).logits[0].numpy()
    assert np.abs(wanted - unchanged).max() > 0.1
    for _ in range(2):  # what is put back leaves no trace
        (states,) = reference.hidden([IDS])
        np.testing.assert_allclose(reference.logits(states), wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="which the base does not have"):
        Reference(base, write_adapter(tmp_path / "other", base, ("mlp.experts.9{}.up_proj",) * 3, 64, INNER, 1))
    with pytest.raises(WorkError, match="cannot be verified in the memory there is"):
        Reference(base, adapter, offload=tmp_path / "offload")


@pytest.mark.slow
def test_it_is_exported_and_verified(converter: Any, tmp_path: Path) -> None:
    del converter
    base = make("qwen3-moe", tmp_path).base
    hidden = json.loads((base / "config.json").read_text())["hidden_size"]
    adapter = write_adapter(tmp_path / "experts", base, NAMES["qwen3_moe"], hidden, 256, 4)
    file, low = verified(adapter, tmp_path / "out", "F32", "Q4_K_M").files
    assert file.figures["kl_divergence"] < 1e-5
    for one in (file, low):  # every matrix of two layers' four experts
        assert one.figures["adapter_layers_checked"] == 2 * 4 * 3
    assert abs(file.figures["adapter_share"] - 1.0) < 1e-4
    (plain,) = verified(base, tmp_path / "plain", "F32").files
    lacking = shares(read_header(plain.path), Reference(base, adapter), {})  # the base's file, without the adapter
    assert len(lacking) == 24
    assert max(abs(share) for share, _ in lacking.values()) < 1e-4
    assert len(check_changes(lacking)) == 3  # as many as are said


@pytest.mark.slow
def test_the_adapter_alone_is_looked_at_expert_by_expert(converter: Any, tmp_path: Path) -> None:
    del converter
    base = make("qwen3-moe", tmp_path).base
    adapter = write_adapter(tmp_path / "experts", base, NAMES["qwen3_moe"], 256, 256, 4)
    (file,) = exported(adapter, tmp_path / "alone").files
    modules = list(factors_of(adapter))
    assert len(modules) == 2 * 4 * 3
    assert check_adapter(file.path, base, adapter, {}, modules) == []
    info = next(info for info in read_header(file.path).tensors if info.name == "blk.1.ffn_up_exps.weight.lora_b")
    values = np.fromfile(file.path, np.float32, info.elements, offset=info.offset).reshape(4, 256, RANK)
    values[3] *= 0.5  # of the last expert
    overwrite(file.path, info.offset, values.tobytes())
    fault = check_adapter(file.path, base, adapter, {}, modules)
    assert fault == ["model.layers.1.mlp.experts.3.up_proj is not what the adapter adds"]
    tensors = load_file(adapter / "adapter_model.safetensors")
    few = {name: tensor for name, tensor in tensors.items() if ".layers.1.mlp.experts.3." in name}
    save_file(few, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match="cannot express this adapter's layers"):  # it takes all experts or none
        exported(adapter, tmp_path / "few")
