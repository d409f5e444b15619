"""Tokens a second and peak memory of `ftllm train`, both backends, against a plain TRL script with the card's settings.

    python scripts/bench/train.py                         # 100 M random weights, four steps of 512 tokens, on a CPU
    python scripts/bench/train.py --shape 270M --length 2048 --steps 12 --repeat 3 --json out.json
    python scripts/bench/train.py --model google/gemma-3-4b-it --data mine.jsonl       # on a GPU, say

The peer is the method's published script without Unsloth: transformers, peft and TRL's `SFTTrainer` on rows of text,
LoRA of rank 8, one row a step, gradient checkpointing, loss on the whole sequence, words shuffled once beforehand.
`ftllm` trains the same rows with its preset `seed`. The arms take turns, each in a process of its own; steps after the
first two count; figures are medians, ratios those of each turn. On a CPU the peer is given ftllm's output head, for
TRL's own needs a GPU. Processor time is that of the same steps; other programs disturb it less than the clock's, least
with OMP_NUM_THREADS=1. The last column is the time spent on noise and rendering as a share of all training steps.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from train_memory import SHAPES, make

WARM = 2  # steps that do not count
# `ftllm` itself, with a second clock where it takes note of a step.
OURS = """
import json, time
from ftllm.train.metrics import Metrics
add, ends = Metrics.add, []

def timed(*args, **kwargs):
    ends.append(time.process_time())
    return add(*args, **kwargs)

Metrics.add = timed
from ftllm.cli.main import main
try:
    main()
finally:
    print(json.dumps(ends))
"""
PEER = """
import json, random, sys, time
import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

path, data, steps, output = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
cuda = torch.cuda.is_available()
if not cuda:
    from ftllm.train.head import install
    install("cpu")
dtype = torch.bfloat16 if cuda else torch.float32
tokenizer = AutoTokenizer.from_pretrained(path)
options = {}
if cuda:
    from transformers import BitsAndBytesConfig
    options["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                                        bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
    options["device_map"] = {"": 0}
model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **options)
names = [name for name, module in model.named_modules()
         if name.endswith("_proj") and "vision" not in name]
model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=names, task_type="CAUSAL_LM"))
random.seed(3407)

def shuffled(text):
    words = text.split(" ")
    if len(words) > 3:
        places = random.sample(range(len(words)), int(len(words) * 0.7))
        chosen = [words[i] for i in places]
        random.shuffle(chosen)
        for i, word in zip(places, chosen):
            words[i] = word
    return " ".join(words)

def render(row):
    messages = [{**m, "content": shuffled(m["content"]) if m["role"] == "user" else m["content"]}
                for m in row["messages"]]
    return {"text": tokenizer.apply_chat_template(messages, tokenize=False)}

rows = load_dataset("json", data_files=data, split="train").map(render, remove_columns=["messages"])
times, worked = [], []

class Clock(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        times.append(time.perf_counter())
        worked.append(time.process_time())

trainer = SFTTrainer(
    model=model, processing_class=tokenizer, train_dataset=rows, callbacks=[Clock()],
    args=SFTConfig(output_dir=output, per_device_train_batch_size=1, max_steps=steps, learning_rate=2e-5,
                   warmup_steps=25, weight_decay=0.01, lr_scheduler_type="cosine", seed=3407, max_length=4096,
                   optim="paged_adamw_8bit" if cuda else "adamw_torch", bf16=cuda, use_cpu=not cuda,
                   gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False},
                   report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True))
began = time.perf_counter()
trainer.train()
tokens = [log["num_tokens"] for log in trainer.state.log_history if "num_tokens" in log]
if cuda:
    peak = torch.cuda.max_memory_allocated()
