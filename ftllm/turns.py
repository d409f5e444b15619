"""An assistant's turn as a chat template has it: what generation sees before it, and what it then writes.

Found by rendering, for templates are programs. Some keep thoughts in fields, some between tags of their own; some show
only the last turn's thought, some none at all; some open the thought in the generation prompt, or close an empty one
there unless thinking is switched on.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from ftllm import thoughts
from ftllm.conversations import THOUGHT_FIELDS
from ftllm.errors import UserError
from ftllm.templates import NOT_THINKING, THINKING, render_template
from ftllm.thoughts import ThoughtTags
from ftllm.vocabulary import Vocabulary

Messages = Sequence[Mapping[str, Any]]
OWN = ThoughtTags()  # those of a conversation's text
NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Turn:
    """An assistant's turn in the template's text.

    Attributes:
        before: everything up to where generation starts.
        answer: what the assistant writes, its end-of-turn token included.
        rest: what the template puts after it (a newline, mostly).
    """

    before: str
    answer: str
    rest: str


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


def turn_of(history: Messages, content: str, vocabulary: Vocabulary) -> Turn:
    """The turn in which the assistant answers `history` with `content`.

    With a thought, it follows the prompt in which thinking is switched on, where the template has a switch, and is
    between the model's own tags. Where the template does not show it, the turn is what generation would write: the
    thought after the prompt, opened unless the prompt did, its closing tag, and the answer as the template ends it.

    Raises:
        UserError: the template refuses the messages, drops or changes the answer, the thought cannot be shown as the
            model would write it, is never closed, or nothing ends the turn.
    """
    thought, _, closed = thoughts.split(content)
    if not closed:
        raise UserError("a thought is opened and never closed", f"close it with {OWN.close}, or remove the row")
    template = vocabulary.chat_template or ""
    if not thought:
        return _without_thought(_shown(history, content, vocabulary, NOTHING), template)
    variables = _switch(template)
    turn: Turn | None = None
    try:
        turn = _shown(history, content, vocabulary, variables)
    except UserError:
        if _thought_in_front(content) is None:
            raise
    if turn is None or not _holds(turn, content, template):
        turn = _composed(history, content, vocabulary, variables)
    if turn is None or not _holds(turn, content, template):
        raise UserError(
            "the model's chat template drops or changes the assistant's thought, so it would not be trained",
            "use a model whose template keeps it, or mend its template",
        )
    return turn


def completed(last: Turn, messages: Messages, vocabulary: Vocabulary) -> Turn:
    """The last answer's turn with what was said after it, where the template leaves the answer as it was."""
    whole, so_far = _rendered(messages, vocabulary), last.before + last.answer
    return replace(last, rest=whole[len(so_far) :]) if whole.startswith(so_far) else last


def _rendered(messages: Messages, vocabulary: Vocabulary, *, prompt: bool = False, **variables: Any) -> str:
    if not vocabulary.chat_template:
        raise UserError("the model has no chat template", "use an instruction-tuned model")
    return render_template(
        vocabulary.chat_template,
        [_shaped(message, vocabulary.chat_template) for message in messages],
        bos_token=vocabulary.bos_token,
        eos_token=vocabulary.eos_token,
        add_generation_prompt=prompt,
        today=vocabulary.today,
        **variables,
    )


def _shaped(message: Mapping[str, Any], template: str) -> Mapping[str, Any]:
    """A message with its inline thought as the template has thoughts: in a field, or between its own tags."""
    if message["role"] != "assistant":
        return message
    if _has_thought_field(template):
        return _with_fields(message)
    tags = thoughts.tags_of(template)
    return message if tags == OWN else {**message, "content": thoughts.retagged(message["content"], OWN, tags)}


