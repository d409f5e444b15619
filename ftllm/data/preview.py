"""Rows as they are in the data and as they are trained: user turns before and after noise, the loss mask by token.

Shown by `ftllm data preview` and by `ftllm train --dry-run`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from ftllm.conversations import Conversation
from ftllm.data.lines import Fault, stop
from ftllm.data.sources import FileFacts, find, read_conversations, source_of
from ftllm.errors import UserError
from ftllm.noise import Noised, NoiseSettings, noised
from ftllm.render import IGNORED, Loss, Row, render
from ftllm.visible import visible
from ftllm.vocabulary import DirectoryVocabulary

LEGEND = "red: moved by the noise; green: trained; dim: read, not trained"
PLAIN_LEGEND = "{moved by the noise}; tokens are cut by |, trained ones stand in [[ ]]"
CONTEXT = 4  # pieces before one, which some tokenizers need to know its text
HEAD, TAIL = 400, 200  # pieces shown of a longer row
MOST_BYTES = 4  # of a character in UTF-8


@dataclass(frozen=True)
class Example:
    """A row to be looked at.

    Attributes:
        before: as it is in the data.
        after: as it is trained.
        rows: what it renders to; none where there is no model, or it is refused.
        refusal: why it cannot be trained on.
    """

    before: Conversation
    after: Noised
    rows: tuple[Row, ...] = ()
    refusal: str | None = None


@dataclass(frozen=True)
class Piece:
    """The text of a token, or of several that only together are a character."""

    ids: tuple[int, ...]
    text: str
    trained: bool


def examples(
    place: str,
    noise: NoiseSettings | None,
    *,
    seed: int,
    epoch: int = 0,
    progress: float = 0.0,
    loss: Loss = "assistant",
    vocabulary: DirectoryVocabulary | None = None,
    line: int | None = None,
    fault: Fault = stop,
    offline: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Example]:
    """The rows of some data one after another, noised as a training on it alone noises them.

    Args:
        place: as `--data` names it.
        noise: what is shuffled; None: nothing.
        seed: of the training.
        epoch: from 0.
        progress: share of training done, 0 to 1, for a curriculum.
        loss: which tokens bear loss.
        vocabulary: of the model; None renders nothing.
        line: only the row on this line.
        fault: called with each row that is no conversation; one that returns leaves the row out.
        offline: never touch the network.
        say: told what is fetched.

    Raises:
        UserError: the data cannot be read, a row is no conversation, or there is none on `line`.
    """
    index, found = -1, False
    for file in find(source_of(place), offline=offline, say=say).files:
        for conversation in read_conversations(file, FileFacts(), fault):
            index += 1
            if line is not None and conversation.source != f"{file.label}:{line}":
                continue
            found = True
            after = Noised(conversation, ((),) * len(conversation.messages), 0)
            if noise is not None:
                cut = vocabulary.spans if vocabulary else None
                after = noised(conversation, noise, seed=seed, epoch=epoch, row=index, progress=progress, cut=cut)
            yield _example(conversation, after, vocabulary, loss)
    if not found:
        raise UserError(f"{place}: no row on line {line}", "`ftllm data check` names the lines that hold rows")


def _example(before: Conversation, after: Noised, vocabulary: DirectoryVocabulary | None, loss: Loss) -> Example:
    if vocabulary is None:
        return Example(before, after)
    try:
        return Example(before, after, tuple(render(after.conversation, vocabulary, loss=loss)))
    except UserError as error:
        return Example(before, after, refusal=error.message.removeprefix(f"{before.source}: "))


def pieces(row: Row, tokenizer: Any) -> Iterator[Piece]:
    """A row token by token; tokens that only together are a character are one piece."""
    ids, starts = row.input_ids, [0]
    for end in range(1, len(ids) + 1):
        start = starts[-1]
        lead = ids[starts[-1 - CONTEXT] if len(starts) > CONTEXT else 0 : start]
        text = _decoded([*lead, *ids[start:end]], tokenizer)[len(_decoded(lead, tokenizer)) :]
        if text.endswith("\ufffd") and end < len(ids) and end - start < MOST_BYTES:
            continue
        yield Piece(tuple(ids[start:end]), text, row.labels[start] != IGNORED)
        starts.append(end)


def _decoded(ids: Sequence[int], tokenizer: Any) -> str:
    text: str = tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
    return text


def as_json(example: Example, tokenizer: Any | None) -> dict[str, Any]:
    """An example for a program to read."""

    def turns(conversation: Conversation) -> list[dict[str, str]]:
        return [{"role": message.role, "content": message.content} for message in conversation.messages]

    return {
        "source": example.before.source,
        "before": turns(example.before),
        "after": turns(example.after.conversation),
        "moved": example.after.moved,
        "units": example.after.units,
        "rows": [
            [{"ids": piece.ids, "text": piece.text, "trained": piece.trained} for piece in pieces(row, tokenizer)]
            for row in example.rows
        ],
        "refusal": example.refusal,
    }


def show(example: Example, tokenizer: Any | None, console: Console) -> None:
    """Print an example; in colour, or where there is none with marks (`PLAIN_LEGEND`)."""
    plain = console.color_system is None or console.no_color
    console.print(_turns(example.before, example.after, plain=plain))
    if example.refusal:
        console.print(Text("  refused ", style="yellow") + Text(visible(example.refusal)))
    for row in example.rows:
        console.print(_mask(list(pieces(row, tokenizer)), plain=plain))
    console.print()


def _turns(before: Conversation, after: Noised, *, plain: bool) -> Text:
    """The user turns as they are in the data and as they are trained, what moved in red."""
    share = f"  {after.moved} of {after.units} units moved" if after.units else ""
    text = Text().append(visible(before.source), style="bold").append(f"{share}\n", style="dim")
    turns = zip(before.messages, after.conversation.messages, after.spans, strict=True)
    for old, new, spans in (turn for turn in turns if turn[0].role == "user"):
        text.append("  data    ", style="dim").append(f"{_indented(old.content)}\n")
        if new.content != old.content:
            text.append("  noised  ", style="dim")
            position = 0
            for start, end in spans:
                text.append(_indented(new.content[position:start]))
                moved = _indented(new.content[start:end])
                text.append(f"{{{moved}}}" if plain else moved, style="red")
                position = end
            text.append(_indented(new.content[position:]) + "\n")
    text.right_crop(1)
    return text


def _mask(shown: Sequence[Piece], *, plain: bool) -> Text:
    """A row's tokens, trained ones green on every other shade, the others dim."""
    trained = sum(len(piece.ids) for piece in shown if piece.trained)
    total = sum(len(piece.ids) for piece in shown)
    text = Text().append("  tokens  ", style="dim")
    before = False
    for index, piece in enumerate(shown):
        if HEAD <= index < len(shown) - TAIL:
            if index == HEAD:
                text.append(f" ... {len(shown) - HEAD - TAIL} more ... ", style="dim italic")
            continue
        if plain and piece.trained != before:
            text.append("]]" if before else "[[")
        elif index:
            text.append("|" if plain else "·", style="dim")
        style = f"green{' bold' if index % 2 else ''}" if piece.trained else "dim"
        text.append(visible(piece.text).replace("\n", "\\n").replace("\t", "\\t"), style=style)
        before = piece.trained
    text.append("]]" if plain and before else "")
    return text.append(f"\n  {trained} of {total} tokens trained", style="dim")


def _indented(text: str) -> str:
    return visible(text).replace("\n", "\n          ")
