"""Checkpoints and adapters whose export must agree with another program's to the byte, and that program's files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ftllm.export.fetch import Converter

COLUMNS = [3, 100, 255]


@dataclass(frozen=True)
class Exact:
    """A base, an adapter whose merge is exact in 16 bits, and upstream's 16-bit file of the merged model."""

    base: Path
    adapter: Path
    upstream: Path


def upstream(converter: Converter, model: Path, out: Path, kind: str) -> Path:
    """Upstream's own program on a model directory."""
    command = [sys.executable, str(converter.root / "convert_hf_to_gguf.py"), str(model), "--outfile", str(out)]
    command += ["--outtype", kind, "--model-name", "tested"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def make_shallow(nano: Path, place: Path) -> Path:
    """A copy of the nano model with its first two layers, one of each kind of attention."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(nano, place)
    weights = load_file(place / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not re.search(r"\.layers\.[2-9]\.", name)}
    save_file(kept, place / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((place / "config.json").read_text())
    config |= {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    (place / "config.json").write_text(json.dumps(config))
    return place


def make_exact(base: Path, converter: Converter, place: Path) -> Exact:
    """An adapter that doubles some columns of every matrix of the layers of `base`."""
    from safetensors.torch import load_file, save_file

    weights = load_file(base / "model.safetensors")
    pairs, merged = {}, dict(weights)
    for name, weight in weights.items():
        if name.endswith("_proj.weight"):
            module = "base_model.model." + name.removesuffix(".weight")
            one_hot = weight.new_zeros(len(COLUMNS), weight.shape[1])
            one_hot[range(len(COLUMNS)), COLUMNS] = 1
            pairs |= {f"{module}.lora_A.weight": one_hot, f"{module}.lora_B.weight": weight[:, COLUMNS].contiguous()}
            merged[name] = weight.clone()
            merged[name][:, COLUMNS] *= 2
    assert len(pairs) == 2 * 14
    adapter, model = place / "adapter", place / "merged"
    adapter.mkdir()
    save_file(pairs, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 3, "base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    shutil.copytree(base, model)
    save_file(merged, model / "model.safetensors", metadata={"format": "pt"})
    return Exact(base, adapter, upstream(converter, model, place / "upstream.gguf", "auto"))


def gguf_name(module: str) -> str:
    """Where llama.cpp keeps one of Gemma's linear layers."""
    _, _, number, _, kind = module.split(".")
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    return f"blk.{number}.{names.get(kind) or 'ffn_' + kind.removesuffix('_proj')}.weight"
