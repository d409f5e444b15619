"""Token pieces to text as they come."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from ftllm.llama.model import Model


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
    """Control tokens that `strings` are written with, and what they stand for: as text they are nothing."""
    tokens = {token for string in strings for token in model.encode(string) if not model.piece(token)}
    return {token: model.piece(token, special=True).decode("utf-8", "replace") for token in tokens}
