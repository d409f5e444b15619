"""What it means to a person when an endpoint does not do what it is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ftllm.chat import wire
from ftllm.chat.remote import KEY_VARIABLE, KEYRING_SERVICE, Remote
from ftllm.errors import UserError, WorkError

BUSY = frozenset({429, 502, 503, 504})
NAMED = 20  # models named in a hint


class BusyError(Exception):
    """The server says to come back later.

    Attributes:
        failure: what to say when that does not help.
        pause: seconds it asks for; None where it does not say.
    """

    def __init__(self, failure: UserError, pause: float | None) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.pause = pause


def check(
    remote: Remote,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    has_key: bool,
    names: Sequence[str],
) -> None:
    """Raise what a response without success means.

    Args:
        names: the models the endpoint has, as far as known.

    Raises:
        UserError: the request, the address or the key is wrong.
        WorkError: the server failed.
        BusyError: it may work later.
    """
    if status == 200:
        return
    said = _said(body)
    if status in (401, 403):
        raise UserError(
            f"{remote.host} {'refuses the key' if has_key else 'wants a key'}: {said}",
            f"put it into the environment as {KEY_VARIABLE}, or `keyring set {KEYRING_SERVICE} {remote.host}`",
        )
    if 300 <= status < 400:
        raise UserError(f"{remote.url} leads elsewhere: {headers.get('location', '?')}", "give that address itself")
    if status == 404 and names and remote.model not in names:
        raise UserError(f"{remote.host} has no model {remote.model!r}: {said}", f"it has {', '.join(names[:NAMED])}")
    if status == 404:
        raise UserError(f"{remote.url} has no chat: {said}", wire.NOT_OPENAI)
    if status in BUSY:
        busy = WorkError(f"{remote.host} is busy or out of order ({status}): {said}", "try again later")
        raise BusyError(busy, _seconds(headers.get("retry-after", "")))
    if status < 500:
        raise UserError(f"{remote.host} refuses the request ({status}): {said}", "see what the server says about it")
    raise WorkError(f"{remote.host} failed ({status}): {said}", "see the server's own log")


def lost(error: Exception, remote: Remote, *, begun: bool, silence: float) -> WorkError:
    """What httpx's `TransportError` means.

    Args:
        begun: some of the reply is there.
        silence: seconds after which a server was given up.
    """
    import httpx

    if isinstance(error, httpx.ReadTimeout):
        return WorkError(f"{remote.host} said nothing for {silence:.0f} seconds", "see whether it still works")
    if begun or isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
        where = "in the middle of the reply" if begun else "before its answer"
        return WorkError(f"{remote.host} broke the connection off {where}: {error}", "ask again")
    return WorkError(f"{remote.host} cannot be reached: {error}", "is the server running, and the address right?")


def _said(body: bytes) -> str:
    text = body.decode("utf-8", "replace")
    try:
        return wire.error_text(json.loads(text))
    except ValueError:
        return wire.excerpt(text)


def _seconds(value: str) -> float | None:
    """Seconds of a `Retry-After`, where it gives them as a number."""
    try:
        return max(0.0, float(value))
    except ValueError:
        return None
