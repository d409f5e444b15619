"""What is left out of imports is not missed, and is there again afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from ftllm.export import fetch
from ftllm.export.lean import Distributions

IDS = list(range(3, 35))
SCRIPT = """
import json, sys
from pathlib import Path
from ftllm.export import lean

with lean.for_inference():
    from ftllm.export.reference import Reference
    reference = Reference(Path(sys.argv[1]), None)
(states,) = reference.hidden([json.loads(sys.argv[2])])
logits = reference.logits(states).tolist()
imported = [name for name in sys.argv[3:] if name in sys.modules]

import torch
from transformers.masking_utils import sdpa_mask

def seen(batch, head, query, key):
    return key <= torch.arange(4)[query]  # a tensor indexed by one that vmap holds

late = sdpa_mask(1, 4, 4, mask_function=seen, use_vmap=True, allow_is_causal_skip=False)
import torch._dynamo
made = [torch.distributed.is_available(), "torch._dynamo.convert_frame" in sys.modules]
print(json.dumps({"logits": logits, "imported": imported, "mask": late.tolist(), "made": made}))
"""
OPEN = """
import json, sys
from pathlib import Path
from ftllm.export import worker

worker.prepare()
root = Path(sys.argv[2])
sys.path[:0] = [str(root), str(root / "gguf-py")]
from ftllm.export import convert
opened = convert.open_checkpoint(Path(sys.argv[1]), None, "nano")
print(json.dumps([len(opened.shapes), *(name for name in sys.argv[3:] if name in sys.modules)]))
"""
LEFT_OUT = ("sympy", "torch._dynamo", "torch.distributed.tensor", "torch.distributed.fsdp")


@pytest.fixture(scope="module")
def said(nano: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", SCRIPT, str(nano), json.dumps(IDS), *LEFT_OUT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_a_model_runs_without_what_it_does_not_use(said: dict[str, Any], nano: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(nano, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        wanted = model(input_ids=torch.tensor([IDS])).logits[0].numpy()
    np.testing.assert_allclose(said["logits"], wanted, rtol=1e-4, atol=1e-4)
    assert said["imported"] == []


def test_a_checkpoint_is_opened_without_what_it_does_not_use(nano: Path, converter: fetch.Converter) -> None:
    command = [sys.executable, "-c", OPEN, str(nano), str(converter.root), *LEFT_OUT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with safe_open(nano / "model.safetensors", "pt") as weights:
        assert json.loads(done.stdout.splitlines()[-1]) == [len(weights.keys())]


def test_masks_that_need_the_compiler_are_made(said: dict[str, Any]) -> None:
    assert said["mask"] == torch.ones(1, 1, 4, 4).tril().bool().tolist()


def test_afterwards_all_is_as_ever(said: dict[str, Any]) -> None:
    assert said["made"] == [torch.distributed.is_available(), True]


def test_distributions_are_found_as_importlib_finds_them() -> None:
    all_ = metadata.packages_distributions()
    looked: list[int] = []

    def look() -> Mapping[str, list[str]]:
        looked.append(1)
        return all_

    found = Distributions(look)
    assert (found["torch"], found.get("numpy")) == (["torch"], ["numpy"])
    assert not looked
    assert found["google"] == all_["google"]  # of protobuf
    assert found.get("no_such_package", []) == []
    assert set(found) == set(all_)
    assert len(looked) == 1


def test_tokenizers_are_read_while_a_checkpoint_is_opened() -> None:
    """As for every vocabulary but SentencePiece's: what `AutoTokenizer` needs imports parts of the compiler."""
    script = """
from ftllm.export import lean, worker

worker.prepare()
with lean.without_compiler():
    import torch
    torch.empty(2, device="meta") + 1
from transformers import AutoTokenizer
print(AutoTokenizer.__name__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "AutoTokenizer\n", done.stderr
