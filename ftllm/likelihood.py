"""Negative log-likelihood per assistant token: the number that runs through the whole pipeline.

Computed here with a transformers model, in `ftllm.llama.likelihood` with a GGUF, from the same rows.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ftllm.errors import UserError
from ftllm.render import IGNORED, Row

CHUNK = 256  # positions whose logits are there at once: 256 x 262144 of them in float32 are 256 MiB


@dataclass(frozen=True)
class Likelihood:
    """A negative log-likelihood in nats.

    Attributes:
        total: over all labelled tokens.
        tokens: how many were labelled.
        per_row: (nats, tokens) of each row, in order.
    """

    total: float
    tokens: int
    per_row: tuple[tuple[float, int], ...]

    @property
    def per_token(self) -> float:
        """Nats per labelled token; NaN when there are none."""
        return self.total / self.tokens if self.tokens else math.nan

    @classmethod
    def of_rows(cls, per_row: Sequence[tuple[float, int]]) -> Likelihood:
        """The sum of rows' (nats, tokens)."""
        return cls(math.fsum(nats for nats, _ in per_row), sum(tokens for _, tokens in per_row), tuple(per_row))


def targets(row: Row) -> list[tuple[int, int]]:
    """The (position, token) pairs that count: the logits at `position` predict `token`, the id that follows."""
    return [(i - 1, label) for i, label in enumerate(row.labels) if i > 0 and label != IGNORED]


def torch_likelihood(model: Any, rows: Sequence[Row], *, on_row: Callable[[int], None] | None = None) -> Likelihood:
    """Likelihood of `rows` under a transformers causal model, row by row, without dropout.

    Logits are computed in the model's own precision and normalised in float32, `CHUNK` positions at a time where the
    model can compute those of chosen positions; the sums are in float64.

    Args:
        model: a causal language model; a PEFT model is one too. Its training mode is left as it was.
        rows: from `ftllm.render`.
        on_row: called with each row's index when it is done.

    Raises:
        UserError: a row holds an id the model does not have.
    """
    import torch

    device = next(model.parameters()).device
    keeps = "logits_to_keep" in inspect.signature(_innermost(model).forward).parameters
    was_training = model.training
    model.eval()
    per_row: list[tuple[float, int]] = []
    try:
        with torch.no_grad():  # and no inference mode: weights that FSDP puts together in it could not be trained
            for number, row in enumerate(rows):
                per_row.append(_row_nats(model, row, device, keeps))
                if on_row is not None:
                    on_row(number)
    finally:
        model.train(was_training)
    return Likelihood.of_rows(per_row)


def _row_nats(model: Any, row: Row, device: Any, keeps: bool) -> tuple[float, int]:
    """One row's (nats, tokens); `keeps`: the model can compute the logits of chosen positions only."""
    import torch

    wanted = targets(row)
    if not wanted:
        return 0.0, 0
    embedded = model.get_input_embeddings().num_embeddings
    if max(row.input_ids) >= embedded:
        raise UserError(
            f"{row.source}: token {max(row.input_ids)} is beyond the model's {embedded} embeddings",
            "the tokenizer belongs to another model",
        )
    ids = torch.tensor([row.input_ids], device=device)
    positions = torch.tensor([position for position, _ in wanted], device=device)
    tokens = torch.tensor([token for _, token in wanted], device=device)
    nats = 0.0
    with _running_once(getattr(_innermost(model), "base_model", None) if keeps else None):
        logits = None if keeps else model(input_ids=ids, use_cache=False).logits[0, positions]
        for start in range(0, len(wanted), CHUNK):
            chunk = slice(start, start + CHUNK)
            if logits is None:
                some = model(input_ids=ids, use_cache=False, logits_to_keep=positions[chunk]).logits[0]
            else:
                some = logits[chunk]
            scores = torch.log_softmax(some.float(), dim=-1)
            nats -= scores.gather(1, tokens[chunk, None]).double().sum().item()
    return nats, len(wanted)


@contextmanager
def _running_once(decoder: Any | None) -> Iterator[None]:
    """Have the layers of a model run at its first call only, so that more calls cost no more than its head.

    A head may scale and cap logits in its model's own way: so the model computes them, a chunk of positions a call.
    """
    if decoder is None:
        yield
        return
    own = vars(decoder).get("forward")
    forward = decoder.forward
    found: list[Any] = []

    def remembered(*arguments: Any, **options: Any) -> Any:
        if not found:
            found.append(forward(*arguments, **options))
        return found[0]

    decoder.forward = remembered
    try:
        yield
    finally:
        del decoder.forward
        if own is not None:
            decoder.forward = own


def _innermost(model: Any) -> Any:
    """The transformers model inside a PEFT model, else the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
