"""What a training would do and need, found without loading a weight: `ftllm train --dry-run`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ftllm.conversations import Conversation
from ftllm.progress import Reporter
from ftllm.render import IGNORED, Row
from ftllm.runs import library_versions
from ftllm.train import base, checkpoints
from ftllm.train.config import TrainConfig, to_yaml
from ftllm.train.corpus import load_corpus
from ftllm.train.memory import Memory, require_fit
from ftllm.train.prepare import Clock, Prepared, prepare, warnings_of

SAMPLES = 3


@dataclass(frozen=True)
class Needs:
    """What a training takes of the machine, in bytes.

    Attributes:
        memory: estimated peak.
        disk: what it may write at once.
        disk_free: where the runs are.
    """

    memory: Memory
    disk: int
    disk_free: int


def needs(prepared: Prepared, runs: Path) -> Needs:
    """What a training takes of the machine.

    Raises:
        UserError: it cannot fit into memory.
    """
    memory, trainable = require_fit(prepared)
    disk = checkpoints.bytes_needed(trainable, measured=bool(prepared.held_out))
    return Needs(memory, disk, checkpoints.free_bytes(runs.resolve()))


def dry_run(config: TrainConfig, reporter: Reporter, *, runs: Path, offline: bool = False) -> None:
    """Print what would be trained: on stdout, as text or as one JSON object.

    Raises:
        UserError: as training would.
    """
    clock = Clock()
    corpus = load_corpus(config, offline=offline, say=reporter.say)
    found = base.find(config.model, offline=offline)
    prepared = prepare(config, found, corpus, reporter, clock)
    needed = needs(prepared, runs)
    if reporter.json_lines:
        reporter.done(**facts(prepared, needed))
    else:
        _show(prepared, needed, Console(highlight=False, soft_wrap=True))


def facts(prepared: Prepared, needed: Needs) -> dict[str, Any]:
    """The dry run's findings for a program to read."""
    plan = prepared.plan
    return {
        "dry_run": True,
        "files": list(prepared.corpus.files),
        "rows": len(plan.units),
        "held_out": len(prepared.corpus.held_out),
        "tokens": plan.tokens,
        "trained_tokens": plan.trained,
        "longest": plan.longest,
        "dropped": [{"source": source, "tokens": tokens} for source, tokens in plan.dropped],
        "cut": [{"source": source, "tokens": tokens} for source, tokens in plan.cut],
        "masked": list(plan.masked),
        "refused": [{"source": row.source, "reason": row.reason} for row in plan.refused],
        "share_moved": plan.share_moved,
        "steps_per_epoch": prepared.steps_per_epoch,
        "steps": prepared.steps,
        "memory": {**asdict(needed.memory), "total": needed.memory.total},
        "disk": {"needed": needed.disk, "free": needed.disk_free},
        "backend": prepared.backend,
        "device": asdict(prepared.device),
        "base": {"path": str(prepared.base.path), "parameters": prepared.base.parameters()},
        "config": prepared.config.model_dump(mode="json"),
        "versions": library_versions(),
        "warnings": warnings_of(prepared),
    }


def _show(prepared: Prepared, needed: Needs, console: Console) -> None:
    plan, config, device, memory = prepared.plan, prepared.config, prepared.device, needed.memory

    def line(label: str, text: str) -> None:
        console.print(Text(f"{label:<10}", style="bold") + Text(text))

    line("model", f"{prepared.base.path} ({prepared.base.parameters() / 1e6:.1f} M weights)")
    line("device", f"{device.kind}, {device.precision}, backend {prepared.backend} ({prepared.reason})")
    for file in prepared.corpus.files:
        use = "held out" if file["use"] == "eval" else "messages"
        line("data", f"{file['path']} ({use}, {file['conversations']} conversations)")
    line("rows", f"{len(plan.units)} to train, {len(prepared.corpus.held_out)} held out; longest {plan.longest} tokens")
    line("tokens", f"{plan.tokens} an epoch, {plan.trained} of them trained (loss: {config.loss})")
    line("noise", f"{plan.share_moved:.1%} of {plan.units_of_text} units move" if plan.units_of_text else "none")
    line("steps", f"{prepared.steps} ({prepared.steps_per_epoch} an epoch)")
    parts = {
        "weights": memory.weights,
        "adapter": memory.adapter,
        "activations": memory.activations,
        "program": memory.program,
    }
    listed = ", ".join(f"{name} {amount / 2**20:.0f}" for name, amount in parts.items() if amount)
    line("memory", f"about {memory.total / 2**20:.0f} MiB ({listed}) of {memory.free / 2**20:.0f} free")
    line("disk", f"up to {needed.disk / 2**20:.0f} MiB of {needed.disk_free / 2**20:.0f} free, for checkpoints mostly")
    for warning in warnings_of(prepared):
        console.print(Text("warning   ", style="yellow") + Text(warning))
    console.print()
    for unit in plan.units[:SAMPLES]:
        before = unit.item.conversation
        after = prepared.rows.conversation(unit.item, 0)
        console.print(_turns(before, after))
        console.print(_masked(prepared, prepared.rows.draw(unit, 0)))
        console.print()
    console.print(Text("settings", style="bold"))
    console.print(Text(to_yaml(config).rstrip()))
    console.print(Text("versions", style="bold"))
    console.print(Text(", ".join(f"{name} {version}" for name, version in library_versions().items())))


def _turns(before: Conversation, after: Conversation) -> Text:
    """The user turns as they are in the data and as they are trained, what moved in red."""
    text = Text(f"{before.source}\n", style="bold")
    for old, new in zip(before.messages, after.messages, strict=True):
        if old.role != "user":
            continue
        text.append("  data   ", style="dim").append(f"{old.content}\n")
        text.append("  noised ", style="dim")
        was = old.content.split()
        for index, word in enumerate(new.content.split()):
            moved = index >= len(was) or was[index] != word
            text.append(word + " ", style="red" if moved else "")
        text.append("\n")
    return text


def _masked(prepared: Prepared, row: Row) -> Text:
    """A row's tokens, trained ones green, the others dim."""
    text = Text("  trained ", style="dim")
    trained = [label != IGNORED for label in row.labels]
    start = 0
    for end in range(1, len(trained) + 1):
        if end == len(trained) or trained[end] != trained[start]:
            piece = prepared.tokenizer.decode(list(row.input_ids[start:end]))
            text.append(piece.replace("\n", "\\n"), style="green" if trained[start] else "dim")
            start = end
    return text
