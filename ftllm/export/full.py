"""`--verify full`, in the verifying process: perplexity, KL divergence and the likelihood per assistant token.

The reference's hidden states at all positions that count are computed once; its logits, which would fill gigabytes,
are made from them again for every file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ftllm.conversations import Conversation
from ftllm.errors import UserError
from ftllm.export import limits
from ftllm.export.blocks import Floats
from ftllm.export.heldout import conversations, plain_text, rows_of
from ftllm.export.tokens import plain_ids
from ftllm.likelihood import Likelihood, targets
from ftllm.llama.likelihood import llama_likelihood, nats
from ftllm.llama.model import Model
from ftllm.llama.perplexity import Chunk, chunk_length, compare, cut
from ftllm.render import Row
from ftllm.vocabulary import Vocabulary, from_directory

if TYPE_CHECKING:
    from ftllm.export.reference import Reference

CHUNKS = 16  # of 512 tokens: 4,080 positions, a KL divergence known to some percent of itself
BLOCK = 256  # positions whose logits are computed at once

Progress = Callable[[int, int], None]  # tokens done, and of how many


@dataclass(frozen=True)
class Texts:
    """What is measured on.

    Attributes:
        rows: for the likelihood; none where the model has no chat template.
        found: the conversations they were rendered from.
        origin: what to call them.
        today: the date that templates are told.
        trained: as `ftllm.export.heldout.Text` has it.
    """

    rows: Sequence[Row]
    chunks: Sequence[Chunk]
    found: Sequence[Conversation]
    origin: str
    max_length: int | None
    today: date
    trained: tuple[float, int] | None = None

    @property
    def tokens(self) -> int:
        """Evaluated for one model."""
        return sum(len(row.input_ids) for row in self.rows) + sum(len(chunk.ids) for chunk in self.chunks)


def read_texts(job: dict[str, Any], base: Path, bos: int | None) -> Texts:
    """Render the conversations with the base's own tokenizer.

    Args:
        job: an `ftllm.export.heldout.Text`.
        bos: what the model's sequences begin with; None where nothing is added.
    """
    found, longest = conversations(Path(job["path"])), job["max_length"]
    today = date.fromisoformat(job["today"])
    try:
        rows = rows_of(found, from_directory(base, today), longest)
    except UserError:  # no chat template
        rows = []
    stream = [token for row in rows for token in row.input_ids] or plain_ids(base, plain_text(found))
    length = chunk_length(len(stream))
    chunks = cut(stream, length, bos=bos, most=CHUNKS) if length else []
    trained = tuple(job["trained"]) if job.get("trained") else None
    return Texts(rows, chunks, found, job["origin"], longest, today, trained)


@dataclass(frozen=True)
class FullTruth:
    """What a file must predict on the texts.

    Attributes:
        states: the reference's hidden states `[positions, n_embd]` of each chunk, at its scored positions.
    """

    texts: Texts
    reference: Reference
    states: Sequence[Floats]
    likelihood: Likelihood | None

    @classmethod
    def of(cls, texts: Texts, reference: Reference, progress: Progress) -> FullTruth:
        """Compute it; `progress` is told the tokens done.

        Raises:
            UserError: on its own text the model is not the one that training measured.
        """
        sequences = [chunk.ids for chunk in texts.chunks] + [row.input_ids for row in texts.rows]
        wanted = [np.arange(chunk.scored.start, chunk.scored.stop) for chunk in texts.chunks]
        wanted += [np.array([position for position, _ in targets(row)]) for row in texts.rows]
        states = reference.hidden(sequences, wanted, lambda done: progress(done, texts.tokens))
        of_chunks, of_rows = states[: len(texts.chunks)], states[len(texts.chunks) :]
        per_row = [_row_nats(reference, row, found) for row, found in zip(texts.rows, of_rows, strict=True)]
        likelihood = Likelihood.of_rows(per_row) if per_row else None
        if likelihood is not None and texts.trained is not None:
            limits.require_trained(likelihood.per_token, likelihood.tokens, *texts.trained)
        return cls(texts, reference, of_chunks, likelihood)


def measure(model: Model, quant: str, truth: FullTruth, progress: Progress) -> tuple[dict[str, Any], list[str]]:
    """A file's figures on the texts, and its faults."""
    texts, faults = truth.texts, []
    figures: dict[str, Any] = {"text": texts.origin}
    done = 0

    def on_chunk(count: int) -> None:
        nonlocal done
        done = sum(len(chunk.ids) for chunk in texts.chunks[:count])
        progress(done, texts.tokens)

    if texts.chunks:
        distance = compare(
            model, texts.chunks, lambda number: truth.reference.logits(truth.states[number]), on_chunk=on_chunk
        )
        faults += limits.judge_distance(quant, distance)
        figures |= {
            "kl_divergence": distance.kl_divergence,
            "kl_divergence_error": distance.kl_error,
            "kl_divergence_quantiles": distance.kl_quantiles,
            "same_top": distance.same_top,
            "same_top_error": distance.same_top_error,
            "perplexity": distance.perplexity,
            "perplexity_error": distance.perplexity_error,
            "reference_perplexity": distance.reference_perplexity,
            "perplexity_ratio": distance.perplexity_ratio,
            "positions": distance.positions,
            "chunks": len(texts.chunks),
            "n_ctx": len(texts.chunks[0].ids),
        }
    if truth.likelihood is not None:
        model.today = texts.today
        faults += same_rows(model, texts)
    if truth.likelihood is not None and not faults:
        finished = done

        def on_row(index: int) -> None:
            nonlocal finished
            finished += len(texts.rows[index].input_ids)
            progress(finished, texts.tokens)

        found = llama_likelihood(model, texts.rows, on_row=on_row)
        faults += limits.judge_likelihood(quant, found.per_token, truth.likelihood.per_token)
        figures |= {
            "nll": found.per_token,
            "reference_nll": truth.likelihood.per_token,
            "nll_tokens": found.tokens,
            "nll_rows": len(texts.rows),
        }
    return figures, faults


def same_rows(vocabulary: Vocabulary, texts: Texts) -> list[str]:
    """The file's own template and tokenizer render the conversations to the base's ids and mask."""
    ours = rows_of(texts.found, vocabulary, texts.max_length)
    for theirs, row in zip(texts.rows, ours, strict=False):
        if theirs.input_ids != row.input_ids:
            return [f"it renders {theirs.source} to other tokens than the original tokenizer and chat template"]
        if theirs.labels != row.labels:
            return [f"it takes other tokens of {theirs.source} for the assistant's than the original chat template"]
    if len(ours) != len(texts.rows):
        return [f"it can render {len(ours)} of {len(texts.rows)} conversations of the text"]
    return []


def _row_nats(reference: Reference, row: Row, states: Floats) -> tuple[float, int]:
    """A row's (nats, tokens) under the reference, `BLOCK` positions at a time."""
    tokens = np.array([token for _, token in targets(row)])
    total = 0.0
    for start in range(0, len(tokens), BLOCK):
        part = slice(start, start + BLOCK)
        total += float(nats(reference.logits(states[part]), tokens[part]).sum())
    return total, len(tokens)
