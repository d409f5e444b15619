"""What holds native memory: closed by `with`, by hand, or at the latest when nothing refers to it any more."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Self


class Closing:
    """A base class; `close` frees what is held, and may be called twice."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # a half-made object, or an interpreter that ends
            self.close()
