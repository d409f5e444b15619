"""Adapters of every kind that peft itself writes: merged where that is right, refused by name where it is not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from test_families import verified
from tiny_models import make

from ftllm.errors import UserError
from ftllm.export.lora import read_adapter
from ftllm.files import sha256_file

WEIGHTS = "adapter_model.safetensors"
SHAPE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 64,
}  # fmt: skip
EXPERTS = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
}


def write(model: Any, place: Path, *, embeddings: bool | str = "auto", **settings: Any) -> Path:
    """The directory that peft saves a fresh adapter in, its second half drawn anew: it changes something."""
    import torch
    from peft import LoraConfig, get_peft_model

    tuned: Any = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, **settings))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name or "lora_embedding_B" in name or "trainable_tokens_delta" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    tuned.save_pretrained(place, save_embedding_layers=embeddings)
    return place


def tiny(kind: str, **settings: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **{**SHAPE, **EXPERTS.get(kind, {}), **settings})
    )


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, r"modules trained whole \(modules_to_save\)"),
        ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, "modules_to_save"),
        ({"trainable_token_indices": [3, 5]}, r"trained embeddings \(trainable_token_indices\)"),
        ({"trainable_token_indices": {"embed_tokens": [3]}}, "trained embeddings"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, r"a trained embedding \(.*embed_tokens\.lora_embedding_A\)"),
        ({"lora_bias": True}, "LoRA with a bias"),
        ({"bias": "all"}, "trained biases"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "replicated layers"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_merged_is_named(settings: dict[str, Any], says: str, tied: bool, tmp_path: Path) -> None:
    model = tiny("qwen2", tie_word_embeddings=tied)
    adapter = write(model, tmp_path, **{"target_modules": ["q_proj"], **settings})
    with pytest.raises(UserError, match=says) as refused:
        read_adapter(adapter)
    assert refused.value.exit_code == 2
    assert refused.value.hint


@pytest.mark.parametrize("kind", EXPERTS)
def test_fused_experts_are_named(kind: str, edited: Callable[..., None], tmp_path: Path) -> None:
    """By what the configuration says; by what the weights are called, too, should that be lost."""
    both = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    for number, parameters in enumerate([both, both[1:]]):
        adapter = write(tiny(kind), tmp_path / str(number), target_modules=["q_proj"], target_parameters=parameters)
        with pytest.raises(UserError, match=r"fused parameters such as experts \(target_parameters\)"):
            read_adapter(adapter)
        edited(adapter / "adapter_config.json", target_parameters=None)
        with pytest.raises(UserError, match=r"LoRA on fused experts \(.*mlp\.experts"):
            read_adapter(adapter)


def test_layers_that_peft_takes_for_experts_are_named(tmp_path: Path) -> None:
    """Where transformers 5 has fused the experts, peft puts a LoRA meant for their layers on the fused parameters."""
    adapter = write(tiny("qwen3_moe"), tmp_path, target_modules=["q_proj", "gate_proj", "up_proj", "down_proj"])
    with pytest.raises(UserError, match="target_parameters") as refused:
        read_adapter(adapter)
    assert "merge_and_unload" in refused.value.hint


@pytest.mark.parametrize("kind", EXPERTS)
def test_attention_beside_experts_is_read(kind: str, tmp_path: Path) -> None:
    adapter = read_adapter(write(tiny(kind), tmp_path, target_modules=["q_proj", "o_proj"]))
    assert {pair.module.rpartition(".")[2] for pair in adapter.pairs} == {"q_proj", "o_proj"}
    assert len(adapter.pairs) == 4


@pytest.fixture(scope="module")
def on_llama(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes adapters for the small Llama, whose output layer is its own."""
    return _writer(llama.base, tmp_path_factory.mktemp("adapters"))


def _writer(base: Path, place: Path) -> Callable[..., Path]:
    from transformers import AutoModelForCausalLM

    def made(name: str, **settings: Any) -> Path:
        import torch

        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_pretrained(base)
        if tokens := settings.pop("tokens", None):
            model.resize_token_embeddings(tokens)
        return write(model, place / name, **{"target_modules": ["q_proj", "down_proj"], **settings})

    return made


