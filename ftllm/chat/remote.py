"""Where a model on someone's server is, and the key it asks for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

from ftllm.errors import UserError
from ftllm.values import dataclass

KEY_VARIABLE = "FTLLM_API_KEY"
KEYRING_SERVICE = "ftllm"
FORM = "give an address like http://localhost:8000/v1"


@dataclass(frozen=True)
class Remote:
    """A model behind an OpenAI-compatible endpoint.

    Attributes:
        url: the endpoint's base, `http://host:8000/v1`, without a slash at its end.
        model: the model's name there; empty for the only one.
    """

    url: str
    model: str = ""

    def __str__(self) -> str:
        return f"{self.url} {self.model}".strip()

    @property
    def stem(self) -> str:
        """A short name to show, as a path has one."""
        return self.model.rpartition("/")[2] or self.host

    @property
    def host(self) -> str:
        """`host:8000`."""
        return urlsplit(self.url).netloc


Target: TypeAlias = Path | Remote
"""What can be talked to: a GGUF's path, or a model behind an endpoint."""


def lasting(target: Target) -> Target:
    """What a session remembers: a path from the root, under the file's own name, which the Hub's cache links away."""
    return target.parent.resolve() / target.name if isinstance(target, Path) else target


def is_address(named: str) -> bool:
    """Whether a model was given as an endpoint's address."""
    return named.lower().startswith(("http://", "https://"))


def parse_remote(address: str, model: str = "") -> Remote:
    """An address as typed (or as `str(remote)` wrote it).

    Raises:
        UserError: it is no address, or holds a password.
    """
    url, _, named = address.strip().partition(" ")
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number
    except ValueError as error:
        raise UserError(f"{url} is not an address: {error}", FORM) from None
    if not parts.hostname:
        raise UserError(f"{url} is not an address", FORM)
    if "@" in parts.netloc:
        raise UserError(
            "the address holds a password, which others on this machine could read",
            f"put the key into the environment as {KEY_VARIABLE}, or into the keyring",
        )
    if parts.query or parts.fragment:
        raise UserError(f"{url} has a query", FORM)
    path = parts.path.rstrip("/").removesuffix("/chat/completions").removesuffix("/models")
    return Remote(f"{parts.scheme.lower()}://{parts.netloc}{path}", model or named.strip())


def api_key(remote: Remote) -> str | None:
    """The key for an endpoint: from the environment, else from the system's keyring; None without one.

    `OPENAI_API_KEY` is only ever sent to OpenAI. The keyring is asked where the package keyring is installed, for the
    service `ftllm` and the endpoint's host as the user (`keyring set ftllm host:8000`).
    """
    if key := os.environ.get(KEY_VARIABLE, "").strip():
        return key
    if urlsplit(remote.url).hostname == "api.openai.com" and (key := os.environ.get("OPENAI_API_KEY", "").strip()):
        return key
    try:
        import keyring
    except ImportError:
        return None
    try:
        return keyring.get_password(KEYRING_SERVICE, remote.host)
    except Exception:  # locked, or no backend: as good as none, and the endpoint will say that it wants one
        return None
