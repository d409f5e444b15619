"""Everything read and decided about a training before its weights are loaded."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from ftllm.data.shapes import respelling
from ftllm.progress import Reporter, paced
from ftllm.render import Row
from ftllm.train import backend as backends
from ftllm.train import lineage, trackers
from ftllm.train.base import Base
from ftllm.train.config import LoraConfig, TrainConfig
from ftllm.train.corpus import Corpus
from ftllm.train.data import Plan, Rows
from ftllm.train.processes import Processes, here
from ftllm.train.spread import cores
from ftllm.vocabulary import DirectoryVocabulary


@dataclass
class Clock:
    """Seconds spent in each part of the work."""

    timings: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.timings[name] = round(self.timings.get(name, 0.0) + time.monotonic() - began, 3)

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.started, 3)


@dataclass(frozen=True)
class Prepared:
    """Everything read and decided, before the weights are loaded."""

    config: TrainConfig
    base: Base
    corpus: Corpus
    rows: Rows
    plan: Plan
    held_out: list[Row]
    vocabulary: DirectoryVocabulary
    backend: backends.BackendName
    reason: str
    device: backends.Device
    parent: lineage.Parent | None = None
    processes: Processes = field(default_factory=Processes)

    @property
    def lora(self) -> LoraConfig:
        """The shape of the adapter that comes out: with what of the parent's is kept."""
        return self.parent.lora_with(self.config.lora) if self.parent else self.config.lora

    @property
    def tokenizer(self) -> Any:
        """Of the base."""
        return self.vocabulary.tokenizer

    @property
    def decided(self) -> TrainConfig:
        """The configuration with nothing left to the machine: every `auto` is what it became here."""
        return self.config.model_copy(
            update={
                "from_run": str(self.parent.run.path) if self.parent else None,
                "data": self.corpus.pinned,
                "eval": self.corpus.pinned_eval,
                "backend": self.backend,
                "precision": self.device.precision,
                "load_in_4bit": self.device.four_bit,
                "date": self.vocabulary.today,
                "optimizer": "adamw_8bit" if self.device.eight_bit else "adamw",
            }
        )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch; the last may be smaller."""
        batches = -(-len(self.plan.units) // (self.config.batch_size * self.processes.count))
        return -(-batches // self.config.gradient_accumulation)

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self.config.max_steps or self.steps_per_epoch * self.config.epochs


def prepare(config: TrainConfig, found: Base, corpus: Corpus, reporter: Reporter, clock: Clock) -> Prepared:
    """Choose backend and device, look at the parent, read the tokenizer, render the first epoch.

    Raises:
        UserError: the parent cannot be gone on from, the backend is missing, the tokenizer or a row cannot be used, or
            no row is left.
    """
    trackers.require(config.report_to)
    parent = lineage.parent_of(config)
    with clock.part("libraries"):
        chosen, reason = backends.choose(config)
        device = backends.device(config, found.parameters())
        if chosen == "unsloth":
            from ftllm.train import unsloth

            unsloth.begin()
        vocabulary = _quiet_vocabulary(found.path, config.today)
    rows, processes = Rows(config, corpus, vocabulary), here()
    with clock.part("rows"), reporter.task("rendering", len(corpus.training), "conversations") as task:
        several = cores() if processes.count == 1 else 1  # a launcher has given the cores away
        plan = rows.plan(advance=paced(task, "rendered"), processes=several)
        held_out = rows.held_out()
    return Prepared(config, found, corpus, rows, plan, held_out, vocabulary, chosen, reason, device, parent, processes)


def _quiet_vocabulary(path: Path, today: date) -> DirectoryVocabulary:
    from transformers.utils import logging

    from ftllm.vocabulary import from_directory

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return from_directory(path, today)


def warnings_of(prepared: Prepared) -> list[str]:
    """What is unlikely to be meant, a line each."""
    plan, config = prepared.plan, prepared.config
    found = list(prepared.corpus.notes)
    spellings: Counter[str] = Counter()
    for file in prepared.corpus.files:
        spellings.update(file["thoughts"])
    if note := respelling(spellings, prepared.vocabulary.chat_template):
        found.append(note)
    if plan.refused:
        found.append(f"{len(plan.refused)} bad rows are left out, the first: {plan.refused[0].reason}")
    for what, rows in (("left out", plan.dropped), ("cut, losing the end of a turn", plan.cut)):
        if rows:
            source, tokens = rows[0]
            found.append(
                f"{len(rows)} rows longer than max_length {config.max_length} are {what}, "
                f"the first at {source} with {tokens} tokens"
            )
    if plan.masked:
        found.append(f"{len(plan.masked)} rows have no trained token and are left out, the first at {plan.masked[0]}")
    noise = config.noise
    if noise.unit != "none" and noise.ratio[0] > 0 and noise.clean_share < 1 and not plan.moved:
        found.append(
            f"the noise moves nothing: at noise.ratio {noise.ratio[0]:g} the user turns have too little to shuffle, "
            "and are trained as they are"
        )
    if config.patience and not prepared.held_out:
        found.append("patience has nothing to measure: hold rows out with --eval 5%, or give it a file")
    if config.warmup_steps >= prepared.steps:
        found.append(
            f"the warm-up of {config.warmup_steps} steps is no shorter than the training of {prepared.steps}: "
            "the learning rate never reaches its height"
        )
    return found
