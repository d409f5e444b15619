"""Every chat template that llama.cpp tests its own engine with."""

from __future__ import annotations

import re
from typing import Any

import pytest
from real_tokenizers import source_files

from ftllm.errors import UserError
from ftllm.templates import render_template
from ftllm.thoughts import ThoughtTags, opens_thought, tags_of

CHAT = [
    {"role": "user", "content": "one qzx"},
    {"role": "assistant", "content": "two qzx"},
    {"role": "user", "content": "three qzx"},
]
SYSTEM = {"role": "system", "content": "zero qzx"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Look it up.",
            "parameters": {
                "type": "object",
                "properties": {"what": {"type": "string", "description": "A word."}},
                "required": ["what"],
            },
        },
    }
]
TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>"}
# What a plain chat cannot give.
NEVER = {"fireworks-ai-llama-3-firefunction-v2": "'functions' is undefined (line 21)"}
REFUSED = {**NEVER, "google-gemma-2-2b-it": "System role not supported"}  # the latter a system turn only
# transformers calls these with `tools=None`, which they do not expect; llama.cpp leaves it undefined, as we do.
NEED_TOOLS = ("tool_use",)
THOUGHTS = {
    "Qwen-Qwen3-0.6B": "<think>",
    "unsloth-Apriel-1.5": "Here are my reasoning steps:\n",
    "google-gemma-4-31B-it": "<|channel>thought\n",
    "openai-gpt-oss-120b": "<|channel|>analysis<|message|>",
    "mistralai-Ministral-3-14B-Reasoning-2512": "[THINK]",
    "ByteDance-Seed-OSS": "<seed:think>",
    "upstage-Solar-Open-100B": "<|think|>",
    "Kimi-K3": "<|open|>think<|sep|>",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "<|START_THINKING|>",
    "MiniMax-M3": "<mm:think>",
    "tencent-Hy3": "<think:opensource>",
    "muse-glimmer": " to=self<|message|>",
    "Apertus-8B-Instruct": "<|inner_prefix|>",
    "meta-llama-Llama-3.1-8B-Instruct": "<think>",  # knows no thoughts: the usual tags
}


@pytest.fixture(scope="module")
def templates() -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in (source_files() / "templates").glob("*.jinja")}


def rendered(template: str, messages: list[dict[str, str]], **variables: Any) -> str:
    return render_template(template, messages, add_generation_prompt=True, **TOKENS, **variables)


def test_three_turns_render_or_the_construct_is_named(templates: dict[str, str]) -> None:
    assert len(templates) >= 65
    for name, template in templates.items():
        for messages in (CHAT, [SYSTEM, *CHAT]):
            if name in REFUSED and (messages is not CHAT or name in NEVER):
                with pytest.raises(UserError, match=re.escape(REFUSED[name])):
                    rendered(template, messages)
                continue
            text = rendered(template, messages)
            said = re.findall(r"(zero|one|two|three) qzx", text)
            assert [word for word in said if word != "zero"] == ["one", "two", "three"], name
            assert said.count("zero") == len(messages) - 3, name
            ending = text.rpartition("three qzx")[2]
            assert ending.strip(), f"{name}: nothing asks for the answer"


def test_as_transformers_renders_them(templates: dict[str, str]) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    compared = 0
    for name, template in templates.items():
        for messages in (CHAT, [SYSTEM, *CHAT]):
            for variables in ({}, {"tools": TOOLS}, {"enable_thinking": True}, {"enable_thinking": False}):
                if name.endswith(NEED_TOOLS) and "tools" not in variables:
                    continue
                given: dict[str, Any] = {"tools": None, **variables}
                try:
                    (expected,), _ = render_jinja_template(
                        [messages], chat_template=template, add_generation_prompt=True, **TOKENS, **given
                    )
                except Exception:
                    continue  # ours is looked at above; a generator in `tojson` is a list to llama.cpp and to us
                assert rendered(template, messages, **variables) == expected, (name, variables)
                compared += 1
    assert compared > 480


def test_a_tool_is_shown_to_the_model(templates: dict[str, str]) -> None:
    for name in ("Qwen-Qwen3-0.6B", "openai-gpt-oss-120b", "google-gemma-4-31B-it", "llama-cpp-deepseek-r1"):
        assert "Look it up." in rendered(templates[name], CHAT, tools=TOOLS), name
        assert "Look it up." not in rendered(templates[name], CHAT), name


def test_thoughts_are_found_from_the_template(templates: dict[str, str]) -> None:
    for name, opening in THOUGHTS.items():
        assert tags_of(templates[name]).open == opening, name
    usual = [name for name, template in templates.items() if "</think>" in template]
    assert len(usual) >= 28
    assert all(tags_of(templates[name]) == ThoughtTags() for name in usual)


def test_the_tags_around_a_thought_are_those_the_template_writes(templates: dict[str, str]) -> None:
    """The table of formats against what the templates make of a message that has a thought."""
    fields = {"reasoning_content": "deep qzx", "thinking": "deep qzx", "reasoning": "deep qzx", "thought": "deep qzx"}
    written = 0
    for name, template in templates.items():
        tags = tags_of(template)
        call = {"type": "function", "id": "call00001", "function": {"name": "look", "arguments": {"what": "x"}}}
        for message in ({"content": "two qzx"}, {"content": "", "tool_calls": [call]}):
            chat: list[dict[str, Any]] = [CHAT[0], {"role": "assistant", **fields, **message}]
            try:
                text = render_template(template, chat, **TOKENS)
            except UserError:
                continue
            if "deep qzx" in text:
                before, after = text.split("deep qzx")[:2]
                asked = rendered(template, CHAT[:1])  # some write the opening tag only to ask for an answer
                assert opens_thought(before, tags) or opens_thought(asked, tags), (name, before[-60:])
                assert after.lstrip().startswith(tags.close), (name, after[:60])
                written += 1
                break
    assert written >= 25
