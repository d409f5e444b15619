"""What a person, or a program reading JSON lines, sees of a training."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ftllm.progress import Reporter, Task
from ftllm.runs import Run
from ftllm.train.prepare import Prepared, warnings_of


def announce(run: Run, prepared: Prepared, manifest: dict[str, Any], step: int, reporter: Reporter) -> None:
    """Say what is about to be trained, and what a person should know first."""
    plan, config, device = prepared.plan, prepared.config, prepared.device
    trainable = manifest["trainable_parameters"]
    held = len(prepared.corpus.held_out)
    reporter.say(
        f"{run.name}: {prepared.base.name}, {len(plan.units)} rows ({plan.tokens} tokens, {plan.trained} trained)"
        + (f", {held} held out" if held else "")
    )
    reporter.say(
        f"preset {config.preset}, {prepared.steps} steps on {device.kind} in {device.precision}, "
        f"{trainable / 1e6:.2f} M trainable parameters, backend {prepared.backend} ({prepared.reason})"
    )
    if plan.units_of_text:
        reporter.say(f"noise moves {plan.share_moved:.1%} of the user turns' {plan.units_of_text} units")
    for warning in warnings_of(prepared):
        reporter.warn(warning)
    if step:
        reporter.say(f"going on after step {step}")
    reporter.event(
        "start", run=str(run.path), steps=prepared.steps, step=step, rows=len(plan.units), tokens=plan.tokens,
        share_moved=round(plan.share_moved, 6), backend=prepared.backend, device=device.kind,
        precision=device.precision, trainable_parameters=trainable,
    )  # fmt: skip


def display(reporter: Reporter, task: Task) -> Callable[[dict[str, Any]], None]:
    """Show each logged step: on the bar, as a JSON line, or as a plain line every ten seconds."""
    shown = time.monotonic()

    def show(line: dict[str, Any]) -> None:
        nonlocal shown
        total = task.total or line["step"]
        speed = f"{line['tokens_per_second']:.0f} tokens/s"
        text = f"loss {line['loss']:.4f}  lr {line['learning_rate']:.2e}  {speed}"
        task.update(line["step"], text, **{key: value for key, value in line.items() if key != "step"})
        last = line["step"] >= total
        if not reporter.live and (last or time.monotonic() - shown >= 10):
            shown = time.monotonic()
            left = line["seconds"] / line["step"] * (total - line["step"])
            reporter.say(f"step {line['step']}/{total:.0f}  {text}" + ("" if last else f"  {_minutes(left)} left"))

    return show


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
