"""Train the nano base from scratch: a Gemma 3 of under 8 M parameters, Muon for the matrices, AdamW for the rest."""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path
from typing import Any

import torch

from nano.conversations import base_conversation
from nano.tasks import FIRST, FOURTH, SECOND, THIRD, Course

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, MLP, CONTEXT, WINDOW = 256, 6, 4, 2, 64, 768, 2048, 512
LENGTH = 384
ROWS = 16
COURSES = ((FIRST, 1300, 1.0), (SECOND, 700, 0.7), (THIRD, 350, 0.5), (FOURTH, 350, 0.5))
"""What is taught, one after the other: each with its steps and the height of its learning rate."""
WARMUP, DECAY = 50, 0.35
"""Steps of linear warm-up in each course, and the share of the first one over which the rate falls to zero; later
courses' rates fall all along."""
MATRIX_RATE, OTHER_RATE = 0.02, 3e-3
LOG_EVERY, SAVE_EVERY = 20, 100
USER_WEIGHT = 0.1
"""Weight of the loss on what the user says, against 1 on what the model says."""


END_OF_TURN = 5


def configuration(vocabulary: int) -> Any:
    from transformers import Gemma3TextConfig

    return Gemma3TextConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        query_pre_attn_scalar=HEAD_DIM,
        max_position_embeddings=CONTEXT,
        sliding_window=WINDOW,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        tie_word_embeddings=True,
        attention_dropout=0.0,
    )


class Rows:
    """Endless training rows, a pure function of (seed, step): whole conversations, packed to `LENGTH` tokens."""

    def __init__(self, processor: Any, seed: int) -> None:
        self.seed = seed
        self.processor = processor
        start, self.end, self.newline = (
            processor.piece_to_id(piece) for piece in ("<start_of_turn>", "<end_of_turn>", "\n")
        )
        self.user = [start, *processor.encode("user"), self.newline]
        self.model = [start, *processor.encode("model"), self.newline]

    def conversation(self, rng: random.Random, course: Course) -> tuple[list[int], list[float]]:
        """Token ids and the weight of each in the loss."""
        ids, weights = [2], [0.0]
        for user, model in base_conversation(rng, course):
            asked = [*self.user, *self.processor.encode(user), self.end, self.newline, *self.model]
            said = [*self.processor.encode(model), self.end]
            ids += [*asked, *said, self.newline]
            weights += [USER_WEIGHT] * len(asked) + [1.0] * len(said) + [USER_WEIGHT]
        return ids, weights

    def row(self, rng: random.Random, course: Course) -> tuple[list[int], list[float]]:
        ids: list[int] = []
        weights: list[float] = []
        misses = 0
        while misses < 4:
            more, more_weights = self.conversation(rng, course)
            if len(ids) + len(more) > LENGTH:
                misses += 1
                continue
            ids += more
            weights += more_weights
        padding = LENGTH - len(ids)
        return ids + [0] * padding, weights + [0.0] * padding

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """ids int64 [ROWS, LENGTH], weights float32 [ROWS, LENGTH]."""
        rng = random.Random(f"{self.seed} base {step}")
        course, _, _ = course_of(step)
        rows = [self.row(rng, course) for _ in range(ROWS)]
        return torch.tensor([ids for ids, _ in rows]), torch.tensor([weights for _, weights in rows])


def course_of(step: int) -> tuple[Course, int, int]:
    """The course a step belongs to, its number, and the step's place in it."""
    for number, (course, length, _) in enumerate(COURSES):
        if step < length:
            return course, number, step
        step -= length
    raise ValueError("training is over")


def rate(step: int) -> float:
    """The learning rate's height at a step, 0 to 1."""
    _, number, place = course_of(step)
    _, length, height = COURSES[number]
    falling = (length - place) / (int(length * DECAY) if number == 0 else length)
    return height * min(1.0, (place + 1) / WARMUP, falling)


def optimizers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(folder: Path, work: Path, steps: int | None, seed: int, *, compiled: bool = True) -> None:
    """Train all courses (or `steps` steps of them) from `work`'s checkpoint on; write the weights to `folder`."""
    import sentencepiece
    from transformers import Gemma3ForCausalLM

    total = sum(length for _, length, _ in COURSES)
    steps = total if steps is None else min(steps, total)
    processor = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    torch.manual_seed(seed)
    model = Gemma3ForCausalLM(configuration(processor.get_piece_size()))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    rows = Rows(processor, seed)
    chosen = optimizers(model)
    start = restore(work, model, chosen)
    body = torch.compile(model.model) if compiled else model.model
    began, seen, averaged = time.monotonic(), 0, 0.0
    for step in range(start, steps):
        ids, weights = rows.batch(step)
        for optimizer, base in zip(chosen, (MATRIX_RATE, OTHER_RATE), strict=True):
            optimizer.param_groups[0]["lr"] = base * rate(step)
        loss, nll = losses(model, body, ids, weights)
        if not math.isfinite(loss.item()):
            raise RuntimeError(f"the loss is {loss.item()} at step {step}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in chosen:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        averaged += nll / LOG_EVERY
        seen += int((ids != 0).sum())
        if (step + 1) % LOG_EVERY == 0:
            seconds = time.monotonic() - began
            speed = round(seen / seconds)
            line = {"step": step + 1, "nll": round(averaged, 4), "tokens_per_second": speed, "seconds": round(seconds)}
            print(json.dumps(line), flush=True)
            averaged = 0.0
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            checkpoint(work, model, chosen, step + 1)
    save(model, folder)


def losses(model: Any, body: Any, ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The weighted loss of a batch, and the plain mean over what the model says (nats a token)."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = body(input_ids=ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, :-1])
    each = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weight = weights[:, 1:].flatten()
    return (each * weight).sum() / weight.sum(), each[weight == 1.0].mean().item()


def checkpoint(work: Path, model: torch.nn.Module, chosen: list[torch.optim.Optimizer], step: int) -> None:
    partial = work / "checkpoint.pt.partial"
    torch.save({"step": step, "model": model.state_dict(), "optimizers": [o.state_dict() for o in chosen]}, partial)
    partial.replace(work / "checkpoint.pt")


def restore(work: Path, model: torch.nn.Module, chosen: list[torch.optim.Optimizer]) -> int:
    """Load this script's own checkpoint (tensors only); return the step to go on with."""
    path = work / "checkpoint.pt"
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(chosen, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])


def save(model: Any, folder: Path) -> None:
    """bf16 weights in one file, with the configuration."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(bos_token_id=2, eos_token_id=[1, END_OF_TURN], pad_token_id=0)
    model.to(torch.bfloat16).save_pretrained(folder)
