"""What a run reads: sources with weights, what is held out, what is left out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from ftllm.errors import UserError
from ftllm.train.config import TrainConfig, resolve
from ftllm.train.corpus import Corpus, load_corpus
from ftllm.train.data import Rows
from ftllm.train.settings import Setting
from ftllm.vocabulary import from_directory

NANO = Path(__file__).parents[2] / "models" / "nano"


def written(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs(path: Path, count: int) -> Path:
    rows = [{"prompt": f"{path.stem} {i} of these few words", "completion": str(i)} for i in range(count)]
    return written(path, *rows)


def configured(*data: str, **values: object) -> TrainConfig:
    given = {"model": str(NANO), "data": list(data), **values}
    return resolve([{key: Setting(value, "test") for key, value in given.items()}])


def counted(corpus: Corpus) -> Counter[str]:
    return Counter(Path(item.conversation.source.split(":")[0]).stem for item in corpus.training)


def test_weights_repeat_and_draw(tmp_path: Path) -> None:
    a, b, c = (pairs(tmp_path / f"{name}.jsonl", 10) for name in "abc")
    config = configured(f"{a}=2", f"{b}=0.3", f"{c}=1.5")
    corpus = load_corpus(config)
    assert counted(corpus) == {"a": 20, "b": 3, "c": 15}
    assert load_corpus(config) == corpus
    # Copies have indices of their own, and hence noise of their own.
    assert len({item.index for item in corpus.training}) == 38
    rows = Rows(config, corpus, from_directory(NANO))
    first, copy = (item for item in corpus.training if item.conversation.source == f"{a}:1")
    assert rows.conversation(first, 0) != rows.conversation(copy, 0)
    other = load_corpus(configured(f"{a}=2", f"{b}=0.3", f"{c}=1.5", seed=1))
    assert {i.index for i in other.training} != {i.index for i in corpus.training}
    with pytest.raises(UserError, match=r"a weight of 0\.01 leaves none of 10"):
        load_corpus(configured(f"{a}=0.01"))


def test_no_copy_of_a_held_out_row_is_trained_on(tmp_path: Path) -> None:
    a = pairs(tmp_path / "a.jsonl", 10)
    corpus = load_corpus(configured(f"{a}=3", eval="20%"))
    assert (len(corpus.training), len(corpus.held_out)) == (24, 2)
    trained = {item.conversation.messages for item in corpus.training}
    assert trained.isdisjoint(conversation.messages for conversation in corpus.held_out)
    assert corpus.notes == ()


def test_held_out_rows_that_are_trained_on_too_are_noticed(tmp_path: Path) -> None:
    a = pairs(tmp_path / "a.jsonl", 10)
    corpus = load_corpus(configured(str(a), eval=str(a)))
    assert corpus.notes == ("10 held-out conversations are trained on too: their likelihood says little",)


def test_a_directory_reads_its_training_split_and_says_so(tmp_path: Path) -> None:
    pairs(tmp_path / "train.jsonl", 4)
    pairs(tmp_path / "test.jsonl", 2)
    corpus = load_corpus(configured(str(tmp_path), eval=f"{tmp_path}:test"))
    assert (len(corpus.training), len(corpus.held_out)) == (4, 2)
    assert corpus.notes[0] == f"{tmp_path}: the split train is read; not of it: test.jsonl"
    assert corpus.pinned == (str(tmp_path),)
    assert corpus.pinned_eval == f"{tmp_path}:test"


def test_the_manifest_says_what_a_file_held(tmp_path: Path) -> None:
    row = {"id": 1, "prompt": "a", "completion": "<thinking>b</thinking>c"}
    path = written(tmp_path / "a.jsonl", row, row)
    (file,) = load_corpus(configured(str(path))).files
    assert {key: file[key] for key in ("path", "use", "format", "conversations", "thoughts", "ignored")} == {
        "path": str(path),
        "use": "data",
        "format": "prompt/completion",
        "conversations": 2,
        "thoughts": {"<thinking>": 2},
        "ignored": ["id"],
    }


BAD = [
    {"prompt": "a", "completion": 3},
    {"instruction": "a", "output": "b"},
    {"prompt": "a", "completion": "b<end_of_turn>c"},
]


def test_bad_rows_stop_or_are_dropped_and_counted(tmp_path: Path) -> None:
    good = {"prompt": "a few words", "completion": "b"}
    path = written(tmp_path / "a.jsonl", good, *BAD, good)
    with pytest.raises(UserError, match=rf"{path}:2: 'completion' is a number"):
        load_corpus(configured(str(path)))
    config = configured(str(path), bad_rows="drop")
    plan = Rows(config, load_corpus(config), from_directory(NANO)).plan()
    assert [unit.item.conversation.source for unit in plan.units] == [f"{path}:1", f"{path}:5"]
    assert [row.source for row in plan.refused] == [f"{path}:{line}" for line in (2, 3, 4)]
    assert ["number" in plan.refused[0].reason, "Alpaca" in plan.refused[1].reason] == [True, True]
    assert "control tokens" in plan.refused[2].reason
    path = written(tmp_path / "b.jsonl", *BAD[:1])
    config = configured(str(path), bad_rows="drop")
    with pytest.raises(UserError, match=rf"no row can be trained on; the first: {path}:1: 'completion'"):
        Rows(config, load_corpus(config), from_directory(NANO)).plan()
