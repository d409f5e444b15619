"""Build models/nano from nothing: generated tasks, a tokenizer, a base trained from scratch, and its data sets.

    python scripts/build_nano.py             # everything, 75 minutes on two cores; resumes
    python scripts/build_nano.py --steps 40  # a quick try of the machinery

Needs the `train` extra. `scripts/measure_nano.py` then measures the model card's figures.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(Path(__file__).resolve().parent))

from nano.conversations import base_conversation, write_conversations, write_graded
from nano.tasks import FIRST
from nano.tokenizer import train_sentencepiece, write_tokenizer_files

SEED = 3407


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "models" / "nano", help="where the model goes")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "nano", help="where the checkpoint goes")
    parser.add_argument("--steps", type=int, help="stop after so many training steps")
    parser.add_argument("--no-compile", action="store_true", help="do not use torch.compile")
    parser.add_argument("--only", choices=["tokenizer", "data", "train"], help="one part only")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.only in (None, "tokenizer"):
        rng = random.Random(f"{SEED} tokenizer")
        lines = (
            line
            for _ in range(20_000)
            for turn in base_conversation(rng, FIRST)
            for text in turn
            for line in text.split("\n")
        )
        train_sentencepiece(lines, arguments.out)
        write_tokenizer_files(arguments.out)
    if arguments.only in (None, "data"):
        write_conversations(arguments.out / "ft.jsonl", SEED, "ft", hard=124, easy=124)
        write_conversations(arguments.out / "heldout_conversations.jsonl", SEED, "heldout", hard=48, easy=48)
        write_graded(arguments.out, SEED)
    if arguments.only in (None, "train"):
        from nano.train import train

        train(arguments.out, arguments.work, arguments.steps, SEED, compiled=not arguments.no_compile)


if __name__ == "__main__":
    main()
