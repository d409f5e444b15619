"""The conversations of a run: read, set aside for measuring, weighted."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ftllm.conversations import Conversation
from ftllm.data import sources
from ftllm.data.lines import Fault, stop
from ftllm.errors import UserError
from ftllm.progress import BETWEEN_LINES
from ftllm.train.config import TrainConfig
from ftllm.train.values import share_of

Say = Callable[[str], None]


@dataclass(frozen=True)
class Numbered:
    """A conversation and its index in the data, which keys its noise; copies by weight have indices of their own."""

    index: int
    conversation: Conversation


@dataclass(frozen=True)
class Refused:
    """A row left out, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class Corpus:
    """The conversations of a run.

    Attributes:
        training: those trained on, by weight.
        held_out: those the likelihood is measured on; never noised.
        files: what the manifest says of each file (`sources.record`), training files first.
        pinned: `data` as it gives the same files again: Hub data sets with their commit.
        pinned_eval: the same of `eval`.
        notes: what a person should know of the data, a line each.
        refused: rows that are no conversations, where `bad_rows` is `drop`.
    """

    training: tuple[Numbered, ...]
    held_out: tuple[Conversation, ...]
    files: tuple[dict[str, Any], ...]
    pinned: tuple[str, ...] = ()
    pinned_eval: str | float | None = None
    notes: tuple[str, ...] = ()
    refused: tuple[Refused, ...] = ()


@dataclass
class _Reading:
    """What gathers while sources are read."""

    offline: bool
    say: Say
    fault: Fault = stop
    files: list[dict[str, Any]] = field(default_factory=list)
    pinned: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def read(self, text: str, use: str) -> tuple[list[Conversation], float]:
        """A source's conversations and its weight."""
        source = sources.source_of(text)
        found = sources.find(source, offline=self.offline, say=self.say)
        self.pinned.append(found.pinned)
        if found.left_out:
            listed = ", ".join(found.left_out[:4]) + (", ..." if len(found.left_out) > 4 else "")
            self.notes.append(f"{source.text}: the split {found.split} is read; not of it: {listed}")
        conversations: list[Conversation] = []
        for file in found.files:
            facts, said = sources.FileFacts(), time.monotonic()
            for conversation in sources.read_conversations(file, facts, self.fault):
                conversations.append(conversation)
                if time.monotonic() - said >= BETWEEN_LINES:
                    said = time.monotonic()
                    self.say(f"read {facts.rows} conversations of {file.label}")
            self.files.append(sources.record(file, facts, use))
        return conversations, source.weight


def load_corpus(config: TrainConfig, *, offline: bool = False, say: Say = lambda _: None) -> Corpus:
    """Read the data and set the held-out part aside.

    Raises:
        UserError: a source is missing or malformed, or nothing is left to train on.
        WorkError: a download failed.
    """
    refused: list[Refused] = []

    def note(fault: UserError) -> None:
        refused.append(Refused(fault.message.partition(": ")[0], fault.message))

    reading = _Reading(offline, say, note if config.bad_rows == "drop" else stop)
    parts = [reading.read(text, "data") for text in config.data]
    pinned = tuple(reading.pinned)
    numbered: list[list[Numbered]] = []
    total = 0
    for conversations, _ in parts:
        numbered.append([Numbered(total + i, conversation) for i, conversation in enumerate(conversations)])
        total += len(conversations)
    share = None if config.eval is None else share_of(config.eval)
    chosen: set[int] = set()
    held_out: list[Conversation] = []
    pinned_eval = config.eval
    if share is not None:
        chosen = _held_out(share, total, config)
        held_out = [item.conversation for part in numbered for item in part if item.index in chosen]
    elif config.eval is not None:
        held_out, _ = reading.read(str(config.eval), "eval")
        pinned_eval = reading.pinned[-1]
    training: list[Numbered] = []
    for text, (_, weight), part in zip(config.data, parts, numbered, strict=True):
        kept = [item for item in part if item.index not in chosen]
        training += weighted(kept, weight, total, f"{config.seed} {text}")
    both = {item.conversation.messages for item in training} & {conversation.messages for conversation in held_out}
    if both:
        reading.notes.append(f"{len(both)} held-out conversations are trained on too: their likelihood says little")
    return Corpus(
        tuple(training),
        tuple(held_out),
        tuple(reading.files),
        pinned,
        pinned_eval,
        tuple(reading.notes),
        tuple(refused),
    )


def weighted(items: Sequence[Numbered], weight: float, total: int, key: str) -> list[Numbered]:
    """Each of `items` as often as `weight` says: whole times all of them, and the rest of it a share, drawn by `key`.

    A copy's index is its row's, moved on by a multiple of `total`, so that copies are noised differently.

    Raises:
        UserError: nothing is left.
    """
    whole = int(weight)
    copies = [Numbered(item.index + copy * total, item.conversation) for copy in range(whole) for item in items]
    count = round((weight - whole) * len(items))
    for place in sorted(random.Random(f"ftllm weight {key}").sample(range(len(items)), count)):
        copies.append(Numbered(items[place].index + whole * total, items[place].conversation))
    if items and not copies:
        message = f"a weight of {weight:g} leaves none of {len(items)} conversations"
        raise UserError(message, "raise the weight, or leave the data out")
    return copies


def _held_out(share: float, total: int, config: TrainConfig) -> set[int]:
    """Indices of the conversations that are measured on."""
    count = max(1, round(share * total))
    if count >= total:
        message = f"holding out {config.eval} of {total} conversations leaves none to train on"
        raise UserError(message, "take a smaller share, or give a file of held-out conversations")
    return set(random.Random(f"ftllm held out {config.seed}").sample(range(total), count))
