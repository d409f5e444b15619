"""Previews show what is trained: the training's own permutations, and every token's text and mask."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from real_tokenizers import vocabulary as real
from rich.console import Console

from ftllm.conversations import Conversation, Message
from ftllm.data.preview import Example, as_json, examples, pieces, show
from ftllm.errors import UserError
from ftllm.noise import Noised, NoiseSettings
from ftllm.render import IGNORED, render
from ftllm.vocabulary import DirectoryVocabulary, from_directory

NANO = Path(__file__).parents[2] / "models" / "nano"


@pytest.fixture(scope="module")
def nano() -> DirectoryVocabulary:
    return from_directory(NANO)


def shown(example: Example, vocabulary: DirectoryVocabulary, *, colour: bool) -> str:
    system = "standard" if colour else None
    console = Console(file=io.StringIO(), color_system=system, force_terminal=colour, width=1000, highlight=False)  # type: ignore[arg-type]
    show(example, vocabulary.tokenizer, console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


@pytest.mark.parametrize("epoch", [0, 2])
def test_the_noise_is_that_of_training(nano: DirectoryVocabulary, epoch: int) -> None:
    from ftllm.train.config import resolve
    from ftllm.train.corpus import load_corpus
    from ftllm.train.data import Rows
    from ftllm.train.settings import Setting

    data = NANO / "ft.jsonl"
    config = resolve([{"model": Setting(str(NANO), ""), "data": Setting(str(data), "")}])
    rows = Rows(config, load_corpus(config), nano)
    found = list(examples(str(data), config.noise.settings(), seed=config.seed, epoch=epoch, vocabulary=nano))
    assert [example.after for example in found] == [rows.noised(item, epoch) for item in rows.corpus.training]
    assert [example.rows[0] for example in found] == [rows.draw(unit, epoch) for unit in rows.plan().units]


def test_pieces_are_the_row_token_by_token(nano: DirectoryVocabulary) -> None:
    content = "Grüße 世界, a\tb\n  and 🙂 12"
    row = render(Conversation((Message("user", content), Message("assistant", content)), "x:1"), nano)[0]
    found = list(pieces(row, nano.tokenizer))
    assert [token for piece in found for token in piece.ids] == list(row.input_ids)
    assert "".join(piece.text for piece in found) == (
        f"<bos><start_of_turn>user\n{content}<end_of_turn>\n<start_of_turn>model\n{content}<end_of_turn>\n"
    )
    assert any(len(piece.ids) > 1 for piece in found), "bytes of one character stand together"
    assert [piece.trained for piece in found for _ in piece.ids] == [label != IGNORED for label in row.labels]
    assert "".join(piece.text for piece in found if piece.trained) == f"{content}<end_of_turn>"


def test_pieces_of_a_byte_level_tokenizer() -> None:
    vocabulary = real("qwen3")
    content = "Grüße 世界𠮷 and 🙂 12"
    row = render(Conversation((Message("user", "a"), Message("assistant", content)), "x:1"), vocabulary)[0]
    found = list(pieces(row, vocabulary.tokenizer))
    assert "".join(piece.text for piece in found if piece.trained).endswith(f"{content}<|im_end|>")


NOISY = Example(
    Conversation((Message("user", "a b\x1b[2J c"), Message("assistant", "d")), "d.jsonl:7"),
    Noised(Conversation((Message("user", "b\x1b[2J a c"), Message("assistant", "d")), "d.jsonl:7"),
           (((0, 5), (6, 7)), ()), 3),
)  # fmt: skip


def test_what_moved_and_what_is_trained_is_marked(nano: DirectoryVocabulary) -> None:
    example = Example(NOISY.before, NOISY.after, tuple(render(NOISY.after.conversation, nano)))
    plain = shown(example, nano, colour=False)
    assert plain.splitlines()[:3] == [
        "d.jsonl:7  2 of 3 units moved",
        "  data    a b␛[2J c",
        "  noised  {b␛[2J} {a} c",
    ]
    assert "[[d|<end_of_turn>]]\\n" in plain
    assert "  2 of " in plain
    coloured = shown(example, nano, colour=True)
    assert "\x1b[31ma\x1b[0m" in coloured
    assert "\x1b[32md\x1b[0m" in coloured or "\x1b[1;32md\x1b[0m" in coloured
    assert "\x1b[2J" not in plain + coloured


def test_the_middle_of_a_long_row_is_left_out(nano: DirectoryVocabulary) -> None:
    long = Conversation((Message("user", "a"), Message("assistant", "x7 " * 3000)), "d.jsonl:1")
    row = render(long, nano)[0]
    text = shown(Example(long, Noised(long, ((), ()), 0), (row,)), nano, colour=False)
    found = len(list(pieces(row, nano.tokenizer)))
    assert f" ... {found - 600} more ... " in text
    assert text.count("|") < 610
    assert f"  {row.trained} of {len(row.input_ids)} tokens trained" in text
    assert text.rstrip().splitlines()[-2].endswith("<end_of_turn>]]\\n")


def test_a_refused_row_says_why(tmp_path: Path, nano: DirectoryVocabulary) -> None:
    path = tmp_path / "d.jsonl"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>b"}]
    path.write_text(json.dumps({"messages": messages}) + "\n")
    [example] = examples(str(path), None, seed=1, vocabulary=nano)
    assert example.refusal == "message 2: a thought is opened and never closed"
    assert "refused" in shown(example, nano, colour=False)
    assert as_json(example, nano.tokenizer)["before"] == messages


def test_a_line_is_found_or_named() -> None:
    noise = NoiseSettings()
    [example] = examples(str(NANO / "ft.jsonl"), noise, seed=3407, line=5)
    assert example.before.source.endswith("ft.jsonl:5")
    assert list(examples(str(NANO / "ft.jsonl"), noise, seed=3407))[4] == example
    with pytest.raises(UserError, match="no row on line 999"):
        list(examples(str(NANO / "ft.jsonl"), noise, seed=3407, line=999))
