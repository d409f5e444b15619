"""What a training would do and need, found without loading a weight: `ftllm train --dry-run`."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ftllm.conversations import Conversation
from ftllm.progress import Reporter
from ftllm.render import IGNORED, Row
from ftllm.runs import library_versions
from ftllm.train import base
from ftllm.train.backend import Device, linear_layers, lora_targets
from ftllm.train.config import TrainConfig, to_yaml
from ftllm.train.corpus import load_corpus
from ftllm.train.prepare import Clock, Prepared, prepare, warnings_of

SAMPLES = 3
LIBRARIES = 900 * 2**20  # resident before a weight is loaded: torch, transformers, trl (measured, CPU build)
BYTES = {"float32": 4.0, "bfloat16": 2.0}
NF4 = 0.56  # bytes a weight: 4 bits, and double-quantized scales for blocks of 64 (arXiv 2305.14314)


@dataclass(frozen=True)
class Memory:
    """Estimated peak memory in bytes, and what is free.

    Attributes:
        weights: the base.
        adapter: its weights, their gradients and AdamW's two moments, in float32.
        activations: what the backward pass needs of the longest row, times the batch.
        program: the libraries themselves, where they share the memory (CPU).
        free: available now on the device.
    """

    weights: int
    adapter: int
    activations: int
    program: int
    free: int

    @property
    def total(self) -> int:
        return self.weights + self.adapter + self.activations + self.program


def estimate(prepared: Prepared) -> Memory:
    """Estimate the peak from the architecture, built without weights.

    Activations: each adapted or frozen linear layer keeps its input and its output's gradient alive (in + out values a
    token) in the precision of the computation, norms keep a float32 copy; gradient checkpointing keeps the hidden
    state of each layer and recomputes one layer at a time.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config, device = prepared.config, prepared.device
    architecture = AutoConfig.from_pretrained(str(prepared.base.path), local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture)
    lora_targets(model, config.lora.targets)
    layers = linear_layers(model)
    adapted = [layer for layer in layers if layer.part in config.lora.targets]
    trainable = sum(config.lora.rank * (layer.inputs + layer.outputs) for layer in adapted)
    text = architecture.get_text_config()
    width = BYTES[device.precision]
    tokens = config.batch_size * prepared.plan.longest
    language = sum(layer.inputs + layer.outputs for layer in layers if layer.part)
    norms = text.num_hidden_layers * text.hidden_size * 4 * 4
    per_token = language * width * 2 + norms * 2
    if config.gradient_checkpointing:
        per_token = per_token / text.num_hidden_layers + text.num_hidden_layers * text.hidden_size * width
    logits = min(tokens, 2048) * text.vocab_size * 4 * 2
    return Memory(
        weights=int(prepared.base.parameters() * (NF4 if device.four_bit else width)),
        adapter=trainable * 4 * 4,
        activations=int(tokens * per_token + logits),
        program=LIBRARIES if device.kind == "cpu" else 0,
        free=free_memory(device),
    )


def free_memory(device: Device) -> int:
    """Bytes a new program could take on the device now."""
    if device.kind == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text("ascii").splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def dry_run(config: TrainConfig, reporter: Reporter, *, offline: bool = False) -> None:
    """Print what would be trained: on stdout, as text or as one JSON object.

    Raises:
        UserError: as training would.
    """
    clock = Clock()
    corpus = load_corpus(config, offline=offline, say=reporter.say)
    found = base.find(config.model, offline=offline)
    prepared = prepare(config, found, corpus, reporter, clock)
    memory = estimate(prepared)
    if reporter.json_lines:
        reporter.done(**facts(prepared, memory))
    else:
        _show(prepared, memory, Console(highlight=False, soft_wrap=True))


def facts(prepared: Prepared, memory: Memory) -> dict[str, Any]:
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
        "memory": {**asdict(memory), "total": memory.total},
        "backend": prepared.backend,
        "device": asdict(prepared.device),
        "base": {"path": str(prepared.base.path), "parameters": prepared.base.parameters()},
        "config": prepared.config.model_dump(mode="json"),
        "versions": library_versions(),
        "warnings": warnings_of(prepared),
    }


def _show(prepared: Prepared, memory: Memory, console: Console) -> None:
    plan, config, device = prepared.plan, prepared.config, prepared.device

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
    for warning in warnings_of(prepared):
        console.print(Text("warning   ", style="yellow") + Text(warning))
    if memory.total > memory.free:
        hint = "lower batch_size or max_length, or turn gradient_checkpointing on"
        console.print(Text("warning   ", style="yellow") + Text(f"this may not fit into memory: {hint}"))
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
