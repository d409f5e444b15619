"""From conversations to rows of token ids: what is trained in which epoch, and what is measured on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ftllm.conversations import Conversation
from ftllm.errors import UserError
from ftllm.noise import Noised, NoiseSettings, noised
from ftllm.render import IGNORED, Loss, Row, render
from ftllm.train.config import TrainConfig
from ftllm.train.corpus import Corpus, Numbered, Refused
from ftllm.train.spread import spread
from ftllm.vocabulary import DirectoryVocabulary


@dataclass(frozen=True)
class Unit:
    """What one row of the trainer's table stands for: one of the rows that a conversation renders to."""

    item: Numbered
    part: int


@dataclass(frozen=True)
class Plan:
    """What will be trained, counted on the first epoch.

    Attributes:
        units: the rows, in the data's order.
        trained: how many tokens bear loss.
        lengths: tokens of each row.
        dropped: (source, tokens) of rows left out for their length.
        cut: (source, tokens) of rows whose end was cut off.
        masked: sources of rows in which no token would bear loss.
        refused: conversations left out for another reason, with `bad_rows: drop`.
        moved: places of user text that hold another unit than in the data.
        units_of_text: how many such places there are.
    """

    units: tuple[Unit, ...]
    trained: int
    lengths: tuple[int, ...]
    dropped: tuple[tuple[str, int], ...]
    cut: tuple[tuple[str, int], ...]
    masked: tuple[str, ...]
    refused: tuple[Refused, ...]
    moved: int
    units_of_text: int

    @property
    def tokens(self) -> int:
        """In all rows together."""
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(self.lengths)

    @property
    def share_moved(self) -> float:
        """Share of the user text's units that noise really moves."""
        return self.moved / self.units_of_text if self.units_of_text else 0.0


class _Look(NamedTuple):
    """What the rows of a conversation are like.

    Attributes:
        rows: of each the tokens it keeps, those beyond `max_length`, and those that bear loss.
        moved: places of user text that hold another unit than in the data.
        units: how many such places there are.
        refusal: why it renders to no row.
    """

    rows: tuple[tuple[int, int, int], ...]
    moved: int
    units: int
    refusal: str | None


class Rows:
    """The training rows of any epoch: a pure function of (seed, epoch, row).

    Args:
        config: of the run.
        corpus: what is trained on.
        vocabulary: tokenizer and chat template of the base.
    """

    def __init__(self, config: TrainConfig, corpus: Corpus, vocabulary: DirectoryVocabulary) -> None:
        self.config = config
        self.corpus = corpus
        self.vocabulary = vocabulary
        self.noise: NoiseSettings | None = config.noise.settings()

    def conversation(self, item: Numbered, epoch: int) -> Conversation:
        """A conversation as it is trained in `epoch` (from 0)."""
        return self.noised(item, epoch).conversation

    def noised(self, item: Numbered, epoch: int) -> Noised:
        """A conversation as it is trained in `epoch`, and how much of it moved."""
        if self.noise is None:
            return Noised(item.conversation, ((),) * len(item.conversation.messages), 0)
        return noised(
            item.conversation,
            self.noise,
            seed=self.config.seed,
            epoch=epoch,
            row=item.index,
            progress=epoch / max(1, self.config.epochs - 1),
            cut=self.vocabulary.spans,
        )

    def plan(self, advance: Callable[[int], None] | None = None, processes: int = 1) -> Plan:
        """Render the first epoch, and count.

        Args:
            advance: called with the number of conversations rendered so far.
            processes: how many may work on it at once.

        Raises:
            UserError: a row cannot be rendered, or no row is left.
            WorkError: a process was killed.
        """
        units: list[Unit] = []
        dropped: list[tuple[str, int]] = []
        cut: list[tuple[str, int]] = []
        masked: list[str] = []
        refused = list(self.corpus.refused)
        lengths: list[int] = []
        trained = moved = pieces = 0
        training = self.corpus.training
        alone = Rows(self.config, Corpus((), (), ()), self.vocabulary)  # other processes are sent what they look at
        for done, (item, look) in enumerate(zip(training, spread(alone._look, training, processes), strict=True), 1):
            source = item.conversation.source
            if look.refusal is not None:
                refused.append(Refused(source, look.refusal))
            kept = 0
            for part, (tokens, beyond, bearing) in enumerate(look.rows):
                if beyond and self.config.too_long == "drop":
                    dropped.append((source, tokens + beyond))
                elif not bearing:
                    masked.append(source)
                else:
                    if beyond:
                        cut.append((source, tokens + beyond))
                    units.append(Unit(item, part))
                    lengths.append(tokens)
                    trained += bearing
                    kept += 1
            if kept:
                moved += look.moved
                pieces += look.units
            if advance is not None:
                advance(done)
        if not units:
            raise self._nothing_left(dropped, masked, refused)
        return Plan(
            tuple(units), trained, tuple(lengths), tuple(dropped), tuple(cut), tuple(masked), tuple(refused), moved,
            pieces,
        )  # fmt: skip

    def _look(self, item: Numbered) -> _Look:
        """What the first epoch's rows of a conversation are like."""
        after = self.noised(item, 0)
        refused: list[Refused] = []
        rows = map(self._shortened, self._rendered(after.conversation, self.config.loss, refused))
        counts = tuple((len(row.input_ids), row.cut, row.trained) for row in rows)
        return _Look(counts, after.moved, after.units, refused[0].reason if refused else None)

    def draw(self, unit: Unit, epoch: int) -> Row:
        """The row of `unit` in `epoch`.

        A fresh permutation may take a token more or less. Where it no longer fits into `max_length`, the row keeps
        the permutation of the first epoch, which was seen to fit, so that no end of a turn is lost unnoticed.
        """
        rows = render(self.conversation(unit.item, epoch), self.vocabulary, loss=self.config.loss)
        if epoch and (unit.part >= len(rows) or len(rows[unit.part].input_ids) > self.config.max_length):
            rows = render(self.conversation(unit.item, 0), self.vocabulary, loss=self.config.loss)
        return self._shortened(rows[unit.part])

    def held_out(self) -> list[Row]:
        """The rows the likelihood is measured on: whole, clean, and assistant turns only, whatever is trained.

        Raises:
            UserError: none fits into `max_length`.
        """
        rows = [row for item in self.corpus.held_out for row in self._rendered(item, "assistant", [])]
        fitting = [row for row in rows if len(row.input_ids) <= self.config.max_length]
        if rows and not fitting:
            longest = max(len(row.input_ids) for row in rows)
            message = f"no held-out row fits into max_length {self.config.max_length}"
            raise UserError(message, f"raise max_length; the longest has {longest} tokens")
        return fitting

    def _rendered(self, conversation: Conversation, loss: Loss, refused: list[Refused]) -> list[Row]:
        """A conversation's rows; none, noted in `refused`, where it cannot be rendered and bad rows are dropped."""
        try:
            return render(conversation, self.vocabulary, loss=loss)
        except UserError as error:
            if self.config.bad_rows == "stop":
                raise
            refused.append(Refused(conversation.source, error.message))
            return []

    def _shortened(self, row: Row) -> Row:
        limit = self.config.max_length
        beyond = len(row.input_ids) - limit
        if beyond <= 0:
            return row
        return Row(row.input_ids[:limit], row.labels[:limit], row.source, row.cut + beyond)

    def _nothing_left(
        self, dropped: Sequence[tuple[str, int]], masked: Sequence[str], refused: Sequence[Refused]
    ) -> UserError:
        if dropped:
            shortest = min(tokens for _, tokens in dropped)
            message = f"no row fits into max_length {self.config.max_length}: all {len(dropped)} are longer"
            return UserError(message, f"raise max_length (the shortest has {shortest} tokens), or set too_long to cut")
        if masked:
            message = f"{masked[0]}: no token of any row would be trained; every label is masked"
            return UserError(message, "raise max_length, or give answers that are not empty")
        if refused:
            return UserError(f"no row can be trained on; the first: {refused[0].reason}", "mend the data")
        return UserError("there is no conversation to train on", "give data with --data")


