"""What an OpenAI-compatible endpoint has to offer: its models, and the context of each where it tells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ftllm import __version__
from ftllm.chat import wire
from ftllm.chat.refusals import BusyError, check, lost
from ftllm.chat.remote import Remote, api_key
from ftllm.errors import UserError
from ftllm.values import dataclass

SECONDS = 4.0  # a list that takes longer is not worth waiting for
CONTEXT_FIELDS = ("max_model_len", "n_ctx", "context_length", "context_window", "n_ctx_train")


@dataclass(frozen=True)
class Offer:
    """A model behind an endpoint; `context` in tokens, 0 where it does not tell."""

    remote: Remote
    context: int


def offers(remote: Remote, seconds: float = SECONDS) -> list[Offer]:
    """Ask an endpoint for its models.

    Raises:
        UserError: it refuses, or speaks something else.
        WorkError: it cannot be reached in time.
    """
    import httpx

    key = api_key(remote)
    try:
        # No redirects: a key must not reach another host.
        response = httpx.get(f"{remote.url}/models", headers=request_headers(key), timeout=seconds)
        check(remote, response.status_code, response.headers, response.content, has_key=key is not None, names=())
    except httpx.TransportError as error:
        raise lost(error, remote, begun=False, silence=seconds) from None
    except BusyError as busy:
        raise busy.failure from None
    models = parse_models(remote, response.text)
    return [Offer(Remote(remote.url, str(model["id"])), context_length(model)) for model in models if model.get("id")]


def parse_models(remote: Remote, text: str) -> list[dict[str, Any]]:
    """The list of models as an endpoint tells it.

    Raises:
        UserError: it tells something else.
    """
    try:
        return [model for model in json.loads(text)["data"] if isinstance(model, dict)]
    except (ValueError, KeyError, TypeError):
        said = wire.excerpt(text)
        raise UserError(f"{remote.url} does not speak the OpenAI API: {said}", wire.NOT_OPENAI) from None


def context_length(model: Mapping[str, Any]) -> int:
    """Tokens of a model's context; 0 where the endpoint does not tell."""
    facts = {**model, **(model["meta"] if isinstance(model.get("meta"), dict) else {})}
    lengths = (facts.get(name) for name in CONTEXT_FIELDS)
    return next((length for length in lengths if isinstance(length, int) and length > 0), 0)


def request_headers(key: str | None) -> dict[str, str]:
    """Of every request."""
    return {"User-Agent": f"ftllm/{__version__}"} | ({"Authorization": f"Bearer {key}"} if key else {})