else:
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"ends": [t - began for t in times], "worked": worked, "tokens": tokens, "peak": peak}))
"""


WIDTHS = (10, 8, 14, 8, 12, 8, 22)


@dataclass(frozen=True)
class Turn:
    """One arm's training.

    Attributes:
        speeds: tokens a second of each step after the first two.
        processor: milliseconds of processor time a token, over the same steps.
        peak: bytes, of the GPU where there is one, else resident.
        drawing: share of the training time spent on noise and rendering; None for the peer, which does so beforehand.
    """

    speeds: tuple[float, ...]
    processor: float
    peak: int
    drawing: float | None


def write_rows(path: Path, count: int, tokens: int) -> Path:
    """Conversations of plain words that render to about `tokens` tokens: a fifth of them the user's."""
    words = (ROOT / "README.md").read_text(encoding="utf-8").split()
    draw = random.Random(0)
    per_word = 2.6  # tokens of nano's vocabulary
    total = round(tokens / per_word)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            asked = " ".join(draw.choices(words, k=total // 5))
            answered = " ".join(draw.choices(words, k=total - total // 5))
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def ours(backend: str, model: str, data: Path, steps: int, scratch: Path) -> Turn:
    runs = scratch / "runs"
    settings = [f"max_steps={steps}", "samples=0", "save_steps=0"]
    command = [sys.executable, "-c", OURS, "train", "--model", model, "--data", str(data), "--preset", "seed",
               "--backend", backend, "--runs", str(runs), "--name", "m", "--quiet"]  # fmt: skip
    forced = {} if cuda() else {"UNSLOTH_FORCE_CPU": "1"}
    printed = run(command + [word for setting in settings for word in ("--set", setting)], forced)
    lines = [json.loads(line) for line in (runs / "m" / "metrics.jsonl").read_text().splitlines()]
    manifest = json.loads((runs / "m" / "manifest.json").read_text())
    shutil.rmtree(runs)
    timings = manifest["timings"]
    tokens = [line["tokens"] for line in lines]
    return Turn(
        speeds([line["seconds"] for line in lines], tokens),
        processor(json.loads(printed.splitlines()[-1]), tokens),
        manifest["results"]["peak_memory_bytes"],
        timings["rows_in_training"] / timings["train"],
    )


def peer(model: str, data: Path, steps: int, scratch: Path) -> Turn:
    printed = run([sys.executable, "-c", PEER, model, str(data), str(steps), str(scratch / "peer")], {})
    said = json.loads(printed.splitlines()[-1])
    tokens = said["tokens"]
    return Turn(speeds(said["ends"], tokens), processor(said["worked"], tokens), said["peak"], None)


def speeds(ends: list[float], tokens: list[float]) -> tuple[float, ...]:
    """Tokens a second of each step after the first two, from when each ended and how many were read by then."""
    return tuple((tokens[i] - tokens[i - 1]) / (ends[i] - ends[i - 1]) for i in range(WARM, len(ends)))


def processor(worked: list[float], tokens: list[float]) -> float:
    """Milliseconds of processor time a token after the first two steps, from what each step had taken by its end."""
    return 1000 * (worked[-1] - worked[WARM - 1]) / (tokens[-1] - tokens[WARM - 1])


def run(command: list[str], environment: dict[str, str]) -> str:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment, "PYTHONPATH": path}
    )
    if ended.returncode:
        raise SystemExit(f"{' '.join(command[:6])[:200]} failed:\n{ended.stderr[-3000:]}")
    return ended.stdout


def cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def measure(arms: list[str], model: str, data: Path, steps: int, repeat: int, scratch: Path) -> dict[str, list[Turn]]:
    """All arms in turn, `repeat` times."""
    found: dict[str, list[Turn]] = {arm: [] for arm in arms}
    for turn in range(repeat):
        for arm in arms:
            result = peer(model, data, steps, scratch) if arm == "trl" else ours(arm, model, data, steps, scratch)
            found[arm].append(result)
            speed = statistics.median(result.speeds)
            line = (
                f"turn {turn + 1}: {arm:<8}{speed:>10.0f} tokens/s, {result.processor:.3f} ms of processor time a token"
            )
            print(line, file=sys.stderr, flush=True)
    return found


def summary(found: dict[str, list[Turn]]) -> list[dict[str, Any]]:
    """Medians over all steps, and the median of the turns' ratios to the peer's, for machines are not equally quick."""
    reference = found["trl"]
    rows = []
    for arm, turns in found.items():
        pairs = list(zip(turns, reference, strict=True))
        rows.append(
            {
                "arm": arm,
                "tokens_per_second": round(statistics.median(speed for turn in turns for speed in turn.speeds), 1),
                "speed_ratio": round(
                    statistics.median(
                        statistics.median(ours.speeds) / statistics.median(theirs.speeds) for ours, theirs in pairs
                    ),
                    3,
                ),
                "processor_ms": round(statistics.median(turn.processor for turn in turns), 3),
                "processor_ratio": round(
                    statistics.median(ours.processor / theirs.processor for ours, theirs in pairs), 3
                ),
                "peak_mib": round(statistics.median(turn.peak for turn in turns) / 2**20),
                "memory_ratio": round(statistics.median(ours.peak / theirs.peak for ours, theirs in pairs), 3),
                "drawing_share": max((turn.drawing for turn in turns if turn.drawing is not None), default=None),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="100M")
    parser.add_argument("--model", help="a model instead of random weights")
    parser.add_argument("--data", type=Path, help="conversations instead of made-up ones")
    parser.add_argument("--length", type=int, default=512, help="tokens of a made-up row")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--arms", nargs="*", default=["trl", "hf", *(["unsloth"] if find_spec("unsloth") else [])])
    parser.add_argument("--json", type=Path, help="where the figures go as JSON")
    arguments = parser.parse_args()
    if arguments.steps <= WARM or "trl" not in arguments.arms:
        parser.error(f"more than {WARM} steps, and trl among the arms, which the others are compared with")
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        model = arguments.model or str(make(SHAPES[arguments.shape], scratch / "model"))
        data = arguments.data or write_rows(scratch / "rows.jsonl", 64, arguments.length)
        rows = summary(measure(arguments.arms, model, data, arguments.steps, arguments.repeat, scratch))
    titles = ("tokens/s", "ratio", "CPU ms/token", "ratio", "peak", "ratio", "noise and rendering")
    print(f"{'':<10}" + "".join(f"{title:>{width}}" for title, width in zip(titles, WIDTHS, strict=True)))
    for row in rows:
        share = "" if row["drawing_share"] is None else f"{row['drawing_share']:.2%}"
        print(
            f"{row['arm']:<10}{row['tokens_per_second']:>10.0f}{row['speed_ratio']:>8.2f}{row['processor_ms']:>14.3f}"
            f"{row['processor_ratio']:>8.3f}{row['peak_mib']:>8} MiB"
            f"{row['memory_ratio']:>8.2f}{share:>22}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
