"""How thinking is switched on and off in the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import pytest

from ftllm.chat.options import ThinkMode, template_kwargs_of
from ftllm.chat.prompt import build_prompt
from ftllm.errors import UserError

PLAIN = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
SWITCHED = PLAIN + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
NAMED = PLAIN + "{# the words enable_thinking and thinking, and no switch #}"
OPENING = PLAIN + "<think>\n{# ends with </think> #}"
MESSAGES = [{"role": "user", "content": "Hi"}]


@dataclass(frozen=True)
class Characters:
    """A vocabulary of one token a character; the BOS is written `^`."""

    chat_template: str | None
    bos_token: str = "^"
    eos_token: str = "$"
    bos_id: int | None = ord("^")
    adds_bos: bool = True
    today: date | None = None

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def is_eog(self, token: int) -> bool:
        return token == ord("$")


def text_of(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


@pytest.mark.parametrize(
    ("template", "think", "text", "opened"),
    [
        (PLAIN, "auto", "^[user]Hi[assistant]", False),
        (PLAIN, "on", "^[user]Hi[assistant]<think>", True),
        (PLAIN, "off", "^[user]Hi[assistant]<think>\n\n</think>\n\n", False),
        (SWITCHED, "auto", "^[user]Hi[assistant]", False),
        (SWITCHED, "on", "^[user]Hi[assistant]", False),
        (SWITCHED, "off", "^[user]Hi[assistant]<think>\n\n</think>\n\n", False),
        (NAMED, "off", "^[user]Hi[assistant]<think>\n\n</think>\n\n", False),
        (OPENING, "auto", "^[user]Hi[assistant]<think>\n", True),
        (OPENING, "on", "^[user]Hi[assistant]<think>\n", True),
        (OPENING, "off", "^[user]Hi[assistant]<think>\n\n\n</think>\n\n", False),
    ],
)
def test_thinking_is_switched(template: str, think: ThinkMode, text: str, opened: bool) -> None:
    prompt = build_prompt(MESSAGES, Characters(template), think)
    assert text_of(prompt.ids) == text
    assert prompt.opened == opened


def test_variables_of_the_template() -> None:
    template = Characters(SWITCHED + "{% if effort %}({{ effort }}){% endif %}")
    assert text_of(build_prompt(MESSAGES, template, "auto", {"effort": "high"}).ids).endswith("[assistant](high)")
    assert text_of(build_prompt(MESSAGES, template, "off", {"effort": 3}).ids).endswith("</think>\n\n(3)")
    assert text_of(build_prompt(MESSAGES, template, "auto", {"enable_thinking": False}).ids).endswith("</think>\n\n")


def test_variables_as_typed() -> None:
    given = ["effort=high", "tools=[1]", "enable_thinking=false", 'quoted="3"', "empty=", "sum=a=b"]
    wanted = {"effort": "high", "tools": [1], "enable_thinking": False, "quoted": "3", "empty": "", "sum": "a=b"}
    assert template_kwargs_of(given) == wanted
    for wrong in ("effort", "=high", "an effort=high", "messages=[]"):
        with pytest.raises(UserError, match="--template-kwarg"):
            template_kwargs_of([wrong])


def test_there_is_always_one_bos() -> None:
    assert text_of(build_prompt(MESSAGES, Characters(PLAIN.replace("{{ bos_token }}", ""))).ids)[:2] == "^["


def test_a_model_without_a_template_cannot_chat() -> None:
    with pytest.raises(UserError, match="no chat template"):
        build_prompt(MESSAGES, Characters(None))


@pytest.mark.parametrize(
    ("template", "think", "thought", "content", "text", "opened"),
    [
        (PLAIN, "auto", "", "One,", "One,", False),
        (PLAIN, "auto", "Hm", "", "<think>Hm", True),
        (PLAIN, "auto", "Hm", "One,", "<think>Hm\n</think>\n\nOne,", False),
        (PLAIN, "on", "Hm", "", "<think>Hm", True),
        (PLAIN, "off", "Hm", "One,", "<think>\n\n</think>\n\nOne,", False),
        (OPENING, "auto", "Hm", "", "<think>\nHm", True),
        (OPENING, "auto", "Hm", "One,", "<think>\nHm\n</think>\n\nOne,", False),
        (OPENING, "auto", "", "One,", "<think>\n\n</think>\n\nOne,", False),
    ],
)
def test_a_begun_reply_is_gone_on_with(
    template: str, think: ThinkMode, thought: str, content: str, text: str, opened: bool
) -> None:
    begun = {"role": "assistant", "content": content, "reasoning_content": thought}
    prompt = build_prompt([*MESSAGES, begun], Characters(template), think)
    assert text_of(prompt.ids) == f"^[user]Hi[assistant]{text}"
    assert (prompt.opened, prompt.resumed) == (opened, True)
