"""A file of text as lines: UTF-8, counted, and refused with line and byte where it is none."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn

from ftllm.errors import UserError

MAX_LINE = 256 * 1024 * 1024  # bytes; a longer line is a file that is not JSONL, and would only fill the memory
TEXT_HINT = "give JSONL, JSON, CSV or Parquet"
# Called with each fault of a row; one that returns lets the reader go on to the next row.
Fault = Callable[[UserError], None]


def stop(fault: UserError) -> NoReturn:
    """The `Fault` that ends the reading at the first one."""
    raise fault


@contextmanager
def opened(path: Path, label: str) -> Iterator[BinaryIO]:
    """A file's bytes, `.gz` unpacked on the way.

    Args:
        path: the file.
        label: what complaints call it.

    Raises:
        UserError: it is missing, a directory, unreadable, or a broken gzip file.
    """
    try:
        with path.open("rb") as file:
            if path.suffix.lower() == ".gz":
                with gzip.GzipFile(fileobj=file) as unpacked:
                    yield io.BufferedReader(unpacked)
            else:
                yield file
    except FileNotFoundError:
        raise UserError(f"{label} does not exist", "check the path to the data") from None
    except IsADirectoryError:
        raise UserError(f"{label} is a directory", "name a data file in it") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{label} is not a whole gzip file: {error}", "it may be cut short; get it again") from None
    except OSError as error:
        raise UserError(f"{label} cannot be read: {error.strerror}", "check the path and its permissions") from None


def lines(file: BinaryIO, label: str, fault: Fault = stop) -> Iterator[tuple[int, str]]:
    """Each line with its number (from 1) and its line end; a UTF-8 byte order mark is taken off.

    Faults are lines that are not UTF-8, with the byte counted from the start of the file.

    Raises:
        UserError: a line beyond `MAX_LINE`, UTF-16, or a zero byte: what no later line can mend.
    """
    number, offset = 0, 0
    while raw := file.readline(MAX_LINE + 1):
        number += 1
        where = f"{label}:{number}"
        if len(raw) > MAX_LINE:
            raise UserError(f"{where}: the line is longer than {MAX_LINE >> 20} MiB", TEXT_HINT)
        if number == 1 and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise UserError(f"{label} is UTF-16, not UTF-8", f"convert it: iconv -f utf-16 -t utf-8 {label}")
        if b"\0" in raw:
            raise UserError(f"{where}: a zero byte: this is no text file", TEXT_HINT)
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            fault(
                UserError(
                    f"{where}: not UTF-8: byte {offset + error.start} of the file is 0x{raw[error.start]:02x}",
                    f"if it is Latin-1, convert it: iconv -f latin1 -t utf-8 {label}",
                )
            )
        else:
            yield number, text
        offset += len(raw)
