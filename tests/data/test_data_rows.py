"""Files of every format give the same rows with their lines; what is wrong with one is said with its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import settings as checked
from hypothesis import strategies as st
from pyarrow import parquet

from ftllm.data.rows import is_data_file, read_rows
from ftllm.errors import UserError

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
LINE = json.dumps(GOOD)


def write(tmp_path: Path, content: str | bytes, name: str = "data.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def numbers(path: Path) -> list[int]:
    return [number for number, _ in read_rows(path)]


def test_rows_carry_their_line(tmp_path: Path) -> None:
    assert list(read_rows(write(tmp_path, f"{LINE}\n\n  \n{LINE}"))) == [(1, GOOD), (4, GOOD)]


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    assert numbers(write(tmp_path, b"\xef\xbb\xbf" + f"{LINE}\r\n{LINE}\r\n".encode())) == [1, 2]


def test_json_array(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps([GOOD, GOOD], indent=1), "data.json")
    lines = path.read_text().splitlines()
    assert numbers(path) == [number for number, line in enumerate(lines, 1) if line == " {"]


def test_json_of_lines(tmp_path: Path) -> None:
    assert numbers(write(tmp_path, f"{LINE}\n{LINE}\n", "data.json")) == [1, 2]


def test_gzip(tmp_path: Path) -> None:
    assert numbers(write(tmp_path, gzip.compress(f"{LINE}\n{LINE}\n".encode()), "data.jsonl.gz")) == [1, 2]


def test_parquet_rows_are_those_written(tmp_path: Path) -> None:
    rows = [GOOD, {"messages": [{"role": "user", "content": "a", "reasoning_content": "b"}]}] * 300
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data.parquet")
    read = list(read_rows(tmp_path / "data.parquet"))
    assert [number for number, _ in read] == list(range(1, 601))
    for (_, row), expected in zip(read, rows, strict=True):
        kept = [{k: v for k, v in message.items() if v is not None} for message in row["messages"]]
        assert kept == expected["messages"]


FIELDS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=20)


@checked(deadline=None, max_examples=60)
@given(rows=st.lists(st.tuples(FIELDS, FIELDS), min_size=1, max_size=5), delimiter=st.sampled_from([",", "\t"]))
def test_csv_is_what_pythons_writer_wrote(tmp_path_factory: Any, rows: list[tuple[str, str]], delimiter: str) -> None:
    import csv

    path = tmp_path_factory.mktemp("csv") / ("data.csv" if delimiter == "," else "data.tsv")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writerows([("prompt", "completion"), *rows])
    read = list(read_rows(path))
    assert [(row["prompt"], row["completion"]) for _, row in read] == rows
    lines = path.read_bytes().decode().split("\n")
    for number, row in read:
        assert lines[number - 1].startswith('"' + row["prompt"].replace('"', '""').split("\n")[0])


def test_csv_of_half_of_europe_and_lists_in_fields(tmp_path: Path) -> None:
    path = write(tmp_path, "prompt;completion\r\na;b\r\n", "data.csv")
    assert list(read_rows(path)) == [(2, {"prompt": "a", "completion": "b"})]
    quoted = json.dumps(GOOD["messages"]).replace('"', '""')
    path = write(tmp_path, f'id,messages\n1,"{quoted}"\n', "data.csv")
    assert list(read_rows(path)) == [(2, {"id": "1", **GOOD})]


BAD_LINES = [
    ('{"messages": [', ":2: not JSON: Expecting value at column 15"),
    ("{", ":2: not JSON"),
    ("[1]", ":2: a list instead of an object"),
    ("[" * 100_000, ":2: not usable JSON"),
    (b'{"messages": "caf\xe9"}', f":2: not UTF-8: byte {len(LINE) + 1 + 17} of the file is 0xe9"),
    (b"\x00\x01\x02", ":2: a zero byte: this is no text file"),
]


@pytest.mark.parametrize(("bad", "message"), BAD_LINES, ids=[message[:40] for _, message in BAD_LINES])
def test_bad_lines_are_named(tmp_path: Path, bad: str | bytes, message: str) -> None:
    path = write(tmp_path, LINE.encode() + b"\n" + (bad.encode() if isinstance(bad, str) else bad) + b"\n")
    with pytest.raises(UserError) as caught:
        list(read_rows(path))
    assert f"{path}{message}" in caught.value.message
    assert "\n" not in caught.value.message + caught.value.hint
    assert caught.value.hint


def test_reading_goes_on_behind_a_bad_line(tmp_path: Path) -> None:
    path = write(tmp_path, b"\n".join([LINE.encode(), b"{", b'"caf\xe9"', b"[]", LINE.encode()]))
    faults: list[UserError] = []
    assert [number for number, _ in read_rows(path, faults.append)] == [1, 5]
    assert [fault.message.split(":")[1] for fault in faults] == ["2", "3", "4"]


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def table(tmp_path: Path) -> bytes:
    parquet.write_table(pyarrow.Table.from_pylist([GOOD]), tmp_path / "whole")
    return (tmp_path / "whole").read_bytes()


BAD_FILES = [
    ("data.jsonl", b"", " is empty"),
    ("data.jsonl", b"\n \n", " is empty"),
    ("data.jsonl", LINE.encode("utf-16"), " is UTF-16, not UTF-8"),
    ("data.jsonl", bytes(range(256)), ":1: a zero byte"),
    ("data.json", b"", " is empty"),
    ("data.json", b"[]", " is empty"),
    ("data.json", f"[{LINE},\n".encode(), ":2: not JSON: the array is cut short"),
    ("data.json", f"[{LINE}\n".encode(), ":2: not JSON: the array is cut short"),
    ("data.json", f"[{LINE}\n{LINE}]".encode(), ":2: not JSON: the array is cut short or lacks a comma"),
    ("data.json", b'[\n{"messages": [}', ":2: not JSON: Expecting value"),
    ("data.json", b"[1]", ":1: a number instead of an object"),
    ("data.json", b'[\n{"a": "\xe9"}]', ":2: not UTF-8: byte 9 of the file is 0xe9"),
    ("data.csv", b"", " is empty"),
    ("data.csv", b"prompt,completion\n", " is empty"),
    ("data.csv", b"prompt,completion\na,b\nc\n", ":3: 1 fields, but the header names 2"),
    ("data.csv", b'prompt,completion\na,b\nc,"d\n', ":3: not CSV: unexpected end of data"),
    ("data.csv", "prompt,completion\né,b\n".encode("latin-1"), ":2: not UTF-8: byte 18 of the file is 0xe9"),
    ("data.parquet", b"", " is not a Parquet file"),
    ("data.parquet", LINE.encode(), " is not a Parquet file"),
    ("data.parquet", b"PAR1" + bytes(100), " is a broken Parquet file"),
    ("data.jsonl.gz", cut(gzip.compress(LINE.encode() * 9)), " is not a whole gzip file"),
    ("data.jsonl.gz", LINE.encode(), " is not a whole gzip file"),
]


@pytest.mark.parametrize(
    ("name", "content", "message"), BAD_FILES, ids=[f"{i}-{name}" for i, (name, *_) in enumerate(BAD_FILES)]
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = write(tmp_path, content, name)
    with pytest.raises(UserError) as caught:
        list(read_rows(path))
    assert caught.value.message.startswith(f"{path}{message}")
    assert caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


def test_a_parquet_file_cut_short(tmp_path: Path) -> None:
    path = write(tmp_path, cut(table(tmp_path)), "data.parquet")
    with pytest.raises(UserError, match="is a broken Parquet file"):
        list(read_rows(path))


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.json", "missing.csv", "missing.parquet"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"missing\.\w+ does not exist"):
        list(read_rows(tmp_path / name))


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a directory"):
        list(read_rows(tmp_path))


def test_reading_streams(tmp_path: Path) -> None:
    """The first row is there before the fault of a later one is met."""
    rows = read_rows(write(tmp_path, f"{LINE}\nnot json\n"))
    assert next(rows) == (1, GOOD)
    with pytest.raises(UserError, match=":2: not JSON"):
        next(rows)


def test_names_of_data_files() -> None:
    names = ["a.jsonl", "b.JSON", "c.csv.gz", "d.parquet", "e.md", "f.txt", "g.py", "h"]
    assert [name for name in names if is_data_file(name)] == names[:4]
