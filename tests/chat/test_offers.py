"""What an endpoint says it has."""

from __future__ import annotations

import pytest
from acting_server import KEY, Actor, port

from ftllm.chat.offers import Offer, offers
from ftllm.chat.remote import KEY_VARIABLE, Remote
from ftllm.errors import UserError, WorkError


def test_models_with_their_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    actor = Actor()
    url = actor.remote.url
    actor.models = {
        "data": [{"id": "a/one", "max_model_len": 4096}, {"id": "two", "meta": {"n_ctx": 8}}, {"id": "x"}, 5]
    }
    assert offers(Remote(url)) == [
        Offer(Remote(url, "a/one"), 4096),
        Offer(Remote(url, "two"), 8),
        Offer(Remote(url, "x"), 0),
    ]
    actor.shutdown()


def test_what_is_no_endpoint() -> None:
    actor = Actor()
    actor.models = "hello"
    with pytest.raises(UserError, match="does not speak the OpenAI API"):
        offers(actor.remote)
    actor.shutdown()
    with pytest.raises(WorkError, match="cannot be reached"):
        offers(Remote(f"http://127.0.0.1:{port()}/v1"))
