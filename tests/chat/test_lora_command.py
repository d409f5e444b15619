"""`ftllm chat --lora`: adapters at run time, remembered by a session, and what is wrongly given."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from chat_command import chat

from ftllm.chat import store as chats
from ftllm.llama.model import Model


def write_lora(path: Path, model: Path, first: str, following: str) -> Path:
    """An adapter of the scripted model that has one token followed by another."""
    with Model.load(model, vocab_only=True) as vocabulary:
        ((a,), (b,)) = vocabulary.encode(first), vocabulary.encode(following)
        rows, width = vocabulary.n_vocab, 512
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 1.0)
    writer.add_tensor("output.weight.lora_a", np.eye(1, width, a, dtype=np.float32))
    writer.add_tensor("output.weight.lora_b", 4 * np.eye(1, rows, b, dtype=np.float32).T.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def lora(scripted: Path, tmp_path: Path) -> Path:
    return write_lora(tmp_path / "short=1.gguf", scripted, "Q", "z")


def test_adapters_and_their_scales(scripted: Path, lora: Path, tmp_path: Path) -> None:
    other = write_lora(tmp_path / "other.gguf", scripted, "x", "z")
    for given, answer in (
        ([lora], "z"),
        ([f"{lora}=0"], "xyz"),
        ([f"{lora}=0.01", f"{other}=1"], "xz"),
        ([lora, other], "z"),
    ):
        options = [part for adapter in given for part in ("--lora", adapter)]
        assert chat(scripted, "-p", "Q", *options).stdout == f"{answer}\n"


def test_a_session_and_a_batch_know_their_adapters(
    scripted: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    assert chat(scripted, "-p", "Q", "--lora", lora, "--session", "s").stdout == "z\n"
    assert chat("-p", "Q", "--session", "s").stdout == "z\n"
    assert chat("-p", "Q", "--session", "s", "--lora", f"{lora}=0").stdout == "xyz\n"
    with chats.open_store(tmp_path / "home" / "ftllm" / "chats.db") as store:
        (info,) = chats.list_sessions(store)
        hashes = [node.author.model_hash for node in chats.shown(store, info.id) if node.message.role == "assistant"]
    assert info.load.adapters == ((str(lora), 0.0),)
    assert hashes[0] == hashes[1] != hashes[2]
    (tmp_path / "q.jsonl").write_text('{"prompt": "Q"}\n')
    done = chat(scripted, "--batch", tmp_path / "q.jsonl", "--lora", lora)
    assert json.loads(done.stdout)["answer"] == "z"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("nowhere.gguf", "does not exist"),
        ("MODEL", "not a LoRA adapter"),
        ("nowhere.gguf=much", "'much' is no scale"),
    ],
)
def test_bad_adapters_are_one_line_and_exit_2(scripted: Path, given: str, complaint: str) -> None:
    done = chat(scripted, "-p", "Q", "--lora", str(scripted) if given == "MODEL" else given)
    assert (done.returncode, done.stdout) == (2, "")
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_an_endpoint_has_adapters_of_its_own() -> None:
    done = chat("http://127.0.0.1:9/v1", "-p", "Q", "--lora", "x.gguf")
    assert done.returncode == 2
    assert "--lora goes with a model on this machine" in done.stderr
