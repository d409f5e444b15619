"""What the screen asks of an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ftllm.chat.options import LoadSettings, ReplyOptions, SamplingOptions
from ftllm.chat.remote import Target


class Talker(Protocol):
    """`ftllm.chat.voice.Voice`, or a recording of it. Each method returns at once; events tell what came of it."""

    def load(self, target: Target, /, settings: LoadSettings | None = None) -> None:
        """Load a model."""

    def generate(self, messages: Sequence[Mapping[str, Any]], options: ReplyOptions | None = None) -> int:
        """Ask for the next turn; the reply's number."""
        ...

    def stop(self) -> None:
        """End the reply under way."""

    def answer_now(self) -> None:
        """End the thought under way."""

    def set_sampling(self, sampling: SamplingOptions) -> None:
        """Sample the rest of the reply under way in another way; None leaves a setting as it is."""

    def save_state(self, path: Path) -> None:
        """Write what the model has read to a file; `StateSaved` follows where there is anything to write."""

    def load_state(self, path: Path) -> None:
        """Take it from a file."""
