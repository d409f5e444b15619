"""The trainer's table: which row comes when, and its tokens drawn when asked for."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from ftllm.render import IGNORED, Row
from ftllm.train.data import Plan, Rows


class Table:
    """Rows for the trainer, in each epoch that epoch's order and permutation.

    The order, like the noise, is a function of seed and epoch alone, and so is the same for any number of processes:
    each takes every so-manyth batch. Where the rows do not divide among them, the last batches are filled up with
    blank rows, which bear no loss, so that a step is the step that one process would make of the same rows.

    Args:
        rows: what draws them.
        plan: the rows there are.
        seed: of the order.
        multiple: the number of rows in a batch of all processes together; 1 fills nothing up.

    Attributes:
        epoch: set at the beginning of each epoch.
        seconds: spent drawing so far.
    """

    def __init__(self, rows: Rows, plan: Plan, seed: int, multiple: int = 1) -> None:
        self.rows = rows
        self.plan = plan
        self.seed = seed
        self.epoch = 0
        self.seconds = 0.0
        self.size = -(-len(plan.units) // multiple) * multiple
        self._ordered = -1
        self._order: list[int] = []

    def __call__(self, batch: dict[str, Sequence[int]]) -> dict[str, list[Sequence[int]]]:
        started = time.perf_counter()
        drawn = [self._row(place) for place in batch["place"]]
        self.seconds += time.perf_counter() - started
        return {"input_ids": [row.input_ids for row in drawn], "labels": [row.labels for row in drawn]}

    def _row(self, place: int) -> Row:
        if place >= len(self.plan.units):
            return Row((0,), (IGNORED,), "")
        return self.rows.draw(self.plan.units[self.order()[place]], self.epoch)

    def order(self) -> list[int]:
        """The plan's rows in the order of the present epoch (that of accelerate's seedable sampler)."""
        if self._ordered != self.epoch:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            self._order = torch.randperm(len(self.plan.units), generator=generator).tolist()
            self._ordered = self.epoch
        return self._order

    def first(self, count: int) -> list[Row]:
        """The first rows of the plan, as in the first epoch."""
        return [self.rows.draw(unit, 0) for unit in self.plan.units[:count]]
