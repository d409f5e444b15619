"""How close `ftllm train`'s estimate of its peak memory is to what it takes: real trainings on random models.

    python scripts/bench/train_memory.py            # nano, 100 M, and 270 M with a vocabulary of 262144
    python scripts/bench/train_memory.py nano --length 512

Each line is a training of three steps on rows of exactly that length. Measured is the most that was resident at once
(`ru_maxrss`), the libraries included. The trainings run as ftllm runs them where memory is short: freed memory is given
back at once. Where there is plenty, glibc keeps some of it, and up to about twice as much is resident.

On two cores of an AVX-512 machine, estimated over measured: nano 1.03 (256 tokens) and 1.09 (2048), without gradient
checkpointing 1.02 and 0.91; 100 M 0.94 and 1.07, without 0.92 and 0.99.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
NANO = ROOT / "models" / "nano"


@dataclass(frozen=True)
class Shape:
    """The dimensions of a Gemma 3."""

    hidden: int
    inner: int
    layers: int
    heads: int
    head_width: int
    vocabulary: int


SHAPES = {
    "100M": Shape(768, 3072, 11, 12, 64, 2048),
    "270M": Shape(640, 2048, 18, 4, 256, 262144),
}


def make(shape: Shape, directory: Path) -> Path:
    """A Gemma 3 of random bfloat16 weights with nano's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(NANO)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = shape.hidden, shape.inner, shape.layers
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = shape.heads, 1, shape.head_width
    config.query_pre_attn_scalar, config.vocab_size = shape.head_width, shape.vocabulary
    config.max_position_embeddings = 32768
    config.layer_types = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(shape.layers)]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)
    for file in NANO.iterdir():
        if file.is_file() and ("token" in file.name or file.suffix == ".jinja"):
            shutil.copyfile(file, directory / file.name)
    return directory


def write_rows(path: Path, tokens: int) -> Path:
    """Four conversations that render to about `tokens` tokens each."""
    row = {"messages": [{"role": "user", "content": "Say a."}, {"role": "assistant", "content": "a " * (tokens - 20)}]}
    path.write_text((json.dumps(row) + "\n") * 4, encoding="utf-8")
    return path


def train(model: Path, data: Path, runs: Path, settings: list[str]) -> tuple[int, int]:
    """Estimated and measured peak in bytes."""
    command = [sys.executable, "-m", "ftllm", "train", "--model", model, "--data", data, "--json"]
    options = ["preset=sft", "max_steps=3", "save_steps=0", "samples=0", "max_length=40000", *settings]
    command += [word for option in options for word in ("--set", option)]
    dry = subprocess.run([*map(str, command), "--dry-run"], capture_output=True, text=True, check=True)
    estimated = json.loads(dry.stdout.splitlines()[-1])["memory"]["total"]
    short = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}  # as `ftllm.train.memory.keep_close` sets it
    subprocess.run([*map(str, command), "--runs", str(runs), "--name", "m"], capture_output=True, check=True, env=short)
    measured = json.loads((runs / "m" / "manifest.json").read_text())["results"]["peak_memory_bytes"]
    shutil.rmtree(runs)
    return estimated, measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=["nano", *SHAPES])
    parser.add_argument("--length", type=int, nargs="*", default=[256, 2048])
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    print(f"{'model':<8}{'tokens':>8}{'settings':>32}{'estimated':>12}{'measured':>12}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.shapes:
            model = NANO if name == "nano" else make(SHAPES[name], Path(scratch) / name)
            for length in arguments.length:
                data = write_rows(Path(scratch) / "rows.jsonl", length)
                for settings in (arguments.settings and [arguments.settings]) or [[], ["gradient_checkpointing=false"]]:
                    estimated, measured = train(model, data, Path(scratch) / "runs", settings)
                    print(
                        f"{name:<8}{length:>8}{' '.join(settings):>32}{estimated >> 20:>8} MiB{measured >> 20:>8} MiB"
                        f"{estimated / measured:>8.2f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
