"""Real chat templates: every thought is trained as the model would write it, or refused by name.

With the real tokenizers of Qwen3, a DeepSeek-R1 distillation, Gemma 4, gpt-oss and Llama 3, and a walk over all
templates of llama.cpp with a vocabulary of words and control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from functools import cache

import pytest
from real_tokenizers import source_files
from real_tokenizers import vocabulary as real

from ftllm.conversations import Conversation, Message
from ftllm.errors import UserError
from ftllm.render import IGNORED, Row, prompt_ids, render
from ftllm.templates import THINKING
from ftllm.thoughts import opens_thought, split, tags_of
from ftllm.vocabulary import END_OF_GENERATION

FIRST, SECOND = "<think>\nalpha beta\n</think>\n\ngamma", "<think>\ndelta\n</think>\n\nepsilon"


def chat(*turns: str) -> Conversation:
    messages = (Message("assistant" if i % 2 else "user", turn) for i, turn in enumerate(turns))
    return Conversation(tuple(messages), "d.jsonl:3")


PLAIN = chat("one", "gamma", "two", "epsilon")
THOUGHTFUL = chat("one", FIRST, "two", SECOND)


def spans(row: Row, text: Callable[[list[int]], str]) -> list[tuple[str, str]]:
    """What stands before each trained span since the last one, and the span."""
    found: list[tuple[str, str]] = []
    before: list[int] = []
    trained: list[int] = []
    for token, label in zip(row.input_ids, row.labels, strict=True):
        if label == IGNORED and trained:
            found.append((text(before), text(trained)))
            before, trained = [], []
        (before if label == IGNORED else trained).append(token)
    return [*found, (text(before), text(trained))] if trained else found


QWEN = "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n"
DEEP = "<｜begin▁of▁sentence｜><｜User｜>one<｜Assistant｜><think>\n"
ENDED = "<｜end▁of▁sentence｜>"
GEMMA = "<bos><|turn>system\n<|think|>\n<turn|>\n<|turn>user\none<turn|>\n<|turn>model\n"
FINAL = "<|start|>assistant<|channel|>final<|message|>"
LLAMA = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
EXPECTED: dict[str, tuple[list[str], list[str], list[str]]] = {
    # family: ends of what stands before each answer, the answers with thoughts, and those without
    "qwen3": (
        [QWEN, "gamma<|im_end|>\n<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n"],
        [f"{FIRST}<|im_end|>", f"{SECOND}<|im_end|>"],
        ["<think>\n\n</think>\n\ngamma<|im_end|>", "<think>\n\n</think>\n\nepsilon<|im_end|>"],
    ),
    "deepseek": (
        [DEEP, f"gamma{ENDED}<｜User｜>two<｜Assistant｜><think>\n"],
        [f"alpha beta\n</think>\n\ngamma{ENDED}", f"delta\n</think>\n\nepsilon{ENDED}"],
        [f"gamma{ENDED}", f"epsilon{ENDED}"],  # this template closes the thought in the prompt unless asked not to
    ),
    "gemma4": (
        [GEMMA, "<|turn>model\ngamma<turn|>\n<|turn>user\ntwo<turn|>\n<|turn>model\n"],
        ["<|channel>thought\nalpha beta\n<channel|>gamma<turn|>", "<|channel>thought\ndelta\n<channel|>epsilon<turn|>"],
        ["gamma<turn|>", "epsilon<turn|>"],
    ),
    "gpt-oss": (
        [
            "<|start|>user<|message|>one<|end|><|start|>assistant",
            "<|channel|>final<|message|>gamma<|end|><|start|>user<|message|>two<|end|><|start|>assistant",
        ],
        [
            f"<|channel|>analysis<|message|>alpha beta<|end|>{FINAL}gamma<|return|>",
            f"<|channel|>analysis<|message|>delta<|end|>{FINAL}epsilon<|return|>",
        ],
        ["<|channel|>final<|message|>gamma<|return|>", "<|channel|>final<|message|>epsilon<|return|>"],
    ),
    "llama3": (
        [f"one{LLAMA}", f"two{LLAMA}"],
        [f"{FIRST}<|eot_id|>", f"{SECOND}<|eot_id|>"],
        ["gamma<|eot_id|>", "epsilon<|eot_id|>"],
    ),
}


@pytest.mark.parametrize("family", EXPECTED)
def test_real_models_are_trained_on_what_they_would_write(family: str) -> None:
    vocabulary = real(family)
    before, thoughtful, plain = EXPECTED[family]

    def text(ids: list[int]) -> str:
        decoded: str = vocabulary.tokenizer.decode(ids)
        return decoded

    rows = render(THOUGHTFUL, vocabulary)
    found = [span for row in rows for span in spans(row, text)]
    assert [answer for _, answer in found] == thoughtful
    for (asked, _), end in zip(found, before, strict=True):
        assert asked.endswith(end)
    assert [answer for row in render(PLAIN, vocabulary) for _, answer in spans(row, text)] == plain
    for row in rows:
        assert row.input_ids.count(vocabulary.bos_id) == (1 if vocabulary.adds_bos else 0)


@pytest.mark.parametrize("family", EXPECTED)
def test_each_turn_follows_the_ids_that_generation_is_given(family: str) -> None:
    """A thoughtful turn follows the prompt with thinking on, a plain one the prompt as it is."""
    vocabulary = real(family)
    for conversation, variables in ((THOUGHTFUL, THINKING), (PLAIN, {})):
        for row in render(conversation, vocabulary):
            start = next(i for i, label in enumerate(row.labels) if label != IGNORED)
            asked = [{"role": message.role, "content": message.content} for message in conversation.messages]
            prompts = [prompt_ids(asked[:turns], vocabulary, **variables) for turns in (1, 3)]
            assert list(row.input_ids[:start]) in prompts


WORDS = re.compile(
    r"<｜[^｜]*｜>|<[|/]?[\w:.~]+(?:\|>|>)|<\|[^<>|]+\|>|\[e~\[|\]~b\]|\[/?[A-Z_]+\]|◁[^▷]*▷|\w+|\s|.", re.DOTALL
)
# Ends of turn that llama.cpp does not know by their text alone: the models' generation_config.json names them.
ENDS = {
    "Apertus": "<|assistant_end|>",
    "ByteDance-Seed-OSS": "<seed:eos>",
    "Cohere": "<|END_OF_TURN_TOKEN|>",
    "GLM": "<|user|>",
    "GigaChat": "<|message_sep|>",
    "Kimi-K3": "<|end_of_msg|>",
    "MiniMax-M1": "<end_of_sentence>",
    "NVIDIA-Nemotron-Nano-v2": "<SPECIAL_12>",
    "Reka": "<sep>",
    "ibm": "<|end_of_text|>",
    "inclusionai": "<|role_end|>",
    "muse": "<|eot|>",
    "poolside": "</assistant>",
    "tencent": "<｜hy_eos:opensource｜>",
}


@dataclass
class Words:
    """A vocabulary of words, white space and control tokens, whatever a template's are."""

    chat_template: str
    name: str
    bos_token: str = "<BOS>"
    eos_token: str = "</s>"
    bos_id: int = 0
    adds_bos: bool = True
    today: date | None = None
    pieces: list[str] = field(default_factory=lambda: ["<BOS>"])

    def encode(self, text: str) -> list[int]:
        found = WORDS.findall(text)
        self.pieces += [piece for piece in dict.fromkeys(found) if piece not in self.pieces]
        return [self.pieces.index(piece) for piece in found]

    def is_eog(self, token: int) -> bool:
        piece = self.pieces[token]
        if piece == "<|end|>" and self.name.startswith(("openai", "upstage")):  # ends a part of a turn only
            return False
        return piece in END_OF_GENERATION or any(self.name.startswith(n) and piece == end for n, end in ENDS.items())

    def text(self, ids: list[int]) -> str:
        return "".join(self.pieces[i] for i in ids)


