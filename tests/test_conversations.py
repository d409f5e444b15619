"""Every complaint about data names the file and the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ftllm.conversations import Message, load_conversations, read_jsonl
from ftllm.errors import UserError

GOOD = {
    "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>\nx\n</think>\nHello"}]
}
LINE = json.dumps(GOOD)


def row(*messages: object) -> str:
    return json.dumps({"messages": messages})


def write(tmp_path: Path, content: str | bytes, name: str = "data.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_rows_carry_their_line(tmp_path: Path) -> None:
    path = write(tmp_path, f"{LINE}\n\n  \n{LINE}")
    loaded = load_conversations(path)
    assert [conversation.source for conversation in loaded] == [f"{path}:1", f"{path}:4"]
    assert loaded[0].messages == (Message("user", "Hi"), Message("assistant", "<think>\nx\n</think>\nHello"))


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xef\xbb\xbf" + f"{LINE}\r\n{LINE}\r\n".encode())
    assert [number for number, _ in read_jsonl(path)] == [1, 2]


def test_content_none_parts_and_thought_fields(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        row(
            {"role": "system", "content": None},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "4", "reasoning_content": " 2 + 2 \n"},
        ),
    )
    system, user, assistant = load_conversations(path)[0].messages
    assert (system.content, user.content) == ("", "ab")
    assert assistant.content == "<think>\n2 + 2\n</think>\n\n4"


def test_json_array(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps([GOOD, GOOD], indent=1), "data.json")
    lines = path.read_text().splitlines()
    starts = [number for number, line in enumerate(lines, 1) if line == " {"]
    assert [conversation.source for conversation in load_conversations(path)] == [f"{path}:{n}" for n in starts]


def test_json_of_lines(tmp_path: Path) -> None:
    assert len(load_conversations(write(tmp_path, f"{LINE}\n{LINE}\n", "data.json"))) == 2


BAD_ROWS = [
    ('{"messages": [', ":2: not JSON: Expecting value at column 15"),
    ("{", ":2: not JSON"),
    ("[1]", ":2: a list instead of an object"),
    ("[" * 100_000, ":2: not usable JSON"),
    ('{"text": "a", "id": 1}', ":2: no 'messages' in the row (its keys: 'text', 'id')"),
    ("{}", ":2: no 'messages' in the row (its keys: none)"),
    ('{"messages": {}}', ":2: 'messages' is an object, not a list"),
    ('{"messages": null}', ":2: 'messages' is null, not a list"),
    ('{"messages": []}', ":2: 'messages' is empty"),
    (row("hello"), ":2: message 1 is a string, not an object"),
    (row({"content": "a"}), ":2: message 1 has no role"),
    (row({"role": "user", "content": "a"}, {"role": "bot"}), ':2: message 2 has the unknown role "bot"'),
    (row({"role": ["user"]}), ':2: message 1 has the unknown role ["user"]'),
    (row({"role": "user", "content": 3}), ":2: message 1: its content is a number, not text"),
    (row({"role": "user", "content": True}), ":2: message 1: its content is a boolean, not text"),
    (row({"role": "user", "content": [{"type": "image"}]}), ":2: message 1: its content holds a part of type 'image'"),
    (row({"role": "assistant", "content": "a", "thinking": 5}), ":2: message 1: its thought is a number, not text"),
    (row({"role": "assistant", "content": "", "tool_calls": [{}]}), ":2: message 1 calls tools"),
    ('{"messages": [{"role": "user", "content": "\\ud800"}]}', ":2: message 1 holds half of a surrogate pair"),
    (b'{"messages": "caf\xe9"}', f":2: not UTF-8: byte {len(LINE) + 1 + 17} of the file is 0xe9"),
    (b"\x00\x01\x02", ":2: a zero byte: this is no text file"),
]


@pytest.mark.parametrize(("bad", "message"), BAD_ROWS, ids=[message[:40] for _, message in BAD_ROWS])
def test_bad_rows_are_named(tmp_path: Path, bad: str | bytes, message: str) -> None:
    path = write(tmp_path, LINE.encode() + b"\n" + (bad.encode() if isinstance(bad, str) else bad) + b"\n")
    with pytest.raises(UserError) as caught:
        load_conversations(path)
    assert f"{path}{message}" in caught.value.message
    assert "\n" not in caught.value.message + caught.value.hint
    assert caught.value.hint


BAD_FILES = [
    ("data.jsonl", b"", " is empty"),
    ("data.jsonl", b"\n \n", " is empty"),
    ("data.jsonl", LINE.encode("utf-16"), " is UTF-16, not UTF-8"),
    ("data.json", b"", " is empty"),
    ("data.json", b"[]", " is empty"),
    ("data.json", f"[{LINE},\n".encode(), ":2: not JSON: the array is cut short"),
    ("data.json", f"[{LINE}\n".encode(), ":2: not JSON: the array is cut short"),
    ("data.json", f"[{LINE}\n{LINE}]".encode(), ":2: not JSON: the array is cut short or lacks a comma"),
    ("data.json", b'[\n{"messages": [}', ":2: not JSON: Expecting value"),
    ("data.json", b"[1]", ":1: a number instead of an object"),
    ("data.json", b'[\n{"a": "\xe9"}]', ":2: not UTF-8: byte 9 of the file is 0xe9"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = write(tmp_path, content, name)
    with pytest.raises(UserError) as caught:
        load_conversations(path)
    assert caught.value.message.startswith(f"{path}{message}")


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.json"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"missing\.jsonl? does not exist"):
        load_conversations(tmp_path / name)


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a directory"):
        load_conversations(tmp_path)


def test_reading_streams(tmp_path: Path) -> None:
    """The first row is there before the fault of a later one is met."""
    rows = read_jsonl(write(tmp_path, f"{LINE}\nnot json\n"))
    assert next(rows) == (1, GOOD)
    with pytest.raises(UserError, match=":2: not JSON"):
        next(rows)
