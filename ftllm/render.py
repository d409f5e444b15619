"""Conversation -> token ids and loss mask: the only place where that is decided.

Training, evaluation and chat all take their ids from here, so that a model is trained on exactly the ids it sees
later: one BOS, the template's own text, every assistant turn following the template's generation prompt and ending
with the end-of-turn token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from ftllm import thoughts
from ftllm.conversations import THOUGHT_FIELDS, Conversation
from ftllm.errors import UserError
from ftllm.templates import render_template
from ftllm.vocabulary import Vocabulary

Loss = Literal["assistant", "full"]
IGNORED = -100  # the label torch's cross entropy leaves out
Messages = Sequence[Mapping[str, Any]]


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
        loss: `assistant` trains the assistant's turns, each with its end-of-turn token; `full` trains every token.
        max_length: longest row in tokens; what is beyond is cut, and counted in `Row.cut`.

    Raises:
        UserError: there is nothing to train, the template refuses the turns, an answer or a thought would not be in
            the labels, or a turn has no end; always with the conversation's source.
    """
    source = conversation.source
    answers = [i for i, message in enumerate(conversation.messages) if message.role == "assistant"]
    if not answers:
        raise UserError(f"{source}: no assistant turn, so there is nothing to train", "add the answer, or drop the row")
    try:
        _refuse_control_tokens(conversation, vocabulary)
        messages = [{"role": message.role, "content": message.content} for message in conversation.messages]
        turns = [_turn(messages[:i], messages[i]["content"], vocabulary) for i in answers]
    except UserError as error:
        raise UserError(f"{source}: {error.message}", error.hint) from error
    if all(later.before.startswith(turn.before + turn.answer) for turn, later in pairwise(turns)):
        rows = [_row(turns, vocabulary, loss, source)]
    else:
        rows = [_row([turn], vocabulary, loss, source) for turn in turns]
    return [_cut(row, max_length) for row in rows]


def prompt_ids(messages: Messages, vocabulary: Vocabulary, **variables: Any) -> list[int]:
    """Token ids that ask for the next assistant turn: the template's generation prompt, exactly one BOS.

    Args:
        messages: `{"role": ..., "content": ...}`, oldest first.
        vocabulary: tokenizer and template.
        variables: what else the template reads (`enable_thinking=False`).

    Raises:
        UserError: the template refuses the messages, or there is none.
    """
    return _one_bos(vocabulary.encode(_rendered(messages, vocabulary, prompt=True, **variables)), vocabulary)


@dataclass(frozen=True)
class _Turn:
    """An assistant's turn in the template's text.

    Attributes:
        before: everything up to where generation starts.
        answer: what the assistant writes, its end-of-turn token included.
        rest: what the template puts after it (a newline, mostly).
    """

    before: str
    answer: str
    rest: str


def _rendered(messages: Messages, vocabulary: Vocabulary, *, prompt: bool = False, **variables: Any) -> str:
    if vocabulary.chat_template is None:
        raise UserError("the model has no chat template", "use an instruction-tuned model")
    return render_template(
        vocabulary.chat_template,
        messages,
        bos_token=vocabulary.bos_token,
        eos_token=vocabulary.eos_token,
        add_generation_prompt=prompt,
        **variables,
    )


def _turn(history: Messages, content: str, vocabulary: Vocabulary) -> _Turn:
    """The turn that answers `history`, its thought inline, or in a field where the template wants it there."""
    prompt = _rendered(history, vocabulary, prompt=True)
    thought, answer, _ = thoughts.split(content)
    shapes: list[tuple[Mapping[str, str], tuple[str, ...]]] = [({"role": "assistant", "content": content}, (content,))]
    if thought:
        fields = dict.fromkeys(THOUGHT_FIELDS, thought)
        shapes.append(({"role": "assistant", "content": answer, **fields}, (thought, answer)))
    kept = ""
    for message, parts in shapes:
        text = _rendered([*history, message], vocabulary)
        start = _start(text, prompt, history, vocabulary)
        answered = text[start:].rstrip()
        kept = _bare(answered, vocabulary)
        if all(_bare(part, vocabulary) in kept for part in parts):
            answered += _missing_end(answered, [*history, message], vocabulary)
            return _Turn(text[:start], answered, text[start + len(answered) :])
    lost = "thought" if _bare(thought, vocabulary) not in kept else "answer"
    raise UserError(
        f"the model's chat template drops or changes the assistant's {lost}, so it would not be trained",
        "use a model whose template keeps it, or mend its template",
    )


