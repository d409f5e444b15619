"""4-bit copies of models on the Hub, and the 16-bit originals that an adapter trained on them is merged into."""

from __future__ import annotations

import re

# How bitsandbytes copies are named: the original's name with this behind it.
COPY = re.compile(r"(-unsloth)?-bnb-4bit$", re.IGNORECASE)
# Copies in Unsloth's own list (unsloth/models/mapper.py of 2026.10.9) whose original is called otherwise.
RENAMED = {
    "unsloth/codellama-13b": "codellama/CodeLlama-13b-hf",
    "unsloth/codellama-34b": "codellama/CodeLlama-34b-hf",
    "unsloth/mistral-7b-instruct-v0.1": "mistralai/Mistral-7B-Instruct-v0.1",
    "unsloth/mistral-large-instruct-2407": "mistralai/Mistral-Large-Instruct-2407",
    "unsloth/pixtral-12b-2409-base": "unsloth/Pixtral-12B-Base-2409",
    "unsloth/solar-10.7b": "upstage/SOLAR-10.7B-v1.0",
    "unsloth/llama-3-70b": "meta-llama/Meta-Llama-3-70B",
    "unsloth/llama-3-70b-instruct": "meta-llama/Meta-Llama-3-70B-Instruct",
    "unsloth/meta-llama-3.1-405b": "meta-llama/Meta-Llama-3.1-405B",
    "unsloth/meta-llama-3.1-405b-instruct": "meta-llama/Meta-Llama-3.1-405B-Instruct",
    "unsloth/llama-3.1-tulu-3-70b": "allenai/Llama-3.1-Tulu-3-70B",
    "unsloth/hermes-3-llama-3.1-70b": "NousResearch/Hermes-3-Llama-3.1-70B",
    "unsloth/hermes-3-llama-3.1-405b": "NousResearch/Hermes-3-Llama-3.1-405B",
    "unsloth/openthinker-7b": "open-thoughts/OpenThinker-7B",
    "unsloth/qwen2-70b": "Qwen/Qwen2-70B",
    "unsloth/qwen2-70b-instruct": "Qwen/Qwen2-70B-Instruct",
    "unsloth/qwen2-vl-72b": "Qwen/Qwen2-VL-72B",
    "unsloth/c4ai-command-r-08-2024": "CohereForAI/c4ai-command-r-08-2024",
    "unsloth/c4ai-command-r-plus-08-2024": "CohereForAI/c4ai-command-r-plus-08-2024",
    "unsloth/apertus-70b-instruct-2509": "swiss-ai/Apertus-70B-Instruct-2509",
}


def is_four_bit(name: str) -> bool:
    """Whether a name is that of a 4-bit copy."""
    return COPY.search(name) is not None


def original(name: str) -> str:
    """The 16-bit model that a 4-bit copy was made from; any other name as it is."""
    if not is_four_bit(name):
        return name
    stem = COPY.sub("", name)
    return RENAMED.get(stem.lower(), stem)
