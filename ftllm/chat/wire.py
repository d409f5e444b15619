"""The OpenAI chat API on the wire: what is asked, and what comes back piece by piece."""

from __future__ import annotations

import base64
import json
import mimetypes
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ftllm.chat.options import ReplyOptions
from ftllm.chat.prompt import is_begun
from ftllm.errors import WorkError
from ftllm.files import read_image
from ftllm.values import dataclass

MAX_EVENT = 16 << 20  # bytes of one event; more is no chat
NOT_OPENAI = "give the address of an OpenAI-compatible endpoint, which often ends in /v1"


@dataclass(frozen=True)
class Piece:
    """What one event of a stream brings.

    Attributes:
        thought, answer: more text of each.
        finish_reason: why the reply ended, in the last piece that has text or after it.
        usage: token counts, as the server has them.
    """

    thought: str = ""
    answer: str = ""
    finish_reason: str | None = None
    usage: Mapping[str, Any] | None = None


def request_body(model: str, messages: Sequence[Mapping[str, Any]], options: ReplyOptions) -> dict[str, Any]:
    """The body of a request. What was not chosen is left to the server.

    `top_k`, `min_p`, the repeat penalty and the budget are not OpenAI's but are what llama-server, vLLM and others take
    them for.
    """
    chosen = {
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "min_p": options.min_p,
        "seed": options.seed,
        "frequency_penalty": options.frequency_penalty,
        "presence_penalty": options.presence_penalty,
        "repeat_penalty": options.repeat_penalty,  # llama.cpp's name
        "repetition_penalty": options.repeat_penalty,  # vLLM's
        "reasoning_budget_tokens": options.think_budget,  # llama.cpp's
        "thinking_token_budget": options.think_budget,  # vLLM's
    }
    body: dict[str, Any] = {
        "messages": [_with_images(message) for message in messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": options.max_tokens,
        **{name: value for name, value in chosen.items() if value is not None},
    }
    if model:
        body["model"] = model
    if is_begun(messages):  # llama-server goes on by itself, vLLM where it is asked to
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    variables = dict(options.template_kwargs)
    if options.think != "auto":
        variables["enable_thinking"] = options.think == "on"
    if variables:
        body["chat_template_kwargs"] = variables
    return body


def _with_images(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose image files are sent along.

    Raises:
        UserError: one cannot be read.
    """
    images = message.get("images", ())
    if not images:
        return dict(message)
    parts: list[dict[str, Any]] = []
    for path in map(Path, images):
        data = base64.b64encode(read_image(path)).decode("ascii")
        kind = mimetypes.guess_type(path.name)[0] or "image/jpeg"
        parts.append({"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}})
    return {"role": message["role"], "content": [*parts, {"type": "text", "text": message["content"]}]}


async def server_sent_events(chunks: AsyncIterator[bytes]) -> AsyncGenerator[str, None]:
    """The data of each event of a stream (https://html.spec.whatwg.org/multipage/server-sent-events.html).

    Lines end at `\\n` and `\\r\\n` only: some servers write U+2028 unescaped into their JSON.

    Raises:
        WorkError: an event has no end, or is not UTF-8.
    """
    buffer, data = b"", list[bytes]()
    async for chunk in chunks:
        buffer += chunk
        *lines, buffer = buffer.split(b"\n")
        if len(buffer) > MAX_EVENT:
            raise WorkError("the endpoint sends an event without an end", NOT_OPENAI)
        for line in lines:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield _decoded(data)
                data = []
    if buffer.startswith(b"data:"):
        data.append(buffer[5:].strip())
    if data:
        yield _decoded(data)


def piece_of(text: str) -> Piece | None:
    """What an event's data says; None at the stream's end (`[DONE]`).

    Raises:
        WorkError: the server reports an error, or says what no OpenAI endpoint says.
    """
    if text.strip() == "[DONE]":
        return None
    try:
        value = json.loads(text)
    except ValueError:
        raise WorkError(f"the endpoint sends no JSON: {excerpt(text)}", NOT_OPENAI) from None
    if not isinstance(value, dict):
        raise WorkError(f"the endpoint sends something else than a reply: {excerpt(text)}", NOT_OPENAI)
    if value.get("error"):
        raise WorkError(f"the endpoint failed: {error_text(value)}")
    choices = value.get("choices")
    if not isinstance(choices, list) or (choices and not isinstance(choices[0], dict)):
        raise WorkError(f"the endpoint sends something else than a reply: {excerpt(text)}", NOT_OPENAI)
    choice: dict[str, Any] = choices[0] if choices else {}
    delta = choice.get("delta") or choice.get("message") or {}
    usage = value.get("usage")
    reason = choice.get("finish_reason")
    return Piece(
        thought=_text(delta.get("reasoning_content") or delta.get("reasoning")),
        answer=_text(delta.get("content")),
        finish_reason=reason if isinstance(reason, str) else None,
        usage=usage if isinstance(usage, dict) else None,
    )


class Whole:
    """Makes whole characters of pieces: a pair of surrogates may be cut in two by a server that counts in UTF-16."""

    def __init__(self) -> None:
        self._half = ""

    def feed(self, text: str) -> str:
        """`text` without a half character at its end, which waits for the next piece."""
        text, self._half = self._half + text, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        if any("\ud800" <= character <= "\udfff" for character in text):
            return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return text


def error_text(value: Any) -> str:
    """An error's message, in the many forms servers give it: on one line, without HTML, and short."""
    for key in ("error", "message", "detail", "title"):
        if isinstance(value, dict) and value.get(key):
            return error_text(value[key])
    if isinstance(value, list) and value:
        return error_text(value[0])
    if isinstance(value, dict) and value.get("msg"):  # FastAPI's
        return excerpt(f"{value['msg']} {'.'.join(map(str, value.get('loc', ())))}")
    return excerpt(value if isinstance(value, str) else json.dumps(value))


def excerpt(text: str) -> str:
    """The beginning of what a server said, fit to be printed."""
    line = " ".join(re.sub(r"<[^>]*>", " ", text).split())
    line = "".join(character if character.isprintable() else "?" for character in line)
    return (line[:200] + "…" if len(line) > 200 else line) or "nothing"


def _decoded(data: list[bytes]) -> str:
    try:
        return b"\n".join(data).decode("utf-8")
    except UnicodeDecodeError:
        raise WorkError("the endpoint sends what is not UTF-8", NOT_OPENAI) from None


def _text(value: Any) -> str:
    if isinstance(value, list):  # parts, as some servers send
        return "".join(_text(part.get("text")) for part in value if isinstance(part, dict))
    return value if isinstance(value, str) else ""
