"""The tiny Gemma-shaped GGUF, loaded once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_gemma import write_gemma

from ftllm.llama.model import Model


@pytest.fixture(scope="session")
def gemma_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gemma(tmp_path_factory.mktemp("gguf") / "tiny-F32.gguf")


@pytest.fixture(scope="session")
def gemma(gemma_path: Path) -> Iterator[Model]:
    with Model.load(gemma_path) as model:
        yield model
