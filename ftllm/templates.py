"""Chat templates, rendered in Jinja's sandbox as transformers and llama.cpp's Python bindings render them."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime, time
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, UndefinedError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ftllm.errors import UserError

# What templates read: Qwen3, GLM, Gemma 4 ...; DeepSeek V3.1, Granite, Kimi; Command; MiniMax.
THINKING = {"enable_thinking": True, "thinking": True, "reasoning": True, "thinking_mode": "enabled"}
NOT_THINKING = {"enable_thinking": False, "thinking": False, "reasoning": False, "thinking_mode": "disabled"}


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`, which transformers uses to mark answers: here only its body."""

    tags = {"generation"}  # noqa: RUF012  Jinja declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which no model has seen.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, default=_listed
    )


def _listed(value: Any) -> list[Any]:
    """What `map` and `select` give, which are lists in llama.cpp's Jinja."""
    if isinstance(value, Iterator):
        return list(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


@lru_cache(maxsize=16)
def _compile(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    functions: dict[str, Callable[..., Any]] = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    environment.globals.update(functions)
    return environment.from_string(template)


def render_template(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos_token: str = "",
    eos_token: str = "",
    add_generation_prompt: bool = False,
    today: date | None = None,
    **variables: Any,
) -> str:
    """The text a chat template makes of `messages`.

    The environment is that of `transformers.utils.chat_template_utils`: sandboxed, blocks trimmed, loop controls,
    `raise_exception`, `strftime_now`, a plain `tojson`. `variables` reach the template as they are
    (`enable_thinking=False`, `tools=...`).

    Args:
        template: Jinja source, as in `tokenizer_config.json` or a GGUF's `tokenizer.chat_template`.
        messages: `{"role": ..., "content": ...}`, oldest first.
        bos_token: the text of the beginning-of-sequence token.
        eos_token: the text of the end-of-sequence token.
        add_generation_prompt: end with what opens the assistant's turn.
        today: what `strftime_now` tells a template that asks for the date; None: the clock's.

    Raises:
        UserError: the template is not valid Jinja, refuses these messages, or fails on them.
    """
    try:
        compiled = _compile(template)
    except TemplateSyntaxError as error:
        raise UserError(
            f"the chat template is not valid Jinja: line {error.lineno}: {error.message}",
            "repair chat_template in the model's tokenizer files",
        ) from error
    if today is not None:
        variables["strftime_now"] = datetime.combine(today, time()).strftime
    try:
        return compiled.render(
            messages=[dict(message) for message in messages],
            bos_token=bos_token,
            eos_token=eos_token,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
    except UndefinedError as error:
        raise UserError(
            f"the chat template refuses these messages: {_one_line(error)}{_line(error)}",
            "the template wants a variable or a field that a plain chat does not have",
        ) from error
    except TemplateError as error:
        raise UserError(
            f"the chat template refuses these messages: {_one_line(error)}",
            "roles must alternate user and assistant, and not every template takes a system turn",
        ) from error
    except Exception as error:  # a template is a program of the model's author: anything may come out of it
        raise UserError(
            f"the chat template fails on these messages: {type(error).__name__}: {_one_line(error)}{_line(error)}",
            "the template wants another shape of messages",
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _line(error: Exception) -> str:
    """The template's line where it happened: Jinja's tracebacks hold frames of the template itself."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename in ("<template>", "<unknown>")
    ]
    return f" (line {lines[-1]})" if lines else ""
