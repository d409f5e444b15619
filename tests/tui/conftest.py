"""The engine tests' GGUF that says what a script wants, for the screen over the real engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripted_gguf import write_scripted


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`T` is answered with a thought and `It is 42.`; `L` and, in a thought, `R` never end; `E` is an escape code."""
    return write_scripted(tmp_path_factory.mktemp("gguf") / "scripted-F32.gguf")


@pytest.fixture(autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of tests log into a directory of their own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