def _with_fields(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message with its thought moved into a field, under every name templates use."""
    parts = _thought_in_front(message["content"])
    if parts is None:
        return message
    return {**message, "content": parts.answer, **dict.fromkeys(THOUGHT_FIELDS, parts.thought)}


def _thought_in_front(content: str) -> thoughts.Parts | None:
    """Thought and answer of a text that begins with its only thought; None of any other."""
    parts = thoughts.split(content)
    alone = content.lstrip().startswith(OWN.open) and content.count(OWN.open) == 1
    return parts if parts.thought and parts.closed and alone else None


@lru_cache(maxsize=16)
def _has_thought_field(template: str) -> bool:
    """Whether a template writes a thought that stands in a field; if not, thoughts are left inline."""
    answer = _with_fields({"role": "assistant", "content": "<think>qzx</think>b"})
    for variables in (NOTHING, THINKING):
        try:
            if "qzx" in render_template(template, [{"role": "user", "content": "a"}, answer], **variables):
                return True
        except UserError:
            continue
    return False


@lru_cache(maxsize=16)
def _switch(template: str) -> Mapping[str, Any]:
    """The variables that switch thinking on, where the template has such a switch and it is off by itself."""
    asked = [{"role": "user", "content": "a"}]
    try:
        off, on, alone = (
            render_template(template, asked, add_generation_prompt=True, **variables)
            for variables in (NOT_THINKING, THINKING, NOTHING)
        )
    except UserError:
        return NOTHING
    return THINKING if off != on != alone else NOTHING


def _shown(history: Messages, content: str, vocabulary: Vocabulary, variables: Mapping[str, Any]) -> Turn:
    """The turn as the template itself shows it, perhaps without its thought."""
    messages = [*history, {"role": "assistant", "content": content}]
    text = _rendered(messages, vocabulary, **variables)
    before, start = _start(text, history, vocabulary, variables)
    answer = _ended(text[start:].rstrip(), history, vocabulary)
    if _bare(thoughts.split(content).answer, vocabulary) not in _bare(answer, vocabulary):
        raise UserError(
            "the model's chat template drops or changes the assistant's answer, so it would not be trained",
            "use a model whose template keeps it, or mend its template",
        )
    return Turn(before, answer, text[start + len(answer) :])


def _without_thought(turn: Turn, template: str) -> Turn:
    """A turn that does not think, where the prompt opened a thought: it closes it at once."""
    tags = thoughts.tags_of(template)
    if not thoughts.opens_thought(turn.before, tags) or tags.close in turn.answer:
        return turn
    _, blank, after = _blanks(template, turn.before, tags)
    return replace(turn, answer=f"{blank}{tags.close}{after}{tags.answer}{turn.answer}")


def _start(text: str, history: Messages, vocabulary: Vocabulary, variables: Mapping[str, Any]) -> tuple[str, int]:
    """What generation sees before the turn that ends `text`, and where in `text` the assistant's words begin.

    They follow the generation prompt. Two kinds of template need more care: those that show the history otherwise once
    the turn is there, and those whose prompt goes on with a thought, opened or empty, which the turn does not have.
    """
    prompt = _rendered(history, vocabulary, prompt=True, **variables)
    if text.startswith(prompt):
        return prompt, len(prompt)
    shared = _shared(prompt, _rendered(history, vocabulary, **variables))
    opening = prompt[shared:]
    found = text.rfind(opening)
    if opening and found >= 0:
        return prompt, found + len(opening)
    # Two answers part where the assistant's words begin, or later, where the template adds an empty thought of its own.
    words = ([*history, {"role": "assistant", "content": word}] for word in "ab")
    part = _shared(*(_rendered(messages, vocabulary, **variables) for messages in words))
    tags = thoughts.tags_of(vocabulary.chat_template)
    for length in range(len(opening) - 1, 0, -1):
        if opening[length - 1] in "\n>]" and 0 <= (found := text.rfind(opening[:length])) <= part - length:
            start, beyond = found + length, opening[length:]
            if thoughts.opens_thought(beyond, tags) or tags.close in beyond:
                return prompt, start
            return prompt[: shared + length], start
    return text[:part], part


def _composed(history: Messages, content: str, vocabulary: Vocabulary, variables: Mapping[str, Any]) -> Turn | None:
    """The turn as generation would write it, where the template does not show its thought; None where that is unknown.

    What the template knows of thoughts is that it removes them, or that its prompt opens one.
    """
    template = vocabulary.chat_template or ""
    tags = thoughts.tags_of(template)
    parts = _thought_in_front(content)
    prompt = _rendered(history, vocabulary, prompt=True, **variables)
    opened = thoughts.opens_thought(prompt, tags)
    if parts is None or not (opened or (tags.sign or tags.close) in template):
        return None
    shown = _shown(history, parts.answer, vocabulary, variables)
    found = shown.answer.rfind(parts.answer)
    if found < 0:
        return None
    markup = shown.answer[:found]
    found -= len(markup) if markup.strip() in tags.markup and not tags.answer else 0
    lead, blank, after = _blanks(template, prompt, tags)
    if opened and prompt.endswith("\n"):
        lead = ""
    opening = lead if opened else tags.open + lead
    thought = f"{opening}{parts.thought}{blank}{tags.close}{after}{tags.answer}"
    return Turn(prompt, thought + shown.answer[found:], shown.rest)


def _blanks(template: str, prompt: str, tags: ThoughtTags) -> tuple[str, str, str]:
    """The line ends that the model writes after its opening tag, and before and after its closing one.

    What opens a thought in the prompt or the template says which: `<think>` with a line to itself, as with most
    models, or right before the thought.
    """
    if tags.open.endswith("\n"):
        return "", "\n", "\n" if re.search(re.escape(tags.close) + r"(?:\\n|\n)", template) else ""
    if thoughts.opens_thought(prompt, tags):
        tight = prompt.endswith(tags.open)
    else:
        follows = re.findall(re.escape(tags.open) + r"(\\n|\n|.)", template)
        tight = bool(tags.answer) or bool(follows and not any(end.endswith("n") or end == "\n" for end in follows))
    return ("", "", "") if tight else ("\n", "\n", "\n\n")


def _holds(turn: Turn, content: str, template: str) -> bool:
    """Whether a reader of the reply finds in it this text's thought, its answer, and no other thought.

    Where the template speaks of no thoughts, or of them in a format that is not known here, the thought's text is
    enough.
    """
    thought, said, _ = thoughts.split(content)
    tags = thoughts.tags_of(template)
    opened = thoughts.opens_thought(turn.before, tags)
    if not opened and (tags.sign or tags.close) not in template:
        return _squeezed(thought) in _squeezed(turn.answer)
    in_front = _thought_in_front(content) is not None
    read = thoughts.split(turn.answer, tags, opened=opened)
    empty = re.search(re.escape(tags.open) + r"\s*" + re.escape(tags.close), turn.answer)
    unthinking = turn.before.rstrip().endswith(tags.close) and not tags.answer
    # A thought in front comes first in the reply, before what opens an answer.
    late = not opened and not turn.answer.lstrip().startswith(tags.open.strip())
    same = _squeezed(read.thought) == _squeezed(thought) and _squeezed(said) in _squeezed(read.answer)
    return same and not empty and not unthinking and not (in_front and late)


def _squeezed(text: str) -> str:
    return "".join(text.split())


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
    if ends(end) and len(continued(answer, end, vocabulary)) == 1:
        return answer + end
    raise UserError(
        "the model's chat template ends the assistant's turn with no end-of-turn token, so training would never teach "
        "it to stop",
        "use a model whose template ends turns, or mend its template",
    )


def continued(left: str, text: str, vocabulary: Vocabulary) -> list[int]:
    """Ids of `text` as they follow `left`, whose own ids stay as they are: what generation sees and writes."""
    before = vocabulary.encode(left)
    both = vocabulary.encode(left + text)
    return both[len(before) :] if both[: len(before)] == before else vocabulary.encode(text)


def _bare(text: str, vocabulary: Vocabulary) -> str:
    """`text` without white space and thought tags, which templates move and rewrite."""
    for tags in {OWN, thoughts.tags_of(vocabulary.chat_template)}:
        text = text.replace(tags.open, "").replace(tags.close, "")
    return _squeezed(text)
