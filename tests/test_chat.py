"""Chat templates: what they may use, what they may not, and what is said when they fail."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import pytest

import q4hifi
from q4hifi.chat import render, template_of
from q4hifi.errors import BadOptionError, Q4HifiError, UnsupportedModelError
from synthetic import EXAMPLE

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi <b> & 'you'"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye  "},
]

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""

INST = """\
{{ bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set system, rest = messages[0].content ~ '\\n\\n', messages[1:] %}
{%- else %}
    {%- set system, rest = '', messages %}
{%- endif %}
{%- for message in rest %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate between user and assistant') }}
    {%- endif %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' + (system if loop.first else '') + message.content + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message.content + eos_token }}
    {%- endif %}
{%- endfor %}
"""


def test_chatml() -> None:
    assert render(CHATML, CHAT) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <b> & 'you'<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render(CHATML, CHAT[1:2], add_generation_prompt=False) == (
        "<|im_start|>user\nHi <b> & 'you'<|im_end|>\n"
    )


def test_instructions_between_marks() -> None:
    assert render(INST, CHAT, bos="<s>", eos="</s>") == (
        "<s>[INST] Be brief.\n\nHi <b> & 'you' [/INST] Hello.</s>[INST] Bye   [/INST]"
    )


def test_a_template_can_refuse() -> None:
    with pytest.raises(BadOptionError, match="refuses these messages: roles must alternate between user and"):
        render(INST, CHAT[1:2] * 2)


TOOL = {"name": "f", "description": "<é & 'ü'>", "parameters": {"b": 1, "a": [True, None]}}
TOOL_JSON = """{"name": "f", "description": "<é & 'ü'>", "parameters": {"b": 1, "a": [true, null]}}"""

USES: dict[str, tuple[str, str]] = {
    "tojson": ("{{ tools[0] | tojson }}", TOOL_JSON),
    "indent": ("{{ {'a': 1} | tojson(indent=2) }}", '{\n  "a": 1\n}'),
    "ascii": ("{{ 'é' | tojson(ensure_ascii=true) }}", '"\\u00e9"'),
    "loops": ("{% for i in range(4) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
    "continue": ("{% for i in range(4) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "023"),
    "blocks": ("a\n  {% if true %}\nb\n  {% endif %}\nc\n", "a\nb\nc"),
    "namespace": ("{% set n = namespace() %}{% for i in [4] %}{% set n.x = i %}{% endfor %}{{ n.x }}", "4"),
    "undefined": ("{{ nothing }}{{ 'y' if enable_thinking is defined else 'n' }}", "n"),
    "macro": ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f('a') ~ eos_token }}", "<a><E>"),
    "generation": ("{% generation %}{{ messages[2].content }}{% endgeneration %}!", "Hello.!"),
    "methods": ("{{ messages[1].content.split('<')[0].strip().upper() }}", "HI"),
    "not html": ("{{ messages[1].content }}", "Hi <b> & 'you'"),
}  # fmt: skip


@pytest.mark.parametrize(("template", "expected"), USES.values(), ids=USES)
def test_what_templates_use(template: str, expected: str) -> None:
    assert render(template, CHAT, bos="<B>", eos="<E>", tools=[TOOL]) == expected


def test_variables_and_dates() -> None:
    assert render("{{ enable_thinking }}", CHAT, enable_thinking=False) == "False"
    assert render("{{ strftime_now('%Y') }}", CHAT) in {str(datetime.now().year - i) for i in (0, 1)}


HOSTILE = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "attr": "{{ ''|attr('__class__')|attr('__mro__') }}",
    "change": "{{ messages.append(1) }}",
    "file": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
}


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_hostile_templates_get_nowhere(template: str) -> None:
    messages: list[Any] = [*CHAT]
    try:
        text = render(template, messages)
    except UnsupportedModelError as error:
        text = str(error)
        assert text.startswith("the chat template fails: ")
    assert messages == CHAT
    assert not re.search("object at|<class|root:|__builtins__", text)


def test_templates_that_fail() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"does not parse: line 2: .*endif.*; give another template"
    ):
        render("a\n{% if x %}", CHAT)
    with pytest.raises(
        UnsupportedModelError, match=r"the chat template fails: ZeroDivisionError: .*; give another"
    ):
        render("{{ 1 / 0 }}", CHAT)
    with pytest.raises(
        UnsupportedModelError, match=r"the chat template fails: UndefinedError: .*'tool_calls'"
    ):
        render("{{ messages[0].tool_calls[0] }}", CHAT)


def test_the_template_of_a_model() -> None:
    assert template_of({"tokenizer.chat_template": CHATML}) == CHATML
    for metadata in ({}, {"tokenizer.chat_template": " "}, {"tokenizer.chat_template": ["a"]}):
        with pytest.raises(Q4HifiError, match=r"no chat template \(tokenizer\.chat_template\)"):
            template_of(metadata)
    with q4hifi.open(EXAMPLE) as model, pytest.raises(UnsupportedModelError, match="plain text"):
        template_of(model.metadata)
