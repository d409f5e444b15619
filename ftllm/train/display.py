"""What a person, or a program reading JSON lines, sees of a training."""

from __future__ import annotations

import time
from typing import Any

from ftllm.progress import BETWEEN_LINES, Reporter, Task, minutes
from ftllm.runs import Run
from ftllm.train import backend
from ftllm.train.metrics import Metrics
from ftllm.train.preflight import Needs
from ftllm.train.prepare import Prepared

FIRST_ESTIMATE = 10  # steps after which the whole time is estimated


def announce(
    run: Run, prepared: Prepared, needed: Needs, manifest: dict[str, Any], step: int, reporter: Reporter
) -> None:
    """Say what is about to be trained, and what a person should know first."""
    plan, config, device = prepared.plan, prepared.config, prepared.device
    trainable = manifest["trainable_parameters"]
    held = len(prepared.corpus.held_out)
    reporter.say(
        f"{run.name}: {prepared.base.name}, {len(plan.units)} rows ({plan.tokens} tokens, {plan.trained} trained)"
        + (f", {held} held out" if held else "")
    )
    reporter.say(
        f"stage {config.stage}, preset {config.preset}, {prepared.steps} steps on {device.kind} in {device.precision}, "
        f"{trainable / 1e6:.2f} M trainable parameters, backend {prepared.backend} ({prepared.reason})"
    )
    if prepared.parent:
        reporter.say(f"going on from {prepared.parent.summary}")
    if plan.units_of_text:
        reporter.say(f"noise moves {plan.share_moved:.1%} of the user turns' {plan.units_of_text} units")
    if device.kind == "cuda" and prepared.processes.count == 1 and (found := backend.gpus()) > 1:
        reporter.say(f"one of {found} GPUs is used; for all: torchrun --nproc-per-node {found} -m ftllm train ...")
    if prepared.processes.count > 1:
        kind = "a part of the model each (FSDP)" if prepared.processes.sharded else "a copy of the model each (DDP)"
        reporter.say(f"{prepared.processes.count} processes, {kind}")
    if config.report_to:
        reporter.say(f"metrics go to {' and '.join(config.report_to)} too")
    for warning in needed.warnings(prepared):
        reporter.warn(warning)
    if step:
        reporter.say(f"going on after step {step}")
    reporter.event(
        "start", run=str(run.path), steps=prepared.steps, step=step, rows=len(plan.units), tokens=plan.tokens,
        share_moved=round(plan.share_moved, 6), backend=prepared.backend, device=device.kind,
        precision=device.precision, trainable_parameters=trainable,
    )  # fmt: skip


class Display:
    """Shows each step: on the bar, as a JSON line, or as a plain line every ten seconds; and every measurement.

    Args:
        reporter: where it goes.
        task: the bar.
        metrics: of the run.
        prepared: what is trained.
    """

    def __init__(self, reporter: Reporter, task: Task, metrics: Metrics, prepared: Prepared) -> None:
        self.reporter = reporter
        self.task = task
        self.metrics = metrics
        self.device = prepared.device
        self.steps = prepared.steps
        self.shown = time.monotonic()
        self.first: dict[str, Any] | None = None  # the step that an estimate of the time counts from

    def show(self, reading: dict[str, Any]) -> None:
        """Show what `Metrics.add` returned."""
        step = reading["step"]
        smoothed, memory, left = self.metrics.smoothed_loss, backend.peak_memory(self.device), self._left(reading)
        text = f"loss {reading['loss']:.4f}  smoothed {smoothed:.4f}  lr {reading['learning_rate']:.2e}"
        text += f"  {reading['tokens_per_second']:.0f} tokens/s"
        if memory is not None:
            text += f"  {memory / 2**30:.1f} GiB"
        fields = {key: value for key, value in reading.items() if key != "step"}
        more = {"smoothed_loss": smoothed, "memory_bytes": memory, "seconds_left": left}
        self.task.update(step, text, **fields, **more)
        if "eval_nll" in reading:
            self._show_measurement(reading)
        last = step >= self.steps
        if not self.reporter.live and (last or time.monotonic() - self.shown >= BETWEEN_LINES):
            self.shown = time.monotonic()
            ending = "" if last or left is None else f"  {minutes(left)} left"
            self.reporter.say(f"step {step}/{self.steps}  {text}{ending}")

    def _show_measurement(self, reading: dict[str, Any]) -> None:
        best = self.metrics.best
        is_best = best is not None and best["step"] == reading["step"]
        compared = "the best so far" if is_best or best is None else f"step {best['step']} had {best['eval_nll']:.4f}"
        self.reporter.say(f"step {reading['step']}: held out {reading['eval_nll']:.4f} nats a token, {compared}")
        self.reporter.event("eval", step=reading["step"], eval_nll=reading["eval_nll"], best=is_best)

    def _left(self, reading: dict[str, Any]) -> float | None:
        """Seconds of training left, from the steps of this process but its first, which is slow; said once."""
        if self.first is None:
            self.first = reading
            return None
        done = reading["step"] - self.first["step"]
        left = float((reading["seconds"] - self.first["seconds"]) / done * (self.steps - reading["step"]))
        if done == FIRST_ESTIMATE - 1 and left >= BETWEEN_LINES:
            pace = (reading["seconds"] - self.first["seconds"]) / done
            self.reporter.say(
                f"at {pace:.2f} s a step, the {self.steps - reading['step']} steps left take {minutes(left)}"
            )
        return round(left, 1)
