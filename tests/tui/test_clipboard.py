"""Ways to the clipboard."""

from __future__ import annotations

from pathlib import Path

import pytest
from tui_stage import Stage

from tui.clipboard import give_to_helper, has_browser, helper, takes_osc52


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing on the PATH but what a test puts there; each notes its arguments and its input."""
    monkeypatch.setenv("PATH", str(tmp_path))

    for name in ("tmux", "xclip"):
        script = tmp_path / name
        script.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/{name}.said\n/bin/cat >> {tmp_path}/{name}.said\n')
        script.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    ("environment", "command"),
    [
        ({"TMUX": "/tmp/tmux-0/default,1,0", "SSH_CONNECTION": "a b"}, "tmux"),
        ({"DISPLAY": ":0"}, "xclip"),
        ({"DISPLAY": ":0", "SSH_CONNECTION": "10.0.0.1 22"}, None),
        ({"WAYLAND_DISPLAY": "wayland-0"}, None),  # no wl-copy here
        ({}, None),
    ],
)
def test_the_helper_of_a_place(tools: Path, environment: dict[str, str], command: str | None) -> None:
    found = helper(environment)
    assert (found[0] if found else None) == command
    assert give_to_helper("naïve\ntext", environment) is (command is not None)
    if command is not None:
        assert (tools / f"{command}.said").read_text().split("\n", 1)[1] == "naïve\ntext"


def test_a_helper_that_fails(tools: Path) -> None:
    (tools / "xclip").write_text("#!/bin/sh\nexit 1\n")
    assert not give_to_helper("text", {"DISPLAY": ":0"})


def test_terminals_without_osc52() -> None:
    assert takes_osc52({"TERM": "xterm-256color"})
    assert not takes_osc52({"TERM": "linux"})
    assert not takes_osc52({"TERM": "xterm-256color", "TERM_PROGRAM": "Apple_Terminal"})


def test_where_a_browser_opens() -> None:
    assert has_browser({}, "darwin")
    assert has_browser({"DISPLAY": ":0"}, "linux")
    assert not has_browser({}, "linux")
    assert not has_browser({"DISPLAY": "localhost:10.0", "SSH_CONNECTION": "10.0.0.1 22"}, "linux")


async def test_without_a_browser_an_address_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 22")
    stage = Stage()
    async with stage.app.run_test() as pilot:
        stage.app.open_url("https://one.example")
        await pilot.pause()
        assert stage.app.clipboard == "https://one.example"
        assert [one.message for one in stage.app._notifications] == ["Address copied"]
