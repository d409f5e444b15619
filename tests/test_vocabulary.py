"""A Hugging Face directory as a vocabulary, and what is wrong with one that is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ftllm.errors import UserError
from ftllm.export.tokens import read_tokens
from ftllm.vocabulary import _end_ids, from_directory

NANO = Path("models/nano")
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json", "chat_template.jinja")


def copy_of_nano(tmp_path: Path, *without: str) -> Path:
    for name in FILES:
        if name not in without and (NANO / name).is_file():
            shutil.copy(NANO / name, tmp_path / name)
    return tmp_path


def test_nano() -> None:
    nano = from_directory(NANO)
    assert (nano.bos_token, nano.eos_token, nano.bos_id, nano.adds_bos) == ("<bos>", "<eos>", 2, True)
    turn = nano.encode("<start_of_turn>user\nHi<end_of_turn>")
    assert turn[0] == nano.tokenizer.convert_tokens_to_ids("<start_of_turn>")
    assert nano.is_eog(turn[-1])
    assert nano.is_eog(nano.encode("<eos>")[0])
    assert not any(map(nano.is_eog, turn[:-1]))
    assert nano.bos_id not in nano.encode("Hi")
    assert nano.encode("") == []


@pytest.mark.parametrize(
    ("without", "message"),
    [
        (FILES, "has no tokenizer"),
        (("tokenizer.json",), "has no tokenizer"),
        (("chat_template.jinja",), "has no chat template"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, without: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as caught:
        from_directory(copy_of_nano(tmp_path, *without))
    assert str(tmp_path) in caught.value.message
    assert message in caught.value.message


def test_broken_tokenizer(tmp_path: Path) -> None:
    (copy_of_nano(tmp_path) / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(UserError, match="cannot be read") as caught:
        from_directory(tmp_path)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("tokenizer.json", {"model": 3}),
        ("tokenizer.json", {}),
        ("tokenizer.json", [1]),
        ("tokenizer.json", {"model": {"type": "Nope"}}),
        ("tokenizer.json", {"model": {"type": "WordLevel", "vocab": {}, "unk_token": "<unk>"}}),
        ("tokenizer_config.json", 3),
        ("tokenizer_config.json", {"tokenizer_class": 3}),
    ],
    ids=repr,
)
def test_json_that_is_no_tokenizer_is_refused_in_one_line(tmp_path: Path, name: str, holds: object) -> None:
    """By training and by the verification of an export alike."""
    (copy_of_nano(tmp_path) / name).write_text(json.dumps(holds))
    for read in (from_directory, lambda path: read_tokens(path, 2048)):
        with pytest.raises(UserError, match=r"^the tokenizer in \S+ cannot be read: [^\n]+$") as caught:
            read(tmp_path)
        assert (caught.value.exit_code, caught.value.hint) == (2, "copy it again from the base")
        assert "has no attribute" not in caught.value.message


def test_not_a_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a directory"):
        from_directory(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("texts", "eos", "configured", "expected"),
    [
        (["a", "<end_of_turn>", "<eos>"], "<eos>", None, {"<end_of_turn>", "<eos>"}),
        (["a", "<|im_end|>", "<|endoftext|>"], "<|im_end|>", None, {"<|im_end|>", "<|endoftext|>"}),
        (["a", "<|user|>", "</s>"], "</s>", ["<|user|>"], {"</s>", "<|user|>"}),
        (["a", "stop"], None, "stop", {"stop"}),
        (["<|end|>", "<|return|>", "<|call|>"], "<|return|>", None, {"<|return|>", "<|call|>"}),
        (["<turn|>", "<eos>", "</s>", "<|tool_response>"], "<eos>", None, {"<turn|>", "<eos>", "<|tool_response>"}),
    ],
    ids=["gemma", "qwen", "glm", "configured", "gpt-oss", "gemma 4"],
)
def test_end_of_generation(
    tmp_path: Path, texts: list[str], eos: str | None, configured: str | list[str] | None, expected: set[str]
) -> None:
    ids = {text: number for number, text in enumerate(texts)}
    if configured is not None:
        value = [ids[text] for text in configured] if isinstance(configured, list) else ids[configured]
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert {texts[i] for i in _end_ids(ids, None if eos is None else ids[eos], tmp_path)} == expected
