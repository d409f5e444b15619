"""The text of `--verify full`: the conversations a run held out, else a few that come with ftllm.

Rendered as for training, they are rows with a mask, for the likelihood; one after the other they are the stream that
perplexity and KL divergence are measured on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from ftllm.conversations import Conversation
from ftllm.data.rows import read_rows
from ftllm.data.shapes import conversation_of
from ftllm.errors import UserError
from ftllm.render import Row, render
from ftllm.runs import Run, day_of
from ftllm.vocabulary import Vocabulary

OWN = Path(__file__).with_name("conversations.jsonl")
OWN_ORIGIN = "conversations that come with ftllm"
LONGEST = 2048  # tokens of a row; attention's memory grows with their square
MOST = 16384  # tokens of all rows: a likelihood known to about a hundredth of a nat
# What templates that write the date are told where nothing was trained: the same on every day, for the same files.
ANY_DAY = date(2026, 1, 1)


@dataclass(frozen=True)
class Text:
    """Where the conversations are, and what to call them.

    Attributes:
        max_length: rows longer than this were not measured on in training either; None where nothing was trained.
        today: the date that templates are told (ISO 8601): the one they were told in training.
        trained: what training measured on it at its end: nats a token, and of how many; None where it did not, or with
            the base in 4 bits, which are other weights than those that are merged into.
    """

    path: Path
    origin: str
    max_length: int | None = None
    today: str = ANY_DAY.isoformat()
    trained: tuple[float, int] | None = None

    @property
    def own(self) -> bool:
        """Whether they come with ftllm: nothing was held out."""
        return self.path == OWN


def text_of(run: Run | None) -> Text:
    """What a run held out, else our own conversations.

    Raises:
        UserError: a run's conversations cannot be read.
    """
    if run is None:
        return Text(OWN, OWN_ORIGIN)
    manifest = run.read_manifest()
    today = (day_of(manifest) or ANY_DAY).isoformat()
    if not run.held_out.is_file():
        return Text(OWN, OWN_ORIGIN, today=today)
    try:
        conversations(run.held_out)
    except UserError as error:
        raise UserError(
            f"what {run.name} held out cannot be read: {error.message}",
            f"remove {run.held_out} to measure on ftllm's own conversations",
        ) from None
    config, results = manifest.get("config") or {}, manifest.get("results") or {}
    origin = f"conversations held out of {run.name}"
    four_bit = config.get("load_in_4bit") or (manifest.get("base") or {}).get("four_bit")
    known = not four_bit and "eval_nll" in results and "eval_tokens" in results
    trained = (float(results["eval_nll"]), int(results["eval_tokens"])) if known else None
    return Text(run.held_out, origin, config.get("max_length"), today, trained)


def conversations(path: Path) -> list[Conversation]:
    """The conversations of a data file."""
    return [conversation_of(row, f"{path.name}:{line}") for line, row in read_rows(path)]


def rows_of(
    found: Sequence[Conversation], vocabulary: Vocabulary, max_length: int | None = None, most: int = MOST
) -> list[Row]:
    """Rows as for training, up to about `most` tokens, spread evenly over the conversations.

    Those that the template refuses or that are longer than `max_length` are left out, as in training; what is beyond
    `LONGEST` tokens is cut.
    """
    rendered = []
    for conversation in found:
        try:
            rows = render(conversation, vocabulary, max_length=LONGEST)
        except UserError:
            continue
        rendered += [row for row in rows if row.trained and len(row.input_ids) + row.cut <= (max_length or 1 << 30)]
    total = sum(len(row.input_ids) for row in rendered)
    if total <= most:
        return rendered
    kept = max(1, len(rendered) * most // total)
    return [rendered[index * len(rendered) // kept] for index in range(kept)]


def plain_text(found: Sequence[Conversation]) -> str:
    """All that is said, for models without a chat template."""
    return "\n\n".join(message.content for conversation in found for message in conversation.messages)
