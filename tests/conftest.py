"""What holds for every test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub
from hypothesis import settings

# A shell that starts the tests in the background has them ignore Ctrl-C, and every program they start would too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Hundreds of tests start a program: with this set, each start would compile it anew, half a second's work.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Several tests run at once, each with threads for every core. Those that wait for each other turning in circles keep
# the others' from their work: the demo took 135 s beside a program of two threads, and 43 s with threads that sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# On a developer's machine every run tries new examples; in CI the same ones, so that red means the change is at fault.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(autouse=True, scope="session")
def _no_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Chats of tests begin without the settings file of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A Hub of our own on loopback, for the real client; `hf_ownersecret` is the token of its user `owner`."""
    server = Hub()
    yield server
    server.close()


@pytest.fixture
def at_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The Hub of our own as the only one: for the client in this process and in those it starts, with an empty cache,
    no token and no Xet (whose protocol is its library's own affair)."""
    from huggingface_hub import constants

    home = tmp_path / "hub-home"
    monkeypatch.delenv("HF_TOKEN", raising=False)
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return hub