def _start(text: str, prompt: str, history: Messages, vocabulary: Vocabulary) -> int:
    """Where in `text` the assistant's own words begin.

    That is behind the generation prompt, unless the prompt opens a thought that the finished turn does not have: then
    it is behind what they share, and never behind where two different answers part.
    """
    if text.startswith(prompt):
        return len(prompt)
    probes = [_rendered([*history, {"role": "assistant", "content": probe}], vocabulary) for probe in "ab"]
    return min(_shared(text, prompt), _shared(*probes))


def _shared(left: str, right: str) -> int:
    """Length of the longest common prefix."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))


def _missing_end(answered: str, messages: Messages, vocabulary: Vocabulary) -> str:
    """The end-of-turn token as text where the template leaves it to the next turn (GLM's `<|user|>`); else empty.

    Raises:
        UserError: nothing ends the turn, so that a model trained on it would never stop.
    """
    if any(map(vocabulary.is_eog, vocabulary.encode(answered)[-1:])):
        return ""
    longer = _rendered([*messages, {"role": "user", "content": "a"}], vocabulary)
    if longer.startswith(answered_so_far := _rendered(messages, vocabulary).rstrip()):
        follows = longer[len(answered_so_far) :]
        first = vocabulary.encode(follows)[:1]
        if any(map(vocabulary.is_eog, first)):
            lengths = range(1, len(follows) + 1)
            return next(follows[:length] for length in lengths if vocabulary.encode(follows[:length]) == first)
    raise UserError(
        "the model's chat template ends the assistant's turn with no end-of-turn token, so training would never teach "
        "it to stop",
        "use a model whose template ends turns, or mend its template",
    )


def _bare(text: str, vocabulary: Vocabulary) -> str:
    """`text` without white space and thought tags, which templates move and rewrite."""
    for tags in {thoughts.ThoughtTags(), thoughts.tags_of(vocabulary.chat_template)}:
        text = text.replace(tags.open, "").replace(tags.close, "")
    return "".join(text.split())


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


def _row(turns: Sequence[_Turn], vocabulary: Vocabulary, loss: Loss, source: str) -> Row:
    """The last turn's text as ids, with the answers of `turns` marked."""
    ids: list[int] = []
    labels: list[int] = []
    position, left = 0, ""
    for turn in turns:
        asked = turn.before[position:]
        for text, trained in ((asked, False), (turn.answer, True)):
            added = _continued(left, text, vocabulary)
            ids += added
            labels += added if trained else [IGNORED] * len(added)
            left = text
        position = len(turn.before) + len(turn.answer)
    added = _continued(left, turns[-1].rest, vocabulary)
    ids += added
    labels += [IGNORED] * len(added)
    fixed = _one_bos(ids, vocabulary)
    ignored = len(fixed) - len(ids)
    labels = [IGNORED] * ignored + labels if ignored >= 0 else labels[-ignored:]
    return Row(tuple(fixed), tuple(fixed if loss == "full" else labels), source)


def _continued(left: str, text: str, vocabulary: Vocabulary) -> list[int]:
    """Ids of `text` as they follow `left`, whose own ids stay as they are: what generation sees and writes."""
    before = vocabulary.encode(left)
    both = vocabulary.encode(left + text)
    return both[len(before) :] if both[: len(before)] == before else vocabulary.encode(text)


def _one_bos(ids: list[int], vocabulary: Vocabulary) -> list[int]:
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
