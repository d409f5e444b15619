"""What a person reads when the Hub says no, or says nothing."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hub_server import Fault, Hub

from ftllm.errors import UserError, WorkError
from ftllm.hubfiles import explain, is_repository, snapshot, without_tokens


def test_names() -> None:
    assert all(map(is_repository, ("org/name", "org/na.me@v1.0", "o/n@refs/pr/1")))
    assert not any(map(is_repository, ("name", "/org/name", "org/name/file", "./org/name", "org/name@")))


def test_a_snapshot(at_hub: Hub) -> None:
    repo = at_hub.add("org/a", {"config.json": b"{}", "weights.bin": b"x"})
    path = snapshot("org/a", patterns=["*.json"])
    assert sorted(item.name for item in path.iterdir()) == ["config.json"]
    assert path.name == repo.branches["main"]
    asked = len(at_hub.requests)
    assert snapshot("org/a", patterns=["*.json"], offline=True) == path
    assert len(at_hub.requests) == asked


@pytest.mark.parametrize(
    ("repo", "token", "kind", "says", "hint"),
    [
        ("org/none", None, UserError, "there is no model org/none on the Hub, or you may not see it", "hf auth login"),
        ("org/none", "hf_ownersecret", UserError, "there is no model org/none", "check the name"),
        ("org/private", "hf_ownersecret", UserError, "there is no model org/private", "check the name"),
        ("org/gated", None, UserError, "org/gated is gated", "accept its terms at http"),
        ("org/gated", "hf_ownersecret", UserError, "org/gated is gated", "accept its terms at http"),
        ("org/open@v9", None, UserError, "org/open has no revision v9", "branch"),
        ("org/open", "hf_wrongsecret", UserError, "the Hub does not accept the token", "settings/tokens"),
        ("a--b/..", None, UserError, "is not a name the Hub allows", "org/name"),
    ],
)
def test_refusals(
    at_hub: Hub, monkeypatch: pytest.MonkeyPatch, repo: str, token: str | None, kind: type, says: str, hint: str
) -> None:
    at_hub.add("org/open", {"a": b""})
    at_hub.add("org/private", private=True)
    at_hub.add("org/gated", {"a": b""}, gated=True)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    name, _, revision = repo.partition("@")
    with pytest.raises(UserError) as caught:
        snapshot(name, revision=revision or None)
    assert type(caught.value) is kind
    assert says in caught.value.message
    assert hint in caught.value.hint
    assert "secret" not in caught.value.message + caught.value.hint


def test_what_is_not_here_offline(at_hub: Hub) -> None:
    with pytest.raises(UserError, match="org/a is not on this machine, and this is offline") as caught:
        snapshot("org/a", offline=True)
    assert caught.value.exit_code == 2
    assert at_hub.requests == []


@pytest.mark.parametrize(("status", "says"), [(503, "the Hub has trouble (error 503)"), (429, "fewer requests")])
def test_a_hub_in_trouble(at_hub: Hub, status: int, says: str) -> None:
    at_hub.add("org/a", {"a": b""})
    at_hub.faults.append(Fault("GET /api/models", status=status, times=99))
    with pytest.raises(WorkError) as caught:
        snapshot("org/a")
    assert says in caught.value.message


def test_no_network(at_hub: Hub) -> None:
    at_hub.close()
    with pytest.raises(WorkError, match="org/a could not be downloaded: the Hub cannot be reached"):
        snapshot("org/a")


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "blob"))
    known = explain(error, "org/a")
    assert isinstance(known, WorkError)
    assert known.message == f"no space left while writing {tmp_path / 'blob'}"


def test_a_bug_stays_one() -> None:
    assert explain(ZeroDivisionError(), "org/a") is None


def test_tokens_are_hidden() -> None:
    assert without_tokens("Bearer hf_AbCd1234xyz, hf_transfer is no token") == (
        "Bearer hf_***, hf_transfer is no token"
    )
