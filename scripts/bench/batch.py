"""`ftllm chat --batch` against answering one by one: tokens/s on the same prompts, interleaved, medians.

    python scripts/bench/batch.py MODEL.gguf [--data QUESTIONS.jsonl] [--rows 16] [--tokens 64] [--parallel 2 4 8]

Both sides are `ftllm.llama.generate.generate_batch`, with 1 sequence or more; greedy, so that both do the same work.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ftllm.chat.batch import read_questions
from ftllm.chat.prompt import build_prompt
from ftllm.llama.generate import generate_batch
from ftllm.llama.model import Model
from ftllm.llama.sampling import Sampling


def speed(model: Model, prompts: list[tuple[int, ...]], tokens: int, parallel: int, workers: int | None) -> float:
    """Tokens generated a second, prompts' time included."""
    began = time.perf_counter()
    answers = generate_batch(
        model, prompts, sampling=Sampling(temperature=0), max_tokens=tokens, parallel=parallel, workers=workers
    )
    return sum(len(answer.tokens) for answer in answers) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, default=ROOT / "models/nano/heldout.jsonl")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--parallel", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    rows = read_questions(arguments.data, None)[: arguments.rows]
    with Model.load(arguments.model) as model:
        prompts = [build_prompt(row.messages, model).ids for row in rows]
        # one by one as `ftllm chat -p` in a loop does, without loading the model each time
        ways: dict[str, tuple[int, int | None]] = {"one by one": (1, 1)}
        ways |= {f"{parallel} together": (parallel, None) for parallel in arguments.parallel}
        speeds: dict[str, list[float]] = {way: [] for way in ways}
        for repeat in range(arguments.repeats + 1):
            for way, (parallel, workers) in ways.items():
                measured = speed(model, prompts, arguments.tokens, parallel, workers)
                if repeat:  # the first round warms up
                    speeds[way].append(measured)
        alone = median(speeds["one by one"])
        print(f"{arguments.model.name}: {len(prompts)} prompts, at most {arguments.tokens} tokens each, greedy")
        for way, measured_speeds in speeds.items():
            middle = median(measured_speeds)
            print(f"{way:>14}: {middle:8.1f} tok/s  x{middle / alone:.2f}")


if __name__ == "__main__":
    main()