def test_embeddings_saved_beside_a_lora_change_nothing(
    llama: Any, on_llama: Callable[..., Path], convert: Any, tmp_path: Path
) -> None:
    """`save_embedding_layers`: they are the base's own."""
    made = {}
    for name, saved in {"with": True, "without": False}.items():
        adapter = on_llama(name, embeddings=saved)
        assert ("base_model.model.lm_head.weight" in load_file(adapter / WEIGHTS)) == saved
        (tmp_path / name).mkdir()
        made[name] = sha256_file(convert(llama.base, adapter, ["Q8_0"], tmp_path / name)["Q8_0"])
    assert made["with"] == made["without"]


@pytest.mark.slow
def test_embeddings_that_are_shared_are_the_base_s_under_either_name(
    shallow: Path, convert: Any, tmp_path: Path
) -> None:
    """transformers gives a shared output layer two names, and peft saves it under both."""
    adapter = _writer(shallow, tmp_path)("adapter", embeddings=True)
    assert {"base_model.model.lm_head.weight", "base_model.model.model.embed_tokens.weight"} <= set(
        load_file(adapter / WEIGHTS)
    )
    assert convert(shallow, adapter, ["Q8_0"], tmp_path)["Q8_0"].is_file()
    change(adapter, "base_model.model.lm_head.weight")
    with pytest.raises(UserError, match="the adapter holds a lm_head of its own"):
        convert(shallow, adapter, ["Q8_0"], tmp_path)


def test_embeddings_of_another_size_or_trained_ones_are_refused(
    llama: Any, on_llama: Callable[..., Path], convert: Any, tmp_path: Path
) -> None:
    resized = on_llama("resized", embeddings=True, tokens=2064)
    with pytest.raises(UserError, match=r"holds a (model\.embed_tokens|lm_head) of its own.*resized or trained whole"):
        convert(llama.base, resized, ["F32"], tmp_path)
    trained = on_llama("trained", embeddings=True)
    change(trained, "base_model.model.model.embed_tokens.weight")
    with pytest.raises(UserError, match=r"holds a model\.embed_tokens of its own, which is not base's") as refused:
        convert(llama.base, trained, ["F32"], tmp_path)
    assert "is it the right base?" in refused.value.hint


def test_a_number_that_is_none_is_refused(
    llama: Any, on_llama: Callable[..., Path], convert: Any, tmp_path: Path
) -> None:
    adapter = on_llama("broken")
    change(adapter, "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight", float("nan"))
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.down_proj\.lora_B\.weight holds NaN") as refused:
        convert(llama.base, adapter, ["F32"], tmp_path)
    assert refused.value.exit_code == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama-think", {"use_dora": True, "target_modules": ["q_proj", "down_proj"]}),
        ("llama-think", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}),
        ("qwen3-moe", {"target_modules": ["q_proj", "up_proj", "gate_proj", "down_proj"]}),
    ],
    ids=["DoRA", "modules_to_save", "experts"],
)
def test_what_peft_has_merged_is_exported(
    family: str, settings: dict[str, Any], converter: Any, tmp_path: Path
) -> None:
    """What the refusals advise: merge_and_unload, save_pretrained, and the base's tokenizer files beside it."""
    del converter
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = make(family, tmp_path).base
    adapter = write(AutoModelForCausalLM.from_pretrained(base), tmp_path / "written", **settings)
    with pytest.raises(UserError, match="cannot be merged") as refused:
        read_adapter(adapter)
    assert "merge_and_unload" in refused.value.hint
    loaded: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    loaded.merge_and_unload().save_pretrained(tmp_path / "merged")
    for path in base.iterdir():
        if path.name.startswith(("token", "special", "chat", "vocab", "merges")):
            shutil.copy(path, tmp_path / "merged")
    (file,) = verified(tmp_path / "merged", tmp_path / "out", "F32").files
    assert file.figures["kl_divergence"] < 1e-5


def change(adapter: Path, name: str, value: float = 1.0) -> None:
    """Set the first number of one of an adapter's tensors."""
    weights = load_file(adapter / WEIGHTS)
    weights[name].view(-1)[0] = value
    save_file(weights, adapter / WEIGHTS)
