"""Loading, metadata and the vocabulary of a tiny Gemma-shaped GGUF."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_gemma as tiny

from ftllm.errors import UserError, WorkError
from ftllm.llama.context import Context
from ftllm.llama.model import Model
from ftllm.llama.text import TextStream


def test_facts(gemma: Model, gemma_path: Path) -> None:
    assert gemma.path == gemma_path
    assert gemma.n_vocab == tiny.N_VOCAB
    assert gemma.n_ctx_train == tiny.N_CTX
    assert gemma.n_layer == tiny.LAYERS
    assert gemma.n_embd == tiny.WIDTH
    assert gemma.n_params == gemma.header.n_params
    assert gemma.size_bytes == gemma.header.tensor_bytes == 4 * gemma.n_params
    assert gemma.description.startswith("gemma3")
    assert gemma.gpu_layers == 0
    assert gemma.metadata["general.architecture"] == "gemma3"
    assert gemma.metadata["general.sampling.top_k"] == "40"
    assert gemma.metadata["tokenizer.chat_template"] == gemma.chat_template == tiny.TEMPLATE


def test_special_tokens(gemma: Model) -> None:
    assert (gemma.bos_id, gemma.bos_token) == (tiny.BOS, "<bos>")
    assert (gemma.eos_id, gemma.eos_token) == (tiny.EOS, "<eos>")
    assert gemma.adds_bos
    assert [token for token in range(tiny.N_VOCAB) if gemma.is_eog(token)] == [tiny.EOS, tiny.END_OF_TURN]
    assert not gemma.is_eog(-1)
    assert not gemma.is_eog(tiny.N_VOCAB)


def test_encode_parses_special_tokens_and_adds_nothing(gemma: Model) -> None:
    word = {text: tiny.FIRST_WORD + index for index, text in enumerate(tiny.WORDS)}
    ids = gemma.encode("<bos><start_of_turn>user\na<end_of_turn>\n")
    assert ids == [
        tiny.BOS,
        tiny.START_OF_TURN,
        *(word[c] for c in "user"),
        word["\n"],
        word["a"],
        tiny.END_OF_TURN,
        word["\n"],
    ]
    assert gemma.encode("a") == [word["a"]]
    assert gemma.encode("") == []


def test_unknown_characters_are_bytes(gemma: Model) -> None:
    assert gemma.encode("é") == [tiny.FIRST_BYTE + byte for byte in "é".encode()]
    assert gemma.encode("\0") == [tiny.FIRST_BYTE]


@pytest.mark.parametrize("text", ["the cat in a hat", " 12+3=15\n\n", "žluťoučký 🙂 漢字", "a" * 5000])
def test_text_comes_back(gemma: Model, text: str) -> None:
    ids = gemma.encode(text)
    assert gemma.decode_text(ids) == text
    stream = TextStream(gemma)
    assert "".join([*(stream.feed(token) for token in ids), stream.finish()]) == text


def test_control_tokens_are_text_only_when_asked(gemma: Model) -> None:
    ids = gemma.encode("<bos><start_of_turn>a<end_of_turn>")
    assert gemma.decode_text(ids) == "a"
    assert gemma.decode_text(ids, special=True) == "<bos><start_of_turn>a<end_of_turn>"
    assert gemma.piece(tiny.END_OF_TURN) == b""
    assert gemma.piece(tiny.END_OF_TURN, special=True) == b"<end_of_turn>"


def test_a_character_waits_for_its_last_byte(gemma: Model) -> None:
    stream = TextStream(gemma)
    pieces = [stream.feed(tiny.FIRST_BYTE + byte) for byte in "🙂".encode()]
    assert pieces == ["", "", "", "🙂"]
    assert not stream.pending
    assert stream.feed(tiny.FIRST_BYTE + 0xF0) == ""
    assert stream.pending
    assert stream.finish() == "\ufffd"


def test_tokens_that_do_not_exist(gemma: Model) -> None:
    for token in (-1, tiny.N_VOCAB):
        with pytest.raises(IndexError):
            gemma.piece(token)


def test_the_vocabulary_alone(gemma_path: Path) -> None:
    with Model.load(gemma_path, vocab_only=True) as model:
        assert model.encode("<bos>a") == [tiny.BOS, tiny.FIRST_WORD + 1]
        assert model.n_layer == tiny.LAYERS
        assert model.n_ctx_train == tiny.N_CTX
        with pytest.raises(ValueError, match="vocabulary only"):
            Context(model)


def test_a_closed_model_says_so_and_closes_its_contexts(gemma_path: Path) -> None:
    model = Model.load(gemma_path)
    context = Context(model, n_ctx=64)
    model.close()
    model.close()
    with pytest.raises(RuntimeError, match="closed"):
        model.encode("a")
    with pytest.raises(RuntimeError, match="closed"):
        context.decode([tiny.BOS], start=0)
    with pytest.raises(RuntimeError, match="closed"):
        context.length()


def test_progress_may_stop_loading(gemma_path: Path) -> None:
    shares: list[float] = []
    with Model.load(gemma_path, progress=lambda share: shares.append(share) is None):
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
    with pytest.raises(WorkError, match="stopped"):
        Model.load(gemma_path, progress=lambda share: False)  # noqa: ARG005
    with pytest.raises(ZeroDivisionError):
        Model.load(gemma_path, progress=lambda share: share / 0 > 1)


def write_other(path: Path, architecture: str, kind: str) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(kind)
    writer.add_tensor("a.weight", np.zeros((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_files_that_are_no_model(tmp_path: Path, gemma_path: Path) -> None:
    with pytest.raises(UserError, match="does not know the architecture 'strange'"):
        Model.load(write_other(tmp_path / "strange.gguf", "strange", "model"))
    with pytest.raises(UserError, match="of kind 'adapter'"):
        Model.load(write_other(tmp_path / "adapter.gguf", "llama", "adapter"))
    with pytest.raises(UserError, match=r"lacking\.gguf cannot be loaded"):
        Model.load(write_other(tmp_path / "lacking.gguf", "llama", "model"))
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gemma_path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is cut short"):
        Model.load(cut)
    vocabulary = tmp_path / "vocabulary.gguf"
    writer = gguf.GGUFWriter(vocabulary, "gemma3")
    tiny.add_vocabulary(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match="holds a vocabulary and no weights"):
        Model.load(vocabulary)