def collate(rows: Sequence[dict[str, Sequence[int]]], pad_id: int) -> dict[str, Any]:
    """Rows as one batch, padded on the right.

    Returns:
        `input_ids`, `labels` and `attention_mask`, int64 [rows, longest row].
    """
    import torch

    width = max(len(row["input_ids"]) for row in rows)
    shape = (len(rows), width)
    input_ids = torch.full(shape, pad_id, dtype=torch.int64)
    labels = torch.full(shape, IGNORED, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    for i, row in enumerate(rows):
        length = len(row["input_ids"])
        input_ids[i, :length] = torch.tensor(row["input_ids"])
        labels[i, :length] = torch.tensor(row["labels"])
        attention_mask[i, :length] = 1
    return {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}


def pack(rows: Sequence[dict[str, Sequence[int]]]) -> dict[str, Any]:
    """Rows one after another in one long row, without padding.

    The positions start again with each row, from which transformers' masks keep the rows apart.

    Returns:
        `input_ids`, `labels` and `position_ids`, int64 [1, tokens].
    """
    import torch

    input_ids = [token for row in rows for token in row["input_ids"]]
    # A row's first token is predicted by nothing; here it would be by the row before.
    labels = [label for row in rows for label in (IGNORED, *row["labels"][1:])]
    positions = [position for row in rows for position in range(len(row["input_ids"]))]
    return {
        "input_ids": torch.tensor([input_ids]),
        "labels": torch.tensor([labels]),
        "position_ids": torch.tensor([positions]),
    }


def _columns(input_ids: Sequence[int], labels: Sequence[int]) -> dict[str, Sequence[int]]:
    return {"input_ids": input_ids, "labels": labels}


def keeps_rows_apart(model: Any, rows: Sequence[Row]) -> bool:
    """Whether the model gives a packed row the logits it gives the row alone, seen by trying the first two."""
    import torch

    if len(rows) < 2:
        return True
    first, second = (_columns(row.input_ids[:64], row.labels[:64]) for row in rows[:2])
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            packed = pack([first, second])
            alone = model(**{**pack([second]), "labels": None}, use_cache=False).logits[0].float()
            together = model(**{**packed, "labels": None}, use_cache=False).logits[0].float()
    finally:
        model.train(training)
    difference = (together[len(first["input_ids"]) :] - alone).norm() / alone.norm()
    return bool(difference < (1e-3 if next(model.parameters()).dtype == torch.float32 else 3e-2))
