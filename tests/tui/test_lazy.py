"""The module of Textual that a start does without."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import tui
from textual.types import IgnoreReturnCallbackType
import textual._types
print(IgnoreReturnCallbackType is textual._types.IgnoreReturnCallbackType, "textual.widgets._select" in sys.modules)
import textual.types as types
from textual.types import DirEntry
from textual.widgets._directory_tree import DirEntry as itself
import textual.types
print(DirEntry is itself, types.DirEntry is itself, textual.types.DirEntry is itself, textual.types.__all__[:1])
print(hasattr(types, "nothing"), hasattr(textual.types, "nothing"))
"""


def test_it_is_imported_when_it_is_needed() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["True False", "True True True ['ActionParseResult']", "False False"], (
        done.stderr
    )
