"""SentencePiece's vocabulary for upstream's converter, which asks six questions about each of Gemma's 262k pieces.

Asked of a `SentencePieceProcessor`, each is a call into C++; read from the file at once, the answers are items of
lists, and a second is saved.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import Any

KINDS = {"IsUnknown": "UNKNOWN", "IsControl": "CONTROL", "IsUnused": "UNUSED", "IsByte": "BYTE"}


class Pieces:
    """What a `SentencePieceProcessor` says of its pieces, once `LoadFromFile` was called.

    Args:
        make: that class; one is made for all else.
    """

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def LoadFromFile(self, path: str) -> bool:
        """Read a `tokenizer.model`; of pieces that cannot be a vocabulary, SentencePiece says what is wrong with them.

        Raises:
            google.protobuf.message.DecodeError: it is none.
            RuntimeError: it is damaged.
        """
        from sentencepiece.sentencepiece_model_pb2 import ModelProto

        self._path = path
        model = ModelProto()
        model.ParseFromString(Path(path).read_bytes())
        pieces = [(piece.piece, piece.score, piece.type) for piece in model.pieces]
        texts, scores, kinds = ([piece[part] for piece in pieces] for part in range(3))
        self.vocab_size = texts.__len__
        self.IdToPiece = texts.__getitem__
        self.GetScore = scores.__getitem__
        for question, kind in KINDS.items():
            wanted = ModelProto.SentencePiece.Type.Value(kind)
            setattr(self, question, [kind == wanted for kind in kinds].__getitem__)
        unknown = kinds.count(ModelProto.SentencePiece.UNKNOWN)
        sound = unknown == 1 and len({"", *texts}) == len(texts) + 1
        return sound or self._processor is not None  # making it fails, and says why

    @cached_property
    def _processor(self) -> Any:
        return self._make(model_file=self._path)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._processor, name)


def read_at_once(create: Callable[..., Any]) -> Callable[..., Any]:
    """`create`, upstream's `_create_vocab_sentencepiece`, with `Pieces` where it makes a `SentencePieceProcessor`."""

    @wraps(create)
    def reading(self: Any) -> Any:
        sentencepiece: Any = importlib.import_module("sentencepiece")
        theirs = sentencepiece.SentencePieceProcessor
        sentencepiece.SentencePieceProcessor = partial(Pieces, theirs)
        try:
            return create(self)
        finally:
            sentencepiece.SentencePieceProcessor = theirs

    return reading
