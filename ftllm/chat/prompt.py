"""Messages -> the token ids the model continues, with its thinking switched as asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ftllm.chat.options import ThinkMode
from ftllm.errors import UserError
from ftllm.render import prompt_ids
from ftllm.templates import render_template
from ftllm.thoughts import ThoughtTags, opens_thought, tags_of
from ftllm.vocabulary import Vocabulary

Messages = Sequence[Mapping[str, str]]
SWITCHES = ("enable_thinking", "thinking")  # Qwen3, SmolLM3, GLM ...; DeepSeek V3.1, Granite


@dataclass(frozen=True)
class Prompt:
    """What a reply begins from.

    Attributes:
        ids: token ids, one BOS included.
        tags: the model's thought tags.
        opened: the prompt ends inside a thought.
    """

    ids: tuple[int, ...]
    tags: ThoughtTags
    opened: bool


def build_prompt(messages: Messages, vocabulary: Vocabulary, think: ThinkMode = "auto") -> Prompt:
    """The prompt for the assistant's next turn.

    `on` and `off` set the template's own switch where flipping it changes the prompt; else they write the beginning of
    the reply: the opening tag, or an empty closed thought (as Qwen3's template does).

    Raises:
        UserError: the model has no chat template, or the template refuses the messages.
    """
    template = vocabulary.chat_template
    if template is None:
        raise UserError("the model has no chat template, so it cannot chat", "use an instruction-tuned model's GGUF")
    tags = tags_of(template)
    variables: dict[str, bool] = {}
    suffix = ""
    text = _text(messages, vocabulary, template)
    if think != "auto":
        on, off = (dict.fromkeys(SWITCHES, thinking) for thinking in (True, False))
        texts = [_text(messages, vocabulary, template, **switched) for switched in (on, off)]
        if texts[0] != texts[1]:
            variables, text = (on, texts[0]) if think == "on" else (off, texts[1])
        else:
            suffix = tags.open if think == "on" else f"{tags.open}\n\n{tags.close}\n\n"
    if opens_thought(text, tags):
        suffix = suffix.removeprefix(tags.open)  # the template opened it already
    ids = prompt_ids(messages, vocabulary, **variables)
    if suffix:
        # As it follows the prompt: some tokenizers put a space before a text of its own.
        before, both = vocabulary.encode(text), vocabulary.encode(text + suffix)
        ids = [*ids, *(both[len(before) :] if both[: len(before)] == before else vocabulary.encode(suffix))]
    return Prompt(tuple(ids), tags, opens_thought(text + suffix, tags))


def _text(messages: Messages, vocabulary: Vocabulary, template: str, **variables: bool) -> str:
    return render_template(
        template,
        messages,
        bos_token=vocabulary.bos_token,
        eos_token=vocabulary.eos_token,
        add_generation_prompt=True,
        **variables,
    )
