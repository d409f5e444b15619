"""`metrics.jsonl`: one JSON object for each logged step, and what follows from them: the mean loss, the best step."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ftllm.errors import UserError
from ftllm.files import storage_error, write_text

STATE = "metrics.json"  # of a checkpoint: all that its metrics go on from
MEANS = ("loss", "grad_norm", "accuracy", "entropy")  # over the steps since the line before
SMOOTHING = 0.9  # weight of the past in the smoothed loss


class Metrics:
    """The metrics of a run, appended to as it goes.

    Every step is told; a line is written every `log_steps` steps. What lies between two lines is part of a checkpoint,
    so that a resumed run's lines are those of an uninterrupted one wherever it was interrupted.

    Args:
        path: of `metrics.jsonl`; None where another process writes it.
        log_steps: steps between two lines.
        state: of the checkpoint that training goes on from; lines beyond it, of steps that will be done again, are
            dropped.

    Attributes:
        lines: all logged steps so far.
    """

    def __init__(self, path: Path | None, log_steps: int = 1, state: dict[str, Any] | None = None) -> None:
        self.path = path
        self.log_steps = log_steps
        state = state or {"lines": [], "pending": [], "tokens": 0, "seconds": 0.0}
        self.lines: list[dict[str, Any]] = list(state["lines"])
        self._pending: list[dict[str, Any]] = list(state["pending"])
        self._tokens_before = int(state["tokens"])
        self._seconds_before = float(state["seconds"])
        self._tokens = self._tokens_before
        self._started = time.monotonic()
        self._aside = 0.0
        if path is not None:
            write_text(path, "".join(json.dumps(line) + "\n" for line in self.lines))

    def add(
        self,
        step: int,
        epoch: float,
        logs: dict[str, float],
        *,
        last: bool = False,
        measure: Callable[[], float] | None = None,
    ) -> dict[str, Any]:
        """Take a step as the trainer logs it, and write a line where one is due.

        Args:
            step: optimizer steps done.
            epoch: passes over the data done.
            logs: the trainer's; `num_tokens` counts since the process began.
            last: whether it is the last step, which always has a line.
            measure: gives the held-out likelihood where it is due; its time is not training's, and such a step always
                has a line.

        Returns:
            what is known of the step: `step`, `epoch`, `loss` (nats per trained token), `learning_rate`, `grad_norm`,
            `accuracy` (of the next token), `entropy` (nats), `tokens` read so far, `seconds` trained so far,
            `tokens_per_second`, and where it was measured `eval_nll` (nats per assistant token). A line in the file has
            the means of the steps since the line before.

        Raises:
            WorkError: no space left.
        """
        self._tokens = self._tokens_before + int(logs.get("num_tokens", 0))
        before = self._pending[-1] if self._pending else self.lines[-1] if self.lines else {"tokens": 0, "seconds": 0.0}
        seconds = self.seconds
        reading: dict[str, Any] = {
            "step": step,
            "epoch": round(epoch, 4),
            "loss": logs["loss"],
            "learning_rate": logs.get("learning_rate"),
            "grad_norm": logs.get("grad_norm"),
            "accuracy": logs.get("mean_token_accuracy"),
            "entropy": logs.get("entropy"),
            "tokens": self._tokens,
            "seconds": round(seconds, 3),
            "tokens_per_second": _rate(self._tokens - before["tokens"], seconds - before["seconds"]),
        }
        reading = {key: value for key, value in reading.items() if value is not None}
        if measure is not None:
            began = time.monotonic()
            reading["eval_nll"] = measure()
            self._aside += time.monotonic() - began
        self._pending.append(reading)
        if last or measure is not None or step % self.log_steps == 0:
            self._write(self._merged())
            self._pending = []
        return reading

    def _merged(self) -> dict[str, Any]:
        """The steps since the line before as one line."""
        line = dict(self._pending[-1])
        for key in MEANS:
            values = [reading[key] for reading in self._pending if key in reading]
            if values:
                line[key] = math.fsum(values) / len(values)
        before = self.lines[-1] if self.lines else {"tokens": 0, "seconds": 0.0}
        line["tokens_per_second"] = _rate(line["tokens"] - before["tokens"], line["seconds"] - before["seconds"])
        return line

    def _write(self, line: dict[str, Any]) -> None:
        if self.path is not None:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:
                raise storage_error(error, self.path) from error
        self.lines.append(line)

    @property
    def seconds(self) -> float:
        """Trained so far, measuring left out."""
        return self._seconds_before + time.monotonic() - self._started - self._aside

    @property
    def smoothed_loss(self) -> float:
        """The loss of all steps so far, the last ones weighing most."""
        readings = [*self.lines, *self._pending]
        return smoothed([reading["loss"] for reading in readings[-200:]])[-1] if readings else math.nan

    @property
    def train_loss(self) -> float:
        """Mean loss a step over the whole run, resumed or not; NaN before the first line."""
        total = steps = 0
        for line in self.lines:
            total += line["loss"] * (line["step"] - steps)
            steps = line["step"]
        return total / steps if steps else math.nan

    @property
    def measured(self) -> list[dict[str, Any]]:
        """The lines at which the held-out likelihood was measured."""
        return [line for line in self.lines if "eval_nll" in line]

    @property
    def best(self) -> dict[str, Any] | None:
        """The line with the lowest held-out likelihood, the earliest of equals; None before the first."""
        return min(self.measured, key=lambda line: line["eval_nll"], default=None)

    def exhausted(self, patience: int) -> bool:
        """Whether the last `patience` measurements were all no better than an earlier one; never with 0."""
        return bool(patience) and self._since_best() >= patience

    def _since_best(self) -> int:
        best = self.best
        return sum(line["step"] > best["step"] for line in self.measured) if best else 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        best = self.best
        return {
            "best": best["step"] if best else None,
            "lines": self.lines,
            "pending": self._pending,
            "tokens": self._tokens,
            "seconds": round(self.seconds, 3),
        }


def _rate(amount: float, seconds: float) -> float:
    return round(amount / max(seconds, 1e-9), 1)


def smoothed(values: Sequence[float], weight: float = SMOOTHING) -> list[float]:
    """Exponential moving average without the pull towards zero at its beginning (Adam's correction, 1412.6980)."""
    average, result = 0.0, []
    for count, value in enumerate(values, 1):
        average = weight * average + (1 - weight) * value
        result.append(average / (1 - weight**count))
    return result


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The metrics' state in a checkpoint.

    Raises:
        UserError: it is missing or damaged.
    """
    path = checkpoint / STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        assert {"best", "lines", "pending", "tokens", "seconds"} <= set(state)
    except (OSError, ValueError, AssertionError, TypeError):
        raise UserError(f"{path} is no state of a training", "remove this checkpoint; an older one is taken") from None
    return dict(state)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line that was cut short is left out."""
    if not path.is_file():
        return []
    lines: list[Any] = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return list(_steps(lines))


def _steps(lines: Iterable[Any]) -> Iterable[dict[str, Any]]:
    return (line for line in lines if isinstance(line, dict) and isinstance(line.get("step"), int))
