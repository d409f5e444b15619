"""Messages -> the token ids the model continues, with its thinking switched as asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ftllm.chat.options import ThinkMode
from ftllm.errors import UserError
from ftllm.render import one_bos, prompt_ids
from ftllm.templates import NOT_THINKING, THINKING, render_template
from ftllm.thoughts import ThoughtTags, opens_thought, tags_of
from ftllm.values import dataclass
from ftllm.vocabulary import Vocabulary

if TYPE_CHECKING:
    from ftllm.llama.vision import Projector

Messages = Sequence[Mapping[str, Any]]
NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Prompt:
    """What a reply begins from.

    Attributes:
        ids: token ids, one BOS included.
        tags: the model's thought tags.
        opened: the prompt ends inside a thought.
        resumed: it ends inside a reply that is to be continued.
    """

    ids: tuple[int, ...]
    tags: ThoughtTags
    opened: bool
    resumed: bool = False


def build_prompt(
    messages: Messages, vocabulary: Vocabulary, think: ThinkMode = "auto", kwargs: Mapping[str, Any] = NONE
) -> Prompt:
    """The prompt for the assistant's next turn.

    `on` and `off` set the template's own switch where flipping it changes the prompt; else they write the beginning of
    the reply: the opening tag, or an empty closed thought (as Qwen3's template does).

    A last message of the assistant's own is the beginning of its reply, to be continued; `reasoning_content` is its
    thought, which goes on where there is no content yet. `images` are files that a message shows, before its text.
    `kwargs` are variables for the template.

    Raises:
        UserError: the model has no chat template, the template refuses the messages, or the model sees no images.
    """
    template = vocabulary.chat_template
    if template is None:
        raise UserError("the model has no chat template, so it cannot chat", "use an instruction-tuned model's GGUF")
    tags = tags_of(template)
    *messages, begun = messages if is_begun(messages) else (*messages, {})
    pictures = [Path(path) for message in messages for path in message.get("images", ())]
    projector = projector_of(vocabulary) if pictures else None
    if projector is not None:
        messages = [_marked(message, projector.marker) for message in messages]
    variables: Mapping[str, Any] = kwargs
    suffix = ""
    text = _text(messages, vocabulary, template, **kwargs)
    if think != "auto":
        switches = {**kwargs, **THINKING}, {**kwargs, **NOT_THINKING}
        on, off = (_text(messages, vocabulary, template, **switched) for switched in switches)
        if on != off:
            variables, text = (switches[0], on) if think == "on" else (switches[1], off)
        else:
            suffix = tags.open if think == "on" else tags.empty
    if opens_thought(text, tags):  # the template opened it already
        suffix = suffix.removeprefix(tags.open if text.endswith(tags.open) else tags.open.rstrip())
    opened = opens_thought(text + suffix, tags)
    if begun:
        suffix += _begun_text(begun, tags, opened=opened, thinks=think != "off")
        opened = not begun["content"]
    if projector is not None:
        ids = one_bos(projector.encode(text + suffix, pictures), vocabulary)
        return Prompt(tuple(ids), tags, opened, bool(begun))
    ids = prompt_ids(messages, vocabulary, **variables)
    if suffix:
        # As it follows the prompt: some tokenizers put a space before a text of its own.
        before, both = vocabulary.encode(text), vocabulary.encode(text + suffix)
        ids = [*ids, *(both[len(before) :] if both[: len(before)] == before else vocabulary.encode(suffix))]
    return Prompt(tuple(ids), tags, opened, bool(begun))


def projector_of(vocabulary: Vocabulary) -> Projector:
    """The model's eyes.

    Raises:
        UserError: it has none.
    """
    see: Callable[[], Projector] | None = getattr(vocabulary, "see", None)
    if see is None:
        raise UserError("the model sees no images", "take a vision model, its mmproj beside it or given with --mmproj")
    return see()


def _marked(message: Mapping[str, Any], marker: str) -> Mapping[str, Any]:
    """A message with a marker for each of its images before its text."""
    images = message.get("images", ())
    return {**message, "content": marker * len(images) + message["content"]} if images else message


def is_begun(messages: Messages) -> bool:
    """Whether the last of the messages is a reply to be continued."""
    last = messages[-1] if messages else {}
    return last.get("role") == "assistant" and bool(last.get("content") or last.get("reasoning_content"))


def _begun_text(begun: Mapping[str, str], tags: ThoughtTags, *, opened: bool, thinks: bool) -> str:
    """The beginning of a reply, as the model writes it after a prompt that has `opened` a thought or not."""
    thought, content = begun.get("reasoning_content", ""), begun["content"]
    opening = "" if opened else tags.open
    if not content:
        return opening + thought
    blank = "" if tags.answer else "\n\n"
    if opened or (thought and thinks):
        return f"{opening}{thought}{blank[:1]}{tags.close}{blank}{tags.answer}{content}"
    return content


def _text(messages: Messages, vocabulary: Vocabulary, template: str, **variables: Any) -> str:
    return render_template(
        template,
        messages,
        bos_token=vocabulary.bos_token,
        eos_token=vocabulary.eos_token,
        add_generation_prompt=True,
        **variables,
    )


def kept_length(
    prompt: Prompt, messages: Messages, vocabulary: Vocabulary, think: ThinkMode, kwargs: Mapping[str, Any] = NONE
) -> int:
    """How many of a prompt's tokens the next turn's prompt begins with, whatever is answered and asked; 0: unknown.

    Less than all, where the template opens the thought, which is not there any more once it is answered.
    """
    messages = messages[:-1] if is_begun(messages) else messages
    answer = {"role": "assistant", "content": "A"}
    return common_prefix(prompt.ids, next_ids([*messages, answer], vocabulary, think, kwargs))


def next_ids(
    messages: Messages, vocabulary: Vocabulary, think: ThinkMode, kwargs: Mapping[str, Any] = NONE
) -> tuple[int, ...]:
    """What every prompt begins with in which the person answers `messages`; empty where the template refuses that.

    Many templates write an answer in another way once it is not the last message, so it is asked what they do.
    """
    try:
        one, other = (
            build_prompt([*messages, {"role": "user", "content": text}], vocabulary, think, kwargs).ids
            for text in ("A", "1")
        )
    except UserError:
        return ()
    return one[: common_prefix(one, other)]


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many elements two sequences share at their beginning."""
    length = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        length += 1
    return length
