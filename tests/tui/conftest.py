"""The engine tests' GGUF that says what a script wants, for the screen over the real engine."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`T` is answered with a thought and `It is 42.`; `L` and, in a thought, `R` never end; `E` is an escape code."""
    source = Path(__file__).parents[1] / "chat" / "conftest.py"
    spec = importlib.util.spec_from_file_location("scripted_gguf", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(source.parent))  # for its helpers
        spec.loader.exec_module(module)
    path: Path = module.write_scripted(tmp_path_factory.mktemp("gguf") / "scripted-F32.gguf")
    return path


@pytest.fixture(autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of tests log into a directory of their own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
