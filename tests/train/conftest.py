"""Small models and data for training tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from trainings import Trainer

from ftllm.progress import Reporter

NANO = Path(__file__).parents[2] / "models" / "nano"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 3 of 80 thousand random weights with nano's tokenizer: a training step takes milliseconds."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    directory = tmp_path_factory.mktemp("tiny") / "tiny"
    directory.mkdir()
    for file in NANO.iterdir():
        if file.is_file() and ("token" in file.name or file.suffix == ".jinja"):
            shutil.copyfile(file, directory / file.name)
    config = AutoConfig.from_pretrained(NANO)
    config.hidden_size, config.intermediate_size, config.head_dim = 32, 64, 16
    config.num_attention_heads, config.num_key_value_heads, config.num_hidden_layers = 2, 1, 2
    config.layer_types = ["sliding_attention", "full_attention"]
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve short conversations."""
    path = tmp_path_factory.mktemp("data") / "small.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Please tell me what the {word} in the old garden would like to eat"},
                {"role": "assistant", "content": f"<think>\nthe {word}\n</think>\n{word} eats {2 * i}"},
            ]
        }
        for i, word in enumerate(["cat", "dog", "fox", "hen", "owl", "pig", "rat", "ant", "bee", "cow", "elk", "yak"])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def silent() -> Reporter:
    return Reporter(quiet=True)


@pytest.fixture
def trained(tiny: Path, data: Path, tmp_path: Path) -> Trainer:
    """Trains on one thread, so that sums, and so bytes, are the same every time."""
    import torch

    torch.set_num_threads(1)
    return Trainer(tiny, data, tmp_path / "runs")
