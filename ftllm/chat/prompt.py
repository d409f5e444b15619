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


def build_prompt(messages: Sequence[Mapping[str, str]], vocabulary: Vocabulary, think: ThinkMode = "auto") -> Prompt:
    """The prompt for the assistant's next turn.

    `on` and `off` set the template's own switch where flipping it changes the prompt or the template names it; else
    they write the beginning of the reply: the opening tag, or an empty closed thought (as Qwen3's template does).

    Raises:
        UserError: the model has no chat template, or the template refuses the messages.
    """
    template = vocabulary.chat_template
    if template is None:
        raise UserError("the model has no chat template, so it cannot chat", "use an instruction-tuned model's GGUF")
    tags = tags_of(template)
    variables = {}
    suffix = ""
    if think != "auto":
        variables = {name: think == "on" for name in SWITCHES if name in template}
        if not variables:
            suffix = tags.open if think == "on" else f"{tags.open}\n\n{tags.close}\n\n"
    ids = prompt_ids(messages, vocabulary, **variables)
    text = render_template(
        template,
        messages,
        bos_token=vocabulary.bos_token,
        eos_token=vocabulary.eos_token,
        add_generation_prompt=True,
        **variables,
    )
    if opens_thought(text, tags):
        suffix = suffix.removeprefix(tags.open)  # the template opened it already
    if suffix:
        # As it follows the prompt: some tokenizers put a space before a text of its own.
        before, both = vocabulary.encode(text), vocabulary.encode(text + suffix)
        ids = [*ids, *(both[len(before) :] if both[: len(before)] == before else vocabulary.encode(suffix))]
    return Prompt(tuple(ids), tags, opens_thought(text + suffix, tags))
