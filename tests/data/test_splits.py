"""Files and splits as the Hub's documentation pairs them."""

from __future__ import annotations

import pytest

from ftllm.data.splits import files_of
from ftllm.errors import UserError

CARD = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: "main/train-*"}
  - {split: test, path: [main/test.jsonl]}
- config_name: socratic
  data_files: "socratic/*.jsonl"
---
# A data set
"""
CONFIGURED = ["README.md", "main/train-0.parquet", "main/train-1.parquet", "main/test.jsonl", "socratic/a.jsonl"]


@pytest.mark.parametrize(
    ("names", "card", "wanted", "expected"),
    [
        (["a.jsonl"], "", (), ("train", ["a.jsonl"])),
        (["b.jsonl", "a.jsonl", "README.md", "x.png"], "", (), ("train", ["a.jsonl", "b.jsonl"])),
        (["train.jsonl", "test.jsonl"], "", (), ("train", ["train.jsonl"])),
        (["train.jsonl", "test.jsonl"], "", ("test",), ("test", ["test.jsonl"])),
        (["data/train-0-of-1.parquet", "data/val-0.csv"], "", ("validation",), ("validation", ["data/val-0.csv"])),
        (["data/train/a.csv", "data/dev/a.csv"], "", ("dev",), ("validation", ["data/dev/a.csv"])),
        (["test.jsonl"], "", (), ("test", ["test.jsonl"])),
        (["constraint.jsonl", "latest.jsonl"], "", (), ("train", ["constraint.jsonl", "latest.jsonl"])),
        (["a.jsonl", "dataset_infos.json", ".hidden/b.jsonl"], "", (), ("train", ["a.jsonl"])),
        (["a.jsonl", "b.jsonl", "all.parquet"], "", (), ("train", ["a.jsonl", "b.jsonl"])),
        (CONFIGURED, CARD, ("main",), ("main:train", ["main/train-0.parquet", "main/train-1.parquet"])),
        (CONFIGURED, CARD, ("main", "test"), ("main:test", ["main/test.jsonl"])),
        (CONFIGURED, CARD, ("socratic",), ("socratic:train", ["socratic/a.jsonl"])),
        (CONFIGURED, CARD.replace("main\n", "main\n  default: 1\n", 1), ("test",), ("main:test", ["main/test.jsonl"])),
        (CONFIGURED, CARD.replace("main\n", "default\n", 1), ("test",), ("default:test", ["main/test.jsonl"])),
        # On a machine that has one configuration only, it is the one there is.
        (CONFIGURED[:3], CARD, (), ("train", ["main/train-0.parquet", "main/train-1.parquet"])),
        (["a.jsonl"], "---\nlicense: [\n---\n", (), ("train", ["a.jsonl"])),
    ],
)  # fmt: skip
def test_files_of_a_split(
    names: list[str], card: str, wanted: tuple[str, ...], expected: tuple[str, list[str]]
) -> None:
    assert files_of(names, card, wanted, "org/name", one_kind=True) == expected


def test_a_directory_may_hold_several_formats() -> None:
    assert files_of(["a.jsonl", "b.csv"], "", (), "here", one_kind=False) == ("train", ["a.jsonl", "b.csv"])


@pytest.mark.parametrize(
    ("names", "card", "wanted", "message", "hint"),
    [
        (["README.md"], "", (), "org/name holds no data", ".jsonl"),
        (["name.py"], "", (), "only a loading script (name.py), which is never run", "refs/convert/parquet"),
        (["test.jsonl", "dev.jsonl"], "", (), "no split 'train', but validation, test", "org/name:validation"),
        (["train.jsonl"], "", ("test",), "no split 'test'", "it has train"),
        (["train.jsonl"], "", ("main", "test"), "no configuration 'main'", "it has none"),
        (CONFIGURED, CARD, (), "several configurations: main, socratic", "org/name:main"),
        (CONFIGURED, CARD, ("other", "train"), "no configuration 'other'", "main, socratic"),
        (CONFIGURED, CARD, ("main", "dev"), "no split 'dev'", "it has train, test"),
    ],
)  # fmt: skip
def test_what_cannot_be_chosen(names: list[str], card: str, wanted: tuple[str, ...], message: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        files_of(names, card, wanted, "org/name", one_kind=True)
    assert message in caught.value.message
    assert hint in caught.value.hint