REFUSED = {
    "fireworks-ai-llama-3-firefunction-v2.jinja": "'functions' is undefined",
    "llama-cpp-rwkv-world.jinja": "no end-of-turn token",
    "upstage-Solar-Open-100B.jinja": "no end-of-turn token",  # to this model, its <|end|> is the end of a part only
}
# Its prompt closes the thought unless `reasoning_effort` says otherwise, a switch that is not known here.
UNTHINKING = "tencent-Hy3.jinja"
TEMPLATES = 70


@cache
def templates() -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in (source_files() / "templates").glob("*.jinja")}


def test_there_are_as_many_templates_as_are_looked_at() -> None:
    assert len(templates()) == TEMPLATES


@pytest.mark.parametrize("index", range(TEMPLATES))
def test_no_template_loses_a_thought(index: int) -> None:
    name = sorted(templates())[index]
    vocabulary = Words(templates()[name], name)
    tags = tags_of(vocabulary.chat_template)
    if name in REFUSED:
        for conversation in (PLAIN, THOUGHTFUL):
            with pytest.raises(UserError, match=r"^d\.jsonl:3: .*" + re.escape(REFUSED[name])):
                render(conversation, vocabulary)
        return
    if name == UNTHINKING:
        with pytest.raises(UserError, match=r"^d\.jsonl:3: message 2: .* drops or changes the assistant's thought"):
            render(THOUGHTFUL, vocabulary)
    for conversation in (PLAIN,) if name == UNTHINKING else (PLAIN, THOUGHTFUL):
        found = [span for row in render(conversation, vocabulary) for span in spans(row, vocabulary.text)]
        assert len(found) == 2
        for (before, answer), message in zip(found, conversation.messages[1::2], strict=True):
            read = split(answer, tags, opened=opens_thought(before, tags))
            thought, said, _ = split(message.content)
            assert (read.thought, said in read.answer, read.closed) == (thought, True, True)
            assert [vocabulary.is_eog(token) for token in vocabulary.encode(answer)].count(True) == 1
            assert vocabulary.is_eog(vocabulary.encode(answer)[-1])
