"""Token pieces to text as they come."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable

from ftllm.llama.model import Model

MARK = re.compile(r"<\|.+>|<.+\|>")  # "<|end|>", "<|channel>", "<channel|>"


class TextStream:
    """Turns tokens into text one by one, holding back a character until its last byte is there.

    Bytes that are no UTF-8 become U+FFFD. Control tokens give no text.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """Whole characters that `token` completes; often all of its text, sometimes none."""
        return self._decoder.decode(self._model.piece(token))

    @property
    def pending(self) -> bool:
        """Whether a character has begun and not ended."""
        return bool(self._decoder.getstate()[0])

    def finish(self) -> str:
        """What is left: U+FFFD for a character that never ended, else nothing."""
        return self._decoder.decode(b"", final=True)


def control_texts(model: Model, strings: Iterable[str]) -> dict[int, str]:
    """Control tokens that `strings` are written with, and what they stand for: as text they may be nothing.

    llama.cpp gives the marks of some formats, gpt-oss's for one, a text of their own; they are told by their shape.
    """
    tokens = {token for string in strings for token in model.encode(string)}
    texts = {token: model.piece(token, special=True).decode("utf-8", "replace") for token in tokens}
    return {token: text for token, text in texts.items() if not model.piece(token) or MARK.fullmatch(text)}
