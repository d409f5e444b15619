"""Models with a scripted mouth, and engines that have loaded them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_gguf import END, TEMPLATE, write_scripted
from talking import Talk

from ftllm.chat.options import LoadSettings


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scripted(tmp_path_factory.mktemp("gguf") / "scripted-F32.gguf")


@pytest.fixture(scope="session")
def opening(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose template opens the thought (and ends the prompt with the tag's last token)."""
    template = TEMPLATE.replace("{{ messages[-1]['content'][-1] }}", "<think>") + "{# </think> #}"
    scripts = {">": ["so", "</t", "hink>", " done", *END]}
    return write_scripted(tmp_path_factory.mktemp("gguf") / "opening-F32.gguf", scripts, template)


@pytest.fixture(scope="session")
def channels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that speaks in gpt-oss's channels, whose marks are control tokens; it thinks again and again."""
    control = ["<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|return|>", "<|call|>"]
    scripts = {
        "H": ["<|channel|>", "analysis", "<|message|>", "```", "hm", "<|end|>", "<|start|>", "assistant", control[0]],
        "Y": ["<|return|>", "<|call|>"],  # by these llama.cpp knows that "<|end|>" ends no turn
    }
    template = TEMPLATE + "{# <|channel|>analysis<|message|> #}"
    path = tmp_path_factory.mktemp("gguf") / "channels-F32.gguf"
    return write_scripted(path, scripts, template, control)


@pytest.fixture(autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of tests log into a directory of their own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


@pytest.fixture
def talk(scripted: Path, tmp_path: Path) -> Iterator[Talk]:
    talk = Talk(tmp_path / "logs")
    with talk.engine:
        talk.engine.load(scripted)
        yield talk


@pytest.fixture
def small(scripted: Path, tmp_path: Path) -> Iterator[Talk]:
    """With a context of 256 tokens."""
    talk = Talk(tmp_path / "logs")
    with talk.engine:
        talk.engine.load(scripted, LoadSettings(n_ctx=256))
        yield talk
