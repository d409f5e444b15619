"""A LoRA on the output layer: merged where the layer is the model's own, refused where it shares the embedding's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from ftllm.errors import UserError
from ftllm.export.verifier import predictions
from ftllm.llama.model import Model
from ftllm.llama.perplexity import Comparison

IDS = (2, 4, 10, 300, 77, 5, *range(40, 90))


def test_it_is_merged_as_peft_merges_it(llama: Any, llama_files: Any) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(llama.base, dtype=torch.float32, attn_implementation="eager")
    merged = PeftModel.from_pretrained(base, llama.adapter).merge_and_unload()
    with torch.inference_mode():
        theirs = merged(input_ids=torch.tensor([IDS])).logits[0].numpy()
    with Model.load(llama_files["F32"]) as model:
        ours = predictions(model, IDS)
    comparison = Comparison()
    comparison.add(theirs, ours, IDS[1:])
    assert comparison.result().kl_divergence < 1e-5
    assert comparison.result().same_top == 1.0
    assert llama_files.order["merged"]["output.weight"] == "lm_head"


@pytest.mark.slow
def test_a_shared_one_is_refused(nano: Path, convert: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(nano)
    tuned: Any = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "lm_head"]))
    tuned.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match="changes lm_head, whose weights nano shares with its embedding") as caught:
        convert(nano, tmp_path / "adapter", ["F32"], tmp_path)
    assert "without lm_head in target_modules" in caught.value.hint


@pytest.mark.slow
def test_one_that_was_trained_whole_is_refused(llama: Any, convert: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    adapter = Path(shutil.copytree(llama.adapter, tmp_path / "adapter"))
    weights = load_file(adapter / "adapter_model.safetensors")
    weights["base_model.model.lm_head.base_layer.weight"][0, 0] += 1.0
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match="holds a lm_head of its own, which is not base's"):
        convert(llama.base, adapter, ["F32"], tmp_path)
