"""What a training would do and need, found without loading a weight: `ftllm train --dry-run`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ftllm.data.preview import LEGEND, PLAIN_LEGEND, Example, show
from ftllm.progress import Reporter
from ftllm.runs import library_versions
from ftllm.train import base, checkpoints
from ftllm.train.config import TrainConfig, to_yaml
from ftllm.train.corpus import load_corpus
from ftllm.train.memory import ROOM, Memory, require_fit, short
from ftllm.train.prepare import Clock, Prepared, prepare, warnings_of
from ftllm.visible import visible

SAMPLES = 3
LISTED = 10  # rows that are left out


@dataclass(frozen=True)
class Needs:
    """What a training takes of the machine, in bytes, and what the model's shape leaves out of it.

    Attributes:
        memory: estimated peak.
        disk: what it may write at once.
        disk_free: where the runs are.
        left_out: what is not trained although asked for, in a sentence.
    """

    memory: Memory
    disk: int
    disk_free: int
    left_out: str | None = None

    def warnings(self, prepared: Prepared) -> list[str]:
        """What a person should know before it begins, a line each."""
        return [*([self.left_out] if self.left_out else []), *warnings_of(prepared)]


def needs(prepared: Prepared, runs: Path) -> Needs:
    """What a training takes of the machine.

    Raises:
        UserError: it cannot fit into memory.
    """
    memory, model = require_fit(prepared)
    disk = checkpoints.bytes_needed(model.trainable, measured=bool(prepared.held_out))
    return Needs(memory, disk, checkpoints.free_bytes(runs.resolve()), model.left_out)


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
        "from": prepared.parent.record() if prepared.parent else None,
        "backend": prepared.backend,
        "device": asdict(prepared.device),
        "base": {"path": str(prepared.base.path), "parameters": prepared.base.parameters()},
        "config": prepared.decided.model_dump(mode="json"),
        "versions": library_versions(),
        "warnings": needed.warnings(prepared),
    }


def _show(prepared: Prepared, needed: Needs, console: Console) -> None:
    plan, config, device, memory = prepared.plan, prepared.config, prepared.device, needed.memory

    def line(label: str, text: str) -> None:
        console.print(Text(f"{label:<10}", style="bold") + Text(text))

    line("model", f"{prepared.base.path} ({prepared.base.parameters() / 1e6:.1f} M weights)")
    if prepared.parent:
        line("from", prepared.parent.summary)
    line("device", f"{device.kind}, {device.precision}, backend {prepared.backend} ({prepared.reason})")
    for file in prepared.corpus.files:
        use = ", held out" if file["use"] == "eval" else ""
        line("data", f"{file['path']} ({file['format']}, {file['conversations']} conversations{use})")
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
    if device.kind == "cpu" and not short(memory):
        kept = f"up to {ROOM * memory.total / 2**20:.0f} MiB may be in use"
        line("", f"freed memory is kept for speed where there is plenty: {kept}")
    line("disk", f"up to {needed.disk / 2**20:.0f} MiB of {needed.disk_free / 2**20:.0f} free, for checkpoints mostly")
    for warning in needed.warnings(prepared):
        console.print(Text("warning   ", style="yellow") + Text(warning))
    for label, rows in _left_out(prepared).items():
        console.print(Text(f"{label}: {len(rows)}", style="bold"))
        for row in rows[:LISTED]:
            console.print(Text(f"          {visible(row)}"))
        if len(rows) > LISTED:
            console.print(Text(f"          and {len(rows) - LISTED} more (--json lists them)", style="dim"))
    console.print()
    console.print(Text(PLAIN_LEGEND if console.color_system is None or console.no_color else LEGEND, style="dim"))
    for unit in plan.units[:SAMPLES]:
        after = prepared.rows.noised(unit.item, 0)
        show(Example(unit.item.conversation, after, (prepared.rows.draw(unit, 0),)), prepared.tokenizer, console)
    console.print(Text("settings", style="bold"))
    console.print(Text(to_yaml(prepared.decided).rstrip()))
    console.print(Text("versions", style="bold"))
    console.print(Text(", ".join(f"{name} {version}" for name, version in library_versions().items())))


def _left_out(prepared: Prepared) -> dict[str, list[str]]:
    """The rows that training does not see, or not to their end, each with its reason."""
    plan, limit = prepared.plan, prepared.config.max_length
    found = {
        "left out": [f"{source}: {tokens} tokens, beyond max_length {limit}" for source, tokens in plan.dropped]
        + [f"{source}: no token of it would be trained" for source in plan.masked]
        + [row.reason for row in plan.refused],
        "cut, losing the end of a turn": [
            f"{source}: {tokens} tokens, cut to max_length {limit}" for source, tokens in plan.cut
        ],
    }
    return {label: rows for label, rows in found.items() if rows}
