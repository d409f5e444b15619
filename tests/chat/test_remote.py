"""Addresses of endpoints, and where their keys come from."""

from __future__ import annotations

from pathlib import Path

import keyring
import pytest
from keyring.backend import KeyringBackend

from ftllm.chat.remote import Remote, api_key, is_address, lasting, parse_remote
from ftllm.errors import UserError


@pytest.mark.parametrize(
    ("address", "model", "remote"),
    [
        ("http://host:8000/v1", "", Remote("http://host:8000/v1")),
        ("http://host:8000/v1/", "gemma", Remote("http://host:8000/v1", "gemma")),
        ("HTTPS://host/v1/chat/completions", "a/b", Remote("https://host/v1", "a/b")),
        ("http://[::1]:8080", "", Remote("http://[::1]:8080")),
        ("http://host/v1 org/model one", "", Remote("http://host/v1", "org/model one")),  # as str() writes it
        ("http://host/v1 old", "new", Remote("http://host/v1", "new")),
    ],
)
def test_addresses(address: str, model: str, remote: Remote) -> None:
    assert is_address(address)
    assert parse_remote(address, model) == remote
    assert parse_remote(str(remote)) == remote


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("http://", "not an address"),
        ("http://host:port/v1", "not an address"),
        ("http://me:secret@host/v1", "holds a password"),
        ("http://host/v1?key=secret", "has a query"),
    ],
)
def test_bad_addresses(address: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        parse_remote(address)
    assert "me:secret" not in caught.value.message


def test_paths_are_no_addresses() -> None:
    assert not any(map(is_address, ("http.gguf", "models/http://x", "runs/https", "httpx://y")))


def test_names_to_show() -> None:
    assert Remote("http://host:8000/v1", "google/gemma-3-4b-it").stem == "gemma-3-4b-it"
    assert Remote("http://host:8000/v1").stem == "host:8000"


class Desk(KeyringBackend):
    """A keyring with one key in it."""

    priority = 1.0  # type: ignore[assignment]

    def get_password(self, service: str, username: str) -> str | None:
        if username == "locked:1":
            raise RuntimeError("the keyring is locked")
        return "from the keyring" if (service, username) == ("ftllm", "host:8000") else None

    def set_password(self, service: str, username: str, password: str) -> None:
        raise NotImplementedError

    def delete_password(self, service: str, username: str) -> None:
        raise NotImplementedError


def test_where_keys_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    before = keyring.get_keyring()
    keyring.set_keyring(Desk())
    try:
        monkeypatch.delenv("FTLLM_API_KEY", raising=False)
        monkeypatch.setenv("OPENAI_API_KEY", "for OpenAI only")
        openai, other = Remote("https://api.openai.com/v1", "gpt"), Remote("http://host:8000/v1")
        assert api_key(other) == "from the keyring"
        assert api_key(Remote("http://elsewhere/v1")) is None
        assert api_key(Remote("http://locked:1/v1")) is None
        assert api_key(openai) == "for OpenAI only"
        assert api_key(Remote("https://api.openai.com.evil.example/v1")) is None
        monkeypatch.setenv("FTLLM_API_KEY", "from the environment")
        assert api_key(other) == api_key(openai) == "from the environment"
    finally:
        keyring.set_keyring(before)


def test_a_model_is_remembered_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "0a1b2c").touch()
    (tmp_path / "m-Q8_0.gguf").symlink_to(tmp_path / "0a1b2c")
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path / "runs")
    assert lasting(Path("../m-Q8_0.gguf")) == tmp_path.resolve() / "m-Q8_0.gguf"
    assert lasting(Remote("http://host/v1")) == Remote("http://host/v1")
