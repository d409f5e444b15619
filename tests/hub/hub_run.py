"""The files of a small run as training and export leave them, written without either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ftllm.files import sha256_file

TYPES = {"Q2_K": 10, "Q4_K_M": 15, "Q8_0": 7}
FIGURES = {"Q2_K": (0.2489, 0.5863), "Q4_K_M": (0.0312, 0.8333), "Q8_0": (0.0005, 0.9583)}


def write_gguf(path: Path, kind: str, rows: int = 64, *, imatrix: bool = False, **values: str) -> Path:
    """A GGUF that a header reader takes for a model of this type, `rows` x 256 weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(2048)
    writer.add_block_count(1)
    writer.add_file_type(TYPES.get(kind, 1))
    if imatrix:
        writer.add_string("quantize.imatrix.file", "calibration")
    for key, value in values.items():
        writer.add_string(key.replace("__", "."), value)
    noise = np.random.default_rng(rows).standard_normal((rows, 256)).astype(np.float32)
    quant = {"Q2_K": gguf.GGMLQuantizationType.Q8_0, "F16": gguf.GGMLQuantizationType.F16}.get(
        kind, gguf.GGMLQuantizationType.Q8_0
    )
    writer.add_tensor("token_embd.weight", gguf.quants.quantize(noise, quant), raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def entry(path: Path, kind: str, adapter: Path | None) -> dict[str, Any]:
    """What `ftllm export` records about a file."""
    divergence, same_top = FIGURES[kind]
    return {
        "type": kind,
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
        "bits_per_weight": 4.92,
        "fallbacks": 0,
        "tensors": 1,
        "verification": {
            "kl_divergence": divergence,
            "same_top": same_top,
            "positions": 336,
            "text": "seven conversations",
        },
        "source": {"base": "gemma", "adapter": str(adapter), "adapter_sha256": "a" * 64},
        "converter": {"llama_cpp_python": "0.3.36"},
        "environment": {"command": ["ftllm", "export", "--out", str(path.parent)]},
    }


def manifest(base: Path, place: Path) -> dict[str, Any]:
    """What `ftllm train` records."""
    return {
        "status": "finished",
        "name": "think",
        "started": "2026-01-01",
        "base": {"path": str(base), "repo": "org/gemma", "revision": "c0ffee", "files": {"config.json": "c" * 64}},
        "data": [
            {"path": str(place / "data.jsonl"), "use": "data", "sha256": "d" * 64, "conversations": 248},
            {"path": str(place / "held.jsonl"), "use": "eval", "sha256": "e" * 64, "conversations": 12},
        ],
        "config": {
            "preset": "ft",
            "lora": {"rank": 16, "alpha": 32.0, "dropout": 0.0, "targets": ["attention", "mlp"]},
            "learning_rate": 2e-5,
            "loss": "assistant",
            "noise": {"ratio": [0.7], "turns": "all", "per_epoch": True, "protect": True},
        },
        "seed": 3407,
        "precision": {"weights": "nf4", "compute": "bfloat16", "adapter": "float32"},
        "trainable_parameters": 466944,
        "rows": {"training": 236, "held_out": 12},
        "noise": {"unit": "word", "share_moved": 0.238, "moved": 562, "units": 2362},
        "results": {"steps": 20, "eval_before": 0.9063, "eval_nll": 0.0402, "eval_tokens": 4097},
        "versions": {"ftllm": "0.1.0", "torch": "2.13.0"},
    }
