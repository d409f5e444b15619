"""Which layers an adapter is put on."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from trainings import Trainer

from ftllm.errors import UserError
from ftllm.export.lora import read_adapter
from ftllm.progress import Reporter
from ftllm.train.layers import left_out, lora_targets

ATTENTION = ["k_proj", "o_proj", "q_proj", "v_proj"]
SHAPE = {
    "vocab_size": 2048, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
    "num_experts_per_tok": 2,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 32},
    "mixtral": {"num_local_experts": 4},
    "gpt_oss": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    "glm4_moe": {"n_routed_experts": 4, "moe_intermediate_size": 32, "first_k_dense_replace": 1},
    "qwen2": {},
}


def model_of(kind: str, **settings: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SHAPE, **KINDS[kind], **settings}))


def test_lora_targets_leave_vision_alone() -> None:
    from transformers import AutoModelForCausalLM, Gemma3Config

    expected_names = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    config = Gemma3Config(
        text_config={"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32, "vocab_size": 64},
        vision_config={"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2},
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        text = AutoModelForCausalLM.from_config(config.text_config)
    assert lora_targets(text, ["attention", "mlp"]) == expected_names
    assert lora_targets(text, ["mlp"]) == ["down_proj", "gate_proj", "up_proj"]
    pattern = lora_targets(model, ["attention", "mlp"])
    assert isinstance(pattern, str)
    matched = [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]
    assert len(matched) == 2 * 7
    assert not [name for name in matched if "vision" in name]
    with pytest.raises(UserError, match="no linear layer to adapt"):
        lora_targets(torch.nn.Linear(2, 2), ["mlp"])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "qwen2"])
def test_experts_that_are_fused_are_left_out_and_that_is_said(kind: str) -> None:
    with torch.device("meta"):
        model = model_of(kind)
    said = left_out(model, ["attention", "mlp"])
    trained = sorted([*ATTENTION, *(["down_proj", "gate_proj", "up_proj"] if kind == "qwen2_moe" else [])])
    beside = ", and so are down_proj, gate_proj, up_proj beside them, which peft would take for experts"
    assert lora_targets(model, ["attention", "mlp"]) == trained
    dense = beside if kind == "glm4_moe" else ""
    assert said == f"the experts (mlp.experts) are left as they are{dense}; trained are {', '.join(trained)}"
    assert left_out(model, ["attention"]) is None  # nothing that was asked for
    if kind != "qwen2_moe":  # its shared expert is there
        with pytest.raises(UserError, match=r"only experts, fused into mlp\.experts") as refused:
            lora_targets(model, ["mlp"])
        assert refused.value.hint == "add attention to lora.targets"


def test_a_model_without_experts_has_nothing_left_out() -> None:
    with torch.device("meta"):
        model = model_of("qwen2")
    assert lora_targets(model, ["mlp"]) == ["down_proj", "gate_proj", "up_proj"]
    assert left_out(model, ["attention", "mlp"]) is None


class Hearing(Reporter):
    """Keeps the warnings."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.mark.parametrize("dense", [[], [0]], ids=["every-layer", "dense-beside"])
def test_what_is_trained_of_a_mixture_can_be_exported(dense: list[int], tiny: Path, data: Path, tmp_path: Path) -> None:
    """peft would put the LoRA meant for a dense layer on the experts of the others, which export refuses."""
    base = tmp_path / "mixture"
    shutil.copytree(tiny, base, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    model_of("qwen3_moe", mlp_only_layers=dense).save_pretrained(base)
    heard = Hearing()
    run = Trainer(base, data, tmp_path / "runs")("mixed", heard, max_steps=2).run
    assert sum("the experts (mlp.experts) are left as they are" in warning for warning in heard.warnings) == 1
    found = read_adapter(run.adapter)
    assert sorted({pair.module.rpartition(".")[2] for pair in found.pairs}) == ATTENTION
    assert len(found.pairs) == 2 * 4
    assert json.loads((run.adapter / "adapter_config.json").read_text())["target_modules"] == ATTENTION
