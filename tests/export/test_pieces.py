"""A vocabulary that is read at once is SentencePiece's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from ftllm.export.pieces import Pieces, read_at_once
from tests.real_tokenizers import tokenizer_files

QUESTIONS = ("IdToPiece", "GetScore", "IsUnknown", "IsControl", "IsUnused", "IsByte")
Kind: Any = ModelProto.SentencePiece
Theirs = sentencepiece.SentencePieceProcessor


@pytest.fixture
def every_kind(tmp_path: Path) -> Path:
    """A `tokenizer.model` with pieces of all kinds, and a score that is no round number."""
    model = ModelProto()
    for text, kind in (
        ("<unk>", Kind.UNKNOWN),
        ("<s>", Kind.CONTROL),
        ("<tag>", Kind.USER_DEFINED),
        ("<unused0>", Kind.UNUSED),
        ("▁né", Kind.NORMAL),
        *((f"<0x{byte:02X}>", Kind.BYTE) for byte in range(256)),
    ):
        model.pieces.add(piece=text, score=-1 / 3, type=kind)
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.byte_fallback = True
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model.SerializeToString())
    return path


def same(path: Path) -> int:
    """How many answers there are, all of them SentencePiece's."""
    found, wanted = Pieces(Theirs), Theirs(model_file=str(path))
    assert found.LoadFromFile(str(path)) is True
    assert found.vocab_size() == wanted.vocab_size()
    for question in QUESTIONS:
        answers = [getattr(found, question)(index) for index in range(wanted.vocab_size())]
        assert answers == [getattr(wanted, question)(index) for index in range(wanted.vocab_size())], question
    return len(QUESTIONS) * int(found.vocab_size())


def test_its_answers_are_sentencepieces(every_kind: Path) -> None:
    assert same(every_kind) == 6 * 261
    assert same(tokenizer_files("mistral") / "tokenizer.model") == 6 * 32_000


def test_what_else_is_asked_sentencepiece_answers() -> None:
    path = tokenizer_files("mistral") / "tokenizer.model"
    found, wanted = Pieces(Theirs), Theirs(model_file=str(path))
    found.LoadFromFile(str(path))
    assert found.EncodeAsPieces("Grüße, 你好") == wanted.EncodeAsPieces("Grüße, 你好")


@pytest.mark.parametrize("damage", ["empty", "two unknown", "twice", "nameless"])
def test_of_no_vocabulary_sentencepiece_says_what_is_wrong(every_kind: Path, damage: str) -> None:
    model = ModelProto()
    model.ParseFromString(every_kind.read_bytes())
    if damage == "empty":
        model = ModelProto()
    elif damage == "two unknown":
        model.pieces[1].type = Kind.UNKNOWN
    else:
        model.pieces[2].piece = "▁né" if damage == "twice" else ""
    every_kind.write_bytes(model.SerializeToString())
    with pytest.raises(RuntimeError) as theirs:
        Theirs(model_file=str(every_kind))
    with pytest.raises(RuntimeError) as ours:
        Pieces(Theirs).LoadFromFile(str(every_kind))
    assert str(ours.value) == str(theirs.value)


def test_it_stands_in_only_while_a_vocabulary_is_made(every_kind: Path) -> None:
    seen: list[str] = []

    def create(path: Path) -> int:
        from sentencepiece import SentencePieceProcessor

        tokenizer = SentencePieceProcessor()
        seen.append(type(tokenizer).__name__)
        tokenizer.LoadFromFile(str(path))
        return int(tokenizer.vocab_size())

    assert read_at_once(create)(every_kind) == 261
    every_kind.write_bytes(b"\xff" * 9)
    with pytest.raises(DecodeError):
        read_at_once(create)(every_kind)
    every_kind.write_bytes(b"")
    with pytest.raises(RuntimeError, match="unk is not defined"):
        read_at_once(create)(every_kind)
    assert seen == ["Pieces"] * 3
    assert sentencepiece.SentencePieceProcessor is Theirs
