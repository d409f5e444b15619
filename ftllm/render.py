"""Conversation -> token ids and loss mask: the only place where that is decided.

Training, evaluation and chat all take their ids from here, so that a model is trained on exactly the ids it sees
later: one BOS, the template's own text, every assistant turn following the template's generation prompt and ending
with the end-of-turn token.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
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
        loss: `assistant` trains the assistant's turns, each with its end-of-turn token; `full` trains every token,
            those of turns after the last answer included.
        max_length: longest row in tokens; what is beyond is cut, and counted in `Row.cut`.

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
        turns = [_turn(messages[:i], messages[i]["content"], vocabulary) for i in answers]
        if loss == "full":
            turns[-1] = _completed(turns[-1], messages, vocabulary)
    except UserError as error:
        raise UserError(f"{source}: {error.message}", error.hint) from error
    if all(later.before.startswith(turn.before + turn.answer) for turn, later in pairwise(turns)):
        rows = [_row(turns, vocabulary, loss, source)]
    else:
        rows = [_row([turn], vocabulary, loss, source) for turn in turns]
    return [_cut(row, max_length) for row in rows]


def prompt_text(messages: Messages, vocabulary: Vocabulary, **variables: Any) -> str:
    """What the template makes of `messages`, the generation prompt included: the text of `prompt_ids`.

    Args:
        messages: `{"role": ..., "content": ...}`, oldest first; thoughts inline.
        vocabulary: tokenizer and template.
        variables: what else the template reads (`enable_thinking=False`).

    Raises:
        UserError: the template refuses the messages, or there is none.
    """
    return _rendered(messages, vocabulary, prompt=True, **variables)


def prompt_ids(messages: Messages, vocabulary: Vocabulary, **variables: Any) -> list[int]:
    """Token ids that ask for the next assistant turn: the template's generation prompt, exactly one BOS.

    Arguments and errors are those of `prompt_text`.
    """
    return one_bos(vocabulary.encode(prompt_text(messages, vocabulary, **variables)), vocabulary)


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
    if not vocabulary.chat_template:
        raise UserError("the model has no chat template", "use an instruction-tuned model")
    return render_template(
        vocabulary.chat_template,
        [_shaped(message, vocabulary.chat_template) for message in messages],
        bos_token=vocabulary.bos_token,
        eos_token=vocabulary.eos_token,
        add_generation_prompt=prompt,
        **variables,
    )


def _shaped(message: Mapping[str, Any], template: str) -> Mapping[str, Any]:
    """A message with its inline thought as the template has thoughts: in a field, or between its own tags."""
    if message["role"] != "assistant":
        return message
    if _has_thought_field(template):
        return _with_fields(message)
    tags = thoughts.tags_of(template)
    if tags == thoughts.ThoughtTags():
        return message
    splitter = thoughts.Splitter()
    pieces = splitter.feed(message["content"]) + splitter.finish(complete=False)
    marks = {"think_start": tags.open, "think_end": tags.close}
    return {**message, "content": "".join(marks.get(kind, text) for kind, text in pieces)}


def _with_fields(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message with its thought moved into a field, under every name templates use."""
    thought, answer, closed = thoughts.split(message["content"])
    if not thought or not closed:
        return message
    return {**message, "content": answer, **dict.fromkeys(THOUGHT_FIELDS, thought)}


@lru_cache(maxsize=16)
def _has_thought_field(template: str) -> bool:
    """Whether a template writes a thought that stands in a field; if not, thoughts are left inline."""
    answer = _with_fields({"role": "assistant", "content": "<think>qzx</think>b"})
    try:
        return "qzx" in render_template(template, [{"role": "user", "content": "a"}, answer])
    except UserError:
        return False


def _turn(history: Messages, content: str, vocabulary: Vocabulary) -> _Turn:
    """The turn in which the assistant answers `history` with `content`."""
    messages = [*history, {"role": "assistant", "content": content}]
    text = _rendered(messages, vocabulary)
    before, start = _start(text, history, vocabulary)
    answer = _ended(text[start:].rstrip(), history, vocabulary)
    thought, said, _ = thoughts.split(content)
    written = _bare(answer, vocabulary)
    for part, name in ((thought, "thought"), (said, "answer")):
        if _bare(part, vocabulary) not in written:
            raise UserError(
                f"the model's chat template drops or changes the assistant's {name}, so it would not be trained",
                "use a model whose template keeps it, or mend its template",
            )
    return _Turn(before, answer, text[start + len(answer) :])


def _completed(last: _Turn, messages: Messages, vocabulary: Vocabulary) -> _Turn:
    """The last answer's turn with what was said after it, where the template leaves the answer as it was."""
    whole, so_far = _rendered(messages, vocabulary), last.before + last.answer
    return replace(last, rest=whole[len(so_far) :]) if whole.startswith(so_far) else last


def _start(text: str, history: Messages, vocabulary: Vocabulary) -> tuple[str, int]:
    """What generation sees before the turn that ends `text`, and where in `text` the assistant's words begin.

    They follow the generation prompt. Two kinds of template need more care: those that show the history otherwise once
    the turn is there, and those whose prompt opens a thought which the turn does not have.
    """
    prompt = _rendered(history, vocabulary, prompt=True)
    if text.startswith(prompt):
        return prompt, len(prompt)
    shared = _shared(prompt, _rendered(history, vocabulary))
    opening = prompt[shared:]
    found = text.rfind(opening)
    if opening and found >= 0:
        return prompt, found + len(opening)
    # Two answers part where the assistant's words begin, or later, where the template adds an empty thought of its own.
    part = _shared(*(_rendered([*history, {"role": "assistant", "content": word}], vocabulary) for word in "ab"))
    for length in range(len(opening) - 1, 0, -1):
        if opening[length - 1] in "\n>]" and 0 <= (found := text.rfind(opening[:length])) <= part - length:
            return prompt[: shared + length], found + length
    return text[:part], part


def _shared(left: str, right: str) -> int:
    """Length of the longest common prefix."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))


def _ended(answer: str, history: Messages, vocabulary: Vocabulary) -> str:
    """`answer` up to and including its end-of-turn token, which some templates leave to the next turn (GLM).

    Raises:
        UserError: nothing ends the turn, so that a model trained on it would never stop.
    """

    def ends(text: str) -> bool:
        return any(map(vocabulary.is_eog, vocabulary.encode(text)))

    ending = [vocabulary.is_eog(token) for token in vocabulary.encode(answer)]
    if any(ending):
        if not any(ending[:-1]):
            return answer
        return answer[: bisect_left(range(len(answer)), True, key=lambda length: ends(answer[:length]))]
    turns = [{"role": "assistant", "content": "qzx"}, {"role": "user", "content": "a"}]
    _, _, follows = _rendered([*history, *turns], vocabulary).rpartition("qzx")
    length = bisect_left(range(len(follows)), True, key=lambda length: ends(follows[:length]))
    end = follows[:length].strip()
    if ends(end) and len(_continued(answer, end, vocabulary)) == 1:
        return answer + end
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
    fixed = one_bos(ids, vocabulary)
    ignored = len(fixed) - len(ids)
    labels = [IGNORED] * ignored + labels if ignored >= 0 else labels[-ignored:]
    return Row(tuple(fixed), tuple(fixed if loss == "full" else labels), source)


def _continued(left: str, text: str, vocabulary: Vocabulary) -> list[int]:
    """Ids of `text` as they follow `left`, whose own ids stay as they are: what generation sees and writes."""
    before = vocabulary.encode(left)
    both = vocabulary.encode(left + text)
    return both[len(before) :] if both[: len(before)] == before else vocabulary.encode(text)


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
