"""What --data may name: files, directories and data sets on the Hub, the latter through the real client."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_server import Fault, Hub

from ftllm.data.lines import stop
from ftllm.data.sources import DataFile, absolute, find, is_dataset_id, load_file, source_of
from ftllm.errors import UserError, WorkError

LINE = json.dumps({"prompt": "2+2?", "completion": "<thinking>two</thinking>4", "id": 1}).encode() + b"\n"
OTHER = json.dumps({"instruction": "2+2?", "output": "4"}).encode() + b"\n"


@pytest.mark.parametrize(
    ("text", "place", "weight"),
    [
        ("a.jsonl", "a.jsonl", 1),
        ("a.jsonl=0.5", "a.jsonl", 0.5),
        ("a.jsonl=2", "a.jsonl", 2),
        ("org/name:train=.25", "org/name:train", 0.25),
        ("a=b.jsonl", "a=b.jsonl", 1),
        ("a=b.jsonl=3", "a=b.jsonl", 3),
    ],
)
def test_weights(text: str, place: str, weight: float) -> None:
    source = source_of(text)
    assert (source.text, source.weight) == (place, weight)


def test_a_file_of_that_name_wins_over_a_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a=2").write_bytes(LINE)
    assert source_of("a=2").text == "a=2"


def test_a_weight_of_nothing() -> None:
    with pytest.raises(UserError, match="leaves nothing"):
        source_of("a.jsonl=0")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", True),
        ("org/name:train", True),
        ("org/name:main:train", True),
        ("org/name@refs/convert/parquet", True),
        ("org/name@0f3a:test", True),
        ("data/mine.jsonl", False),
        ("data/mine.jsonl.gz", False),
        ("./name", False),
        ("/org/name", False),
        ("name", False),
        ("a/b/c", False),
    ],
)
def test_ids_of_data_sets(text: str, expected: bool) -> None:
    assert is_dataset_id(text) is expected


def test_absolute(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.jsonl").write_bytes(LINE)
    given = {
        "a.jsonl=0.5": f"{tmp_path}/a.jsonl=0.5",
        "folder:test": f"{tmp_path}/folder:test",
        "missing.jsonl": f"{tmp_path}/missing.jsonl",
        "data/missing.jsonl": f"{tmp_path}/data/missing.jsonl",
        "org/name:test=2": "org/name:test=2",
    }
    assert {text: absolute(text, tmp_path) for text in given} == given


def test_a_directory_is_read_by_split(tmp_path: Path) -> None:
    for name in ("train.jsonl", "more/train-2.csv", "test.jsonl", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(LINE)
    found = find(source_of(str(tmp_path)))
    assert [file.path for file in found.files] == [tmp_path / "more/train-2.csv", tmp_path / "train.jsonl"]
    assert (found.split, found.left_out) == ("train", ("test.jsonl",))
    found = find(source_of(f"{tmp_path}:test=2"))
    assert [file.path for file in found.files] == [tmp_path / "test.jsonl"]
    assert found.pinned == f"{tmp_path}:test=2"


def test_a_data_set_comes_down_once_and_stays(at_hub: Hub) -> None:
    at_hub.add("org/set", {"train.jsonl": LINE, "test.jsonl": LINE * 2, "big.gguf": b"x" * 9}, type="dataset")
    said: list[str] = []
    found = find(source_of("org/set:test=0.5"), say=said.append)
    (file,) = found.files
    assert file.path.read_bytes() == LINE * 2
    assert file.label == "org/set/test.jsonl"
    commit = at_hub.repo("org/set", "dataset").branches["main"]
    assert found.pinned == f"org/set@{commit}:test=0.5"
    assert said == ["fetching 1 file of org/set, 0.0 MB"]
    assert not (file.path.parent / "train.jsonl").exists()
    again: list[str] = []
    assert find(source_of(found.pinned), say=again.append).files == found.files
    assert again == []
    at_hub.close()
    assert find(source_of("org/set:test"), offline=True).files == found.files
    assert find(source_of(found.pinned), offline=True).files == found.files
    with pytest.raises(UserError, match="no split 'validation'"):
        find(source_of("org/set:validation"), offline=True)


def test_what_the_hub_refuses(at_hub: Hub) -> None:
    at_hub.add("org/script", {"script.py": b"raise SystemExit('run!')"}, type="dataset")
    at_hub.add("org/gated", {"a.jsonl": LINE, "README.md": b"# x\n"}, type="dataset", gated=True)
    for text, message, hint in (
        ("org/none", "there is no dataset org/none on the Hub", "check the name"),
        ("org/script", "only a loading script (script.py), which is never run", "refs/convert/parquet"),
        ("org/script@other", "org/script has no revision other", "a branch"),
        ("org/gated", "org/gated is gated", "datasets/org/gated"),
    ):
        with pytest.raises(UserError) as caught:
            find(source_of(text))
        assert message in caught.value.message
        assert hint in caught.value.hint
        assert "\n" not in caught.value.message
    with pytest.raises(UserError, match="org/none is not on this machine, and this is offline"):
        find(source_of("org/none"), offline=True)
    at_hub.faults.append(Fault("GET .*/org/none", status=500))
    with pytest.raises(WorkError, match="org/none could not be downloaded"):
        find(source_of("org/none"))


@pytest.mark.parametrize("text", ["missing.jsonl", "data/missing.csv", "missing", "a/b/c"])
def test_what_is_neither_here_nor_a_data_set(text: str) -> None:
    with pytest.raises(UserError, match=f"{text} does not exist"):
        find(source_of(text))


def test_a_file_of_two_formats_is_refused_at_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(LINE + LINE + OTHER + LINE)
    with pytest.raises(
        UserError, match=r"mixed\.jsonl:3: this row is Alpaca, but the file began with prompt/completion"
    ):
        load_file(DataFile(path, str(path)), stop)
    faults: list[UserError] = []
    conversations, facts = load_file(DataFile(path, "m"), faults.append)
    assert [conversation.source for conversation in conversations] == ["m:1", "m:2", "m:4"]
    assert len(faults) == 1
    assert (facts.format, facts.rows) == ("prompt/completion", 3)
    assert (facts.spellings, facts.ignored) == ({"<thinking>": 3}, {"id": 3})
