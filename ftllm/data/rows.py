"""One data file -> its rows, as objects with their line: JSONL, JSON, CSV and TSV, Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ftllm.data.lines import MAX_LINE, Fault, lines, opened, stop
from ftllm.errors import UserError

FORM = 'one {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]} a line'
Rows = Iterator[tuple[int, dict[str, Any]]]
PARQUET_MAGIC = b"PAR1"


def read_rows(path: Path, fault: Fault = stop, *, label: str | None = None) -> Rows:
    """Each row of a file with its line (in Parquet: its row), from 1, read as a stream.

    Args:
        path: the format goes by its suffix; what has none of `READERS`' is read as JSONL. `.gz` may follow.
        fault: called with each row that cannot be read; reading goes on behind it where it can.
        label: what complaints call the file; its path unless given.

    Raises:
        UserError: the file is missing, unreadable, not what its suffix says, or without rows.
    """
    label = label or str(path)
    found = faulty = False

    def noted(error: UserError) -> None:
        nonlocal faulty
        faulty = True
        fault(error)

    for row in READERS.get(suffix_of(path.name), _jsonl)(path, label, noted):
        found = True
        yield row
    if not found and not faulty:
        raise UserError(f"{label} is empty", f"give {FORM}")


def suffix_of(name: str) -> str:
    """A file name's suffix in lower case, that before `.gz` where it ends so."""
    return Path(name.lower().removesuffix(".gz")).suffix


def is_data_file(name: str) -> bool:
    """Whether a file's name says that it holds rows."""
    return suffix_of(name) in READERS


def kind(value: Any) -> str:
    """What JSON calls a value, with its article."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null" if value is None else f"a {type(value).__name__}")


def _jsonl(path: Path, label: str, fault: Fault) -> Rows:
    with opened(path, label) as file:
        for number, line in lines(file, label, fault):
            if line.strip():
                try:
                    row = _object(line.rstrip(), f"{label}:{number}")
                except UserError as error:
                    fault(error)
                else:
                    yield number, row


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error.msg} at column {error.colno}", _json_hint(line)) from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{where}: not usable JSON: {error}", "mend or remove the line") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: {kind(value)} instead of an object", f"give {FORM}")
    return value


def _json_hint(line: str) -> str:
    if line.strip() in ("{", "["):
        return "JSONL wants each row whole on one line; a file that is one JSON array must be named .json"
    return "mend or remove the line; it may have been cut short"


def _json(path: Path, label: str, fault: Fault) -> Rows:
    """Each object of a JSON array with the line it starts on; objects one after another (JSONL) work too."""
    with opened(path, label) as file:
        text = "".join(line for _, line in lines(file, label))
    decoder = json.JSONDecoder()
    position = _skip_space(text, 0)
    array = text[position : position + 1] == "["
    position = _skip_space(text, position + 1) if array else position
    line, counted = 1, 0
    while position < len(text) and not (array and text[position] == "]"):
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            where = f"{label}:{error.lineno}"
            raise UserError(f"{where}: not JSON: {error.msg} at column {error.colno}", "mend the file") from None
        except (RecursionError, ValueError) as error:
            raise UserError(f"{label}:{line}: not usable JSON: {error}", "mend or remove the row") from None
        if isinstance(value, dict):
            yield line, value
        else:
            fault(UserError(f"{label}:{line}: {kind(value)} instead of an object", f"give {FORM}"))
        position = _skip_space(text, position)
        if array and text[position : position + 1] == ",":
            position = _skip_space(text, position + 1)
        elif array and text[position : position + 1] != "]":
            break
    if array and text[position : position + 1] != "]":
        last = 1 + text.count("\n", 0, position)
        raise UserError(f"{label}:{last}: not JSON: the array is cut short or lacks a comma", "mend the file")


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _csv(path: Path, label: str, fault: Fault, delimiter: str = ",") -> Rows:
    """Each record as an object of its header's names; a field that holds a JSON list (`messages`) is read as one."""
    csv.field_size_limit(MAX_LINE)
    with opened(path, label) as file:
        numbered = lines(file, label)
        first = next(numbered, None)
        if first is None:
            return
        # Spreadsheets of half of Europe write semicolons.
        if delimiter == "," and ";" in first[1] and "," not in first[1]:
            delimiter = ";"
        texts = (line for part in ((first,), numbered) for _, line in part)
        reader = csv.reader(texts, delimiter=delimiter, strict=True)
        header: list[str] = []
        start = 1
        try:
            for record in reader:
                if not header:
                    header = [name.strip() for name in record]
                elif len(record) != len(header) and record:
                    message = f"{label}:{start}: {len(record)} fields, but the header names {len(header)}"
                    fault(UserError(message, "mend the line; a field with commas or line breaks needs quotes"))
                elif record:
                    yield start, {name: _field(value) for name, value in zip(header, record, strict=True)}
                start = reader.line_num + 1
        except csv.Error as error:
            raise UserError(f"{label}:{start}: not CSV: {error}", "mend the line; a quote may be missing") from None


def _field(value: str) -> Any:
    if value[:2] in ("[{", "[ "):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _tsv(path: Path, label: str, fault: Fault) -> Rows:
    return _csv(path, label, fault, "\t")


def _parquet(path: Path, label: str, fault: Fault) -> Rows:
    del fault  # a Parquet file is whole or broken: no row of it is
    with opened(path, label) as file:
        magic = file.read(len(PARQUET_MAGIC))
    if magic != PARQUET_MAGIC:
        raise UserError(f"{label} is not a Parquet file", "name it by what it is: .jsonl, .json, .csv or .parquet")
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{label} is a broken Parquet file: {reason}", "it may be cut short; get it again") from None


READERS: dict[str, Callable[[Path, str, Fault], Rows]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
