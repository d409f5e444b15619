"""Conversation -> token ids and loss mask: the only place where that is decided.

Training, evaluation and chat all take their ids from here, so that a model is trained on exactly the ids it sees
later: one BOS, the template's own text, every assistant turn following the template's generation prompt and ending
with the end-of-turn token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from ftllm.conversations import Conversation
from ftllm.errors import UserError
from ftllm.turns import Messages, Turn, completed, continued, prompt_text, turn_of
from ftllm.vocabulary import Vocabulary

Loss = Literal["assistant", "full"]
IGNORED = -100  # the label torch's cross entropy leaves out


@dataclass(frozen=True)
class Row:
    """One training row.

    Attributes:
        input_ids: token ids, BOS included.
        labels: as long as `input_ids`: the id where it is trained, else -100. Not shifted.
        source: where the conversation came from (`file.jsonl:12`).
        cut: how many tokens `max_length` took off the end.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    source: str
    cut: int = 0

    @property
    def trained(self) -> int:
        """How many positions bear loss: the first has no predecessor to be predicted from."""
        return sum(label != IGNORED for label in self.labels[1:])


def render(
    conversation: Conversation,
    vocabulary: Vocabulary,
    *,
    loss: Loss = "assistant",
    max_length: int | None = None,
) -> list[Row]:
    """The rows of a conversation.

    One row where the template keeps earlier turns as they were; one row an assistant turn where it rewrites them
    (many reasoning models' templates drop earlier thoughts), since no single text then holds what the model saw at
    each turn.

    Args:
        conversation: the turns; thoughts inline.
        vocabulary: tokenizer and template.
        loss: `assistant` trains the assistant's turns, each with its end-of-turn token; `full` trains every token,
            those of turns after the last answer included.
        max_length: longest row in tokens; what is beyond is cut, and counted in `Row.cut`.

    A thought is trained as generation would write it after this template's prompt: between the model's own tags, and
    also where the template drops every thought from what it shows (`ftllm.turns`).

    Raises:
        UserError: there is nothing to train, the template refuses the turns, an answer or a thought would not be in
            the labels, or a turn has no end; always with the conversation's source.
    """
    source = conversation.source
    answers = [i for i, message in enumerate(conversation.messages) if message.role == "assistant"]
    if not answers:
        raise UserError(f"{source}: no assistant turn, so there is nothing to train", "add the answer, or drop the row")
    messages = [{"role": message.role, "content": message.content} for message in conversation.messages]
    try:
        _refuse_control_tokens(conversation, vocabulary)
        turns = [_turn(messages, i, vocabulary) for i in answers]
        if loss == "full":
            turns[-1] = completed(turns[-1], messages, vocabulary)
    except UserError as error:
        raise UserError(f"{source}: {error.message}", error.hint) from error
    if all(later.before.startswith(turn.before + turn.answer) for turn, later in pairwise(turns)):
        rows = [_row(turns, vocabulary, loss, source)]
    else:
        rows = [_row([turn], vocabulary, loss, source) for turn in turns]
    return [_cut(row, max_length) for row in rows]


def prompt_ids(messages: Messages, vocabulary: Vocabulary, **variables: Any) -> list[int]:
    """Token ids that ask for the next assistant turn: the template's generation prompt, exactly one BOS.

    Arguments and errors are those of `prompt_text`.
    """
    return one_bos(vocabulary.encode(prompt_text(messages, vocabulary, **variables)), vocabulary)


def _turn(messages: Messages, i: int, vocabulary: Vocabulary) -> Turn:
    try:
        return turn_of(messages[:i], messages[i]["content"], vocabulary)
    except UserError as error:
        raise UserError(f"message {i + 1}: {error.message}", error.hint) from error


def _refuse_control_tokens(conversation: Conversation, vocabulary: Vocabulary) -> None:
    """A second BOS, or an end of turn in the middle of an answer, must not come out of the data's own text."""
    for number, message in enumerate(conversation.messages, 1):
        ids = vocabulary.encode(message.content)
        ends = message.role == "assistant" and any(map(vocabulary.is_eog, ids))
        if ends or (vocabulary.adds_bos and vocabulary.bos_id in ids):
            raise UserError(
                f"message {number} holds the text of one of the model's control tokens",
                "remove it from the text: the model would read it as the end or the beginning of a sequence",
            )


def _row(turns: Sequence[Turn], vocabulary: Vocabulary, loss: Loss, source: str) -> Row:
    """The last turn's text as ids, with the answers of `turns` marked."""
    ids: list[int] = []
    labels: list[int] = []
    position, left = 0, ""
    for turn in turns:
        asked = turn.before[position:]
        for text, trained in ((asked, False), (turn.answer, True)):
            added = continued(left, text, vocabulary)
            ids += added
            labels += added if trained else [IGNORED] * len(added)
            left = text
        position = len(turn.before) + len(turn.answer)
    added = continued(left, turns[-1].rest, vocabulary)
    ids += added
    labels += [IGNORED] * len(added)
    fixed = one_bos(ids, vocabulary)
    ignored = len(fixed) - len(ids)
    labels = [IGNORED] * ignored + labels if ignored >= 0 else labels[-ignored:]
    return Row(tuple(fixed), tuple(fixed if loss == "full" else labels), source)


def one_bos(ids: list[int], vocabulary: Vocabulary) -> list[int]:
    """`ids` beginning with one BOS, where the model's sequences begin with one."""
    if vocabulary.bos_id is None:
        return ids
    leading = next((i for i, token in enumerate(ids) if token != vocabulary.bos_id), len(ids))
    if leading or vocabulary.adds_bos:
        return [vocabulary.bos_id, *ids[leading:]]
    return ids


def _cut(row: Row, max_length: int | None) -> Row:
    if max_length is None or len(row.input_ids) <= max_length:
        return row
    return Row(
        row.input_ids[:max_length], row.labels[:max_length], row.source, row.cut + len(row.input_ids) - max_length
    )
