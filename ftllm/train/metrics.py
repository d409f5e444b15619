"""`metrics.jsonl`: one JSON object for each logged step."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from ftllm.files import storage_error, write_text


class Metrics:
    """The metrics of a run, appended to as it goes.

    Args:
        path: of `metrics.jsonl`.
        step: what is already trained; lines beyond it, of steps that will be done again, are dropped.

    Attributes:
        lines: all logged steps so far.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        self.path = path
        self.lines = [line for line in read(path) if line["step"] <= step] if step else []
        last = self.lines[-1] if self.lines else {}
        self._tokens_before = int(last.get("tokens", 0))
        self._seconds_before = float(last.get("seconds", 0.0))
        self._started = time.monotonic()
        write_text(path, "".join(json.dumps(line) + "\n" for line in self.lines))

    def add(self, step: int, epoch: float, logs: dict[str, float]) -> dict[str, Any]:
        """Append a step as the trainer logs it.

        Returns:
            the line: `step`, `epoch`, `loss` (nats per trained token since the line before), `learning_rate`,
            `grad_norm`, `accuracy` (of the next token), `entropy` (nats), `tokens` read so far, `seconds` trained so
            far, `tokens_per_second` since the line before.

        Raises:
            WorkError: no space left.
        """
        before = self.lines[-1] if self.lines else {"tokens": 0, "seconds": 0.0}
        tokens = self._tokens_before + int(logs.get("num_tokens", 0))
        seconds = self._seconds_before + time.monotonic() - self._started
        line = {
            "step": step,
            "epoch": round(epoch, 4),
            "loss": logs["loss"],
            "learning_rate": logs.get("learning_rate"),
            "grad_norm": logs.get("grad_norm"),
            "accuracy": logs.get("mean_token_accuracy"),
            "entropy": logs.get("entropy"),
            "tokens": tokens,
            "seconds": round(seconds, 3),
            "tokens_per_second": round((tokens - before["tokens"]) / max(seconds - before["seconds"], 1e-9), 1),
        }
        line = {key: value for key, value in line.items() if value is not None}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise storage_error(error, self.path) from error
        self.lines.append(line)
        return line

    @property
    def train_loss(self) -> float:
        """Mean loss a step over the whole run, resumed or not; NaN before the first."""
        total = steps = 0
        for line in self.lines:
            total += line["loss"] * (line["step"] - steps)
            steps = line["step"]
        return total / steps if steps else math.nan


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line that was cut short is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get("step"), int)]
