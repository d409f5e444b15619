"""The rebuilt tokenizers make of llama.cpp's test texts the ids that the published ones made."""

from __future__ import annotations

import pytest
from real_tokenizers import FAMILIES, source_files, tokenizer_files
from real_tokenizers import vocabulary as real


@pytest.mark.parametrize("family", ["llama3", "qwen2", "gemma4"])
def test_ids_are_those_of_the_published_tokenizer(family: str) -> None:
    stem = source_files() / f"ggml-vocab-{FAMILIES[family].vocabulary}.gguf"
    texts = stem.with_name(stem.name + ".inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = stem.with_name(stem.name + ".out").read_text(encoding="utf-8").splitlines()
    vocabulary = real(family)
    assert len(texts) > 40
    for text, line in zip(texts, lines, strict=False):
        ids = [int(token) for token in line.split()]
        assert vocabulary.encode(text) == vocabulary.tokenizer.encode(text, add_special_tokens=False) == ids, text


def test_mistral_splits_as_sentencepiece_does() -> None:
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(tokenizer_files("mistral") / "tokenizer.model"))
    tokenizer = real("mistral").tokenizer
    for text in ("Hello", "Grüße,  你好 🙂\n\n\tx = 12345", "a\r\nb", "return  x**2"):
        assert real("mistral").encode(text) == tokenizer.encode(text, add_special_tokens=False) == pieces.encode(text)
    assert tokenizer.encode("x")[0] == tokenizer.bos_token_id == 1


def test_qwen3_has_its_own_added_tokens() -> None:
    tokenizer = real("qwen3").tokenizer
    assert tokenizer.encode("<think>x</think>") == [151667, 87, 151668]
    assert tokenizer.convert_tokens_to_ids("<|file_sep|>") == 151664
