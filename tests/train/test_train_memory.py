"""The estimate of the peak memory, and what it proposes where a training does not fit."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ftllm.errors import UserError
from ftllm.progress import Reporter
from ftllm.train import memory
from ftllm.train.base import find
from ftllm.train.config import TrainConfig, resolve
from ftllm.train.corpus import load_corpus
from ftllm.train.memory import Model, estimate, largest_batch, model_of, require_fit
from ftllm.train.prepare import Clock, Prepared, prepare
from ftllm.train.settings import Setting

NANO = Path(__file__).parents[2] / "models" / "nano"


def configured(data: Path, **values: Any) -> TrainConfig:
    return resolve(
        [{key: Setting(value, "test") for key, value in {"model": str(NANO), "data": [str(data)], **values}.items()}]
    )


def prepared(data: Path, **values: Any) -> Prepared:
    config = configured(data, **values)
    return prepare(config, find(config.model), load_corpus(config), Reporter(quiet=True), Clock())


def test_what_is_counted_is_what_autograd_keeps(data: Path) -> None:
    """Against the real model with the real adapter: what the forward pass leaves behind, tensor by tensor."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    found = model_of(prepared(data))
    base = AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=8, target_modules=memory.lora_targets(base, ["attention", "mlp"])))
    assert found.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.weights == sum(p.numel() for p in base.parameters() if not p.requires_grad)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(input_ids=torch.ones((1, 200), dtype=torch.int64), use_cache=False, logits_to_keep=1)
    really = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output
    assert 200 * (found.kept.layers + found.kept.outside) == pytest.approx(really, rel=0.1)
    assert found.kept.depth == base.config.num_hidden_layers


def test_largest_batch(data: Path) -> None:
    config = configured(data, batch_size=2)
    assert largest_batch([3, 5, 4], config, packed=False) == 10
    assert 7 <= largest_batch([3, 5, 4], config, packed=True) <= 9


def test_what_does_not_fit_is_refused_with_what_would(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The change proposed is applied, and then it fits."""
    ready = prepared(data, batch_size=8, gradient_checkpointing=False, preset="sft")
    needed = require_fit(ready)[0]

    def free(amount: int) -> None:
        monkeypatch.setattr(memory, "free_memory", lambda _: amount)

    free(needed.total)
    assert require_fit(ready)[0].fits
    free(needed.total - 1)
    with pytest.raises(UserError, match=r"takes about .* GB of memory at its peak, and .* GB are free") as caught:
        require_fit(ready)
    assert caught.value.exit_code == 2
    changes = dict(re.findall(r"--set (\w+)=(\w+)", caught.value.hint))
    assert changes
    again = {"batch_size": 8, "gradient_checkpointing": False, "preset": "sft", **changes}
    assert require_fit(prepared(data, **again))[0].fits
    free(needed.program)
    with pytest.raises(UserError) as caught:
        require_fit(ready)
    assert caught.value.hint.startswith("close other programs, or take a smaller model: the weights alone take")


def test_rows_that_a_shorter_length_loses_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    turns = [("a", "b " * 10), ("a", "c " * 700)]
    lines = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in turns
    ]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ready = prepared(path, max_length=2048, preset="sft", precision="bfloat16")
    model: Model = model_of(ready)
    short = estimate(model, ready.config, ready.device, 256, 0).total
    monkeypatch.setattr(memory, "free_memory", lambda _: short)
    with pytest.raises(UserError) as caught:
        require_fit(ready)
    assert re.match(
        r"--set max_length=\d+ would take about .*; 1 of 2 rows are longer and would be left out", caught.value.hint
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_short_memory_is_given_back() -> None:
    """40 blocks of 8 MB, freed but for the last: glibc keeps them by default, and not where memory is short."""
    program = """
import ctypes, sys
from ftllm.train.backend import Device
from ftllm.train.memory import Memory, keep_close
import torch
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
for _ in range(3):  # raises glibc's own threshold beyond the blocks' size
    torch.ones(30 * 2**18)
short = sys.argv[1] == "short"
assert keep_close(Memory(0, 0, 1, 0, free=1 if short else 100), Device("cpu", "float32", False, False)) == short
before = resident()
blocks = [torch.ones(2**21) for _ in range(40)]
last = blocks.pop()
blocks.clear()
print((resident() - before) // 2**20)
"""
    kept = {
        how: int(
            subprocess.run([sys.executable, "-c", program, how], capture_output=True, text=True, check=True).stdout
        )
        for how in ("plenty", "short")
    }
    assert kept["plenty"] > 250
    assert kept["short"] < 50
