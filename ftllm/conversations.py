"""Conversations: what is trained on, measured on and talked about. `ftllm.data` reads them from files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)
# The names that chat templates give a message's thought.
THOUGHT_FIELDS = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class Message:
    """One turn; an assistant's thought stands inline in `content` as `<think>...</think>`."""

    role: Role
    content: str


@dataclass(frozen=True)
class Conversation:
    """The turns of one row, and where it came from (`file.jsonl:12`)."""

    messages: tuple[Message, ...]
    source: str
