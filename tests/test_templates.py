"""Chat templates render as in transformers, in a sandbox, and their faults are the person's to see on one line."""

from __future__ import annotations

from datetime import date, datetime

import pytest

from ftllm.errors import UserError
from ftllm.templates import render_template

HI = [{"role": "user", "content": "<Hi & 'bye'>"}]
SHAPES = {
    "trimmed blocks": "{% for m in messages %}\n  {% if true %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}",
    "loop controls": "{% for m in messages * 3 %}{% if not loop.first %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "tojson": "{{ messages | tojson }}{{ messages | tojson(indent=2, sort_keys=true) }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "tokens": "{{ bos_token }}{% if add_generation_prompt %}{{ eos_token }}{% endif %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "undefined": "{{ missing }}{% if tools is defined and tools %}x{% endif %}{{ messages[0].content }}",
}


@pytest.mark.parametrize("template", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("prompt", [True, False])
def test_renders_as_transformers(template: str, prompt: bool) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    (expected,), _ = render_jinja_template(
        [HI], chat_template=template, add_generation_prompt=prompt, bos_token="<bos>", eos_token="<eos>"
    )
    ours = render_template(template, HI, bos_token="<bos>", eos_token="<eos>", add_generation_prompt=prompt)
    assert ours == expected


def test_variables_reach_the_template() -> None:
    assert render_template("{% if enable_thinking %}yes{% endif %}", HI, enable_thinking=True) == "yes"


def test_strftime_now() -> None:
    before = datetime.now().strftime("%Y-%m-%d")
    assert render_template("{{ strftime_now('%Y-%m-%d') }}", HI) in (before, datetime.now().strftime("%Y-%m-%d"))


def test_the_date_may_be_given() -> None:
    template = "{{ strftime_now('%d %b %Y %H:%M') }}"
    assert render_template(template, HI, today=date(2024, 2, 29)) == "29 Feb 2024 00:00"


FAULTS = [
    ("{{ raise_exception('System role not supported') }}", "refuses these messages: System role not supported"),
    ("{% if %}", "not valid Jinja: line 1"),
    ("\n\n{% endfor %}", "not valid Jinja: line 3"),
    ("{{ messages.nothing.more }}", "refuses these messages: 'list object' has no attribute 'nothing'"),
    ("{{ 1 / 0 }}", "fails on these messages: ZeroDivisionError"),
    ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__'"),
    ("{{ messages.append(1) }}", "access to attribute 'append'"),
]


@pytest.mark.parametrize(("template", "message"), FAULTS)
def test_faults_are_one_line(template: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        render_template(template, HI)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
