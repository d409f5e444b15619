"""What holds for every test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hub_server import Hub
from hypothesis import settings

# A shell that starts the tests in the background has them ignore Ctrl-C, and every program they start would too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# On a developer's machine every run tries new examples; in CI the same ones, so that red means the change is at fault.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A Hub of our own on loopback, for the real client; `hf_ownersecret` is the token of its user `owner`."""
    server = Hub()
    yield server
    server.close()
