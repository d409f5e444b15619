"""The held-out rows of a run: their likelihood before, during and after training, and the adapter that was best."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ftllm.errors import WorkError
from ftllm.likelihood import Likelihood, torch_likelihood
from ftllm.render import Row
from ftllm.train.processes import Processes


@dataclass(frozen=True)
class HeldOut:
    """What is measured on, and when.

    Attributes:
        rows: whole, clean, assistant turns only.
        every: steps between two measurements.
        patience: training ends after so many measurements without a better one; 0: never.
        keeps_best: whether the adapter of the best measurement is set aside.
        note: tells a person how far a measurement is.
    """

    rows: list[Row]
    every: int
    patience: int
    keeps_best: bool
    note: Callable[[str], None]

    def due(self, step: int, steps: int) -> bool:
        """Whether it is measured after `step` of `steps`: the last one always."""
        return bool(self.rows) and (step % self.every == 0 or step >= steps)

    def likelihood(self, model: Any, processes: Processes) -> Likelihood:
        """The likelihood of the rows now.

        Each of several processes measures its share of them; but all measure all where they need each other for it.

        Raises:
            WorkError: it is no number.
        """

        sharers = 1 if processes.sharded else processes.count
        rows = self.rows[processes.rank % sharers :: sharers]

        def measured(index: int) -> None:
            self.note(f"measuring held-out rows {index + 1}/{len(rows)}")

        shares = processes.gathered(torch_likelihood(model, rows, on_row=measured).per_row)
        per_row = [shares[i % sharers][i // sharers] for i in range(len(self.rows))]
        found = Likelihood.of_rows(per_row)
        if not math.isfinite(found.per_token):
            raise WorkError(
                f"the likelihood of the held-out rows became {found.per_token}",
                "lower learning_rate, or set precision to float32",
            )
        return found
