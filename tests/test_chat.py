"""Chat templates: what they may use, what they may not, and what is said when they fail.

And whether the words of a chat reach the prompt, in whatever form the template takes them.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from typing import Any

import pytest

import q4hifi
from q4hifi.errors import BadOptionError, Q4HifiError, UnavailableError, UnsupportedModelError
from q4hifi.runtime import template_process
from q4hifi.runtime.chat_template import render, render_words, template_of
from q4hifi.runtime.template_process import TemplateLimitError
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
    with pytest.raises(
        UnsupportedModelError, match="rejects these messages: roles must alternate between user and"
    ):
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
        UnsupportedModelError, match=r"the chat template fails: line 1: division by zero; give another"
    ):
        render("{{ 1 / 0 }}", CHAT)
    with pytest.raises(UnsupportedModelError, match=r"the chat template fails: line 1: .*'tool_calls'"):
        render("{{ messages[0].tool_calls[0] }}", CHAT)


def test_the_template_of_a_model() -> None:
    assert template_of({"tokenizer.chat_template": CHATML}) == CHATML
    for metadata in ({}, {"tokenizer.chat_template": " "}, {"tokenizer.chat_template": ["a"]}):
        with pytest.raises(Q4HifiError, match=r"no chat template \(tokenizer\.chat_template\)"):
            template_of(metadata)
    with q4hifi.open(EXAMPLE) as model, pytest.raises(UnsupportedModelError, match="plain text"):
        template_of(model.metadata)


# ---- limits --------------------------------------------------------------------------------------

GREEDY = {
    "multiplied": "{{ 'a' * 3000000000 }}",
    "multiplied list": "{{ ([1] * 3000000000) | length }}",
    "joined": "{{ range(99999) | map('string') | join('x' * 1000000) }}",
    "wrapped": "{{ ('a ' * 20000000) | wordwrap(1) }}",
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "written": "{% for a in range(99999) %}{% for b in range(99999) %}aaaaaaaaaa{% endfor %}{% endfor %}",
    "grown": "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "percent": "{{ '%0999999999d' % 1 }}",
    "format": "{{ '{:0999999999d}'.format(1) }}",
    "ljust": "{{ 'a'.ljust(3000000000) }}",
    "center": "{{ 'a' | center(3000000000) }}",
    "indent": "{{ {'a': [1]} | tojson(indent=1000000000) }}",
    "power": "{% set n = 10 ** 9 %}{{ 7 ** n }}",
    "replaced": "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
    "text": "a" * (1 << 20) + "{{ 1 }}",
    "expression": "{{ " + "1+" * 200000 + "1 }}",
}


@pytest.mark.parametrize("template", GREEDY.values(), ids=GREEDY)
def test_greedy_templates_are_stopped(template: str) -> None:
    started = time.monotonic()
    with pytest.raises(
        TemplateLimitError, match=r"^the chat template .*; give another .* `template=\.\.\.`$"
    ):
        render_words(template, CHAT, time_limit=0.2)
    assert time.monotonic() - started < 60  # alone they would take minutes, or for ever
    assert render("{{ bos_token }}", CHAT, bos="<s>") == "<s>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ " + "(" * 100000 + "1" + ")" * 100000 + " }}", "fails: it is nested too deep"),
        ("{{ (10 ** 10000) | string }}", "fails: Exceeds the limit"),
        ("{{ raise_exception('x' * 1000000) }}", "rejects these messages: x{500}$"),
        ("{{ '\ud800' }}{{ 1 / 0 }}", "fails: line 1: division by zero"),
    ],
)
def test_errors_of_hostile_templates_are_short(template: str, message: str) -> None:
    with pytest.raises(Q4HifiError, match=message) as error:
        render(template, CHAT)
    assert len(str(error.value)) < 1000


def test_a_long_conversation_is_no_greed() -> None:
    messages = [{"role": "user", "content": "many words " * 50_000}, *CHAT[2:]]
    assert "many words many words" in render_words(CHATML, messages)


def test_only_what_json_holds_is_sent() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for tools in ([{1, 2}], [b"bytes"], [object()], deep):
        with pytest.raises(BadOptionError, match="only values that JSON can represent"):
            render("{{ tools }}", CHAT, tools=tools)
    assert render("{{ tools }}{{ messages[0].content }}", [{"content": "\udcff\ufdd0"}]) == "None\udcff\ufdd0"


# ---- the process ---------------------------------------------------------------------------------


def _process() -> subprocess.Popen[bytes]:
    assert template_process._worker is not None
    return template_process._worker._process


def test_one_process_renders_all() -> None:
    render("{{ 1 }}", CHAT)
    process = _process()
    render("{{ 2 }}", CHAT)
    assert _process() is process
    process.kill()
    process.wait()
    assert render("{{ 3 }}", CHAT) == "3"
    assert _process() is not process


def test_ctrl_c_while_a_template_renders() -> None:
    render("{{ 1 }}", CHAT)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        render(GREEDY["loops"], CHAT, time_limit=60)
    assert render("{{ 2 }}", CHAT) == "2"


@pytest.mark.parametrize("answer", [b"", b"Hello\n", b"[1]\n", b"{"])
def test_a_process_that_answers_nonsense(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    render("{{ 1 }}", CHAT)
    with monkeypatch.context() as patch:
        patch.setattr(template_process._Worker, "_exchange", lambda *_: answer)
        with pytest.raises(TemplateLimitError, match="crashes the process that renders it"):
            render("{{ 1 }}", CHAT)
    assert render("{{ 2 }}", CHAT) == "2"


def test_where_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    template_process._stop()
    for executable in ("/no/such/python", "/bin/true"):
        monkeypatch.setattr(sys, "executable", executable)
        with pytest.raises(UnavailableError, match="process that renders chat templates"):
            render("{{ 1 }}", CHAT)


def test_a_script_given_by_c_renders() -> None:
    script = (
        "from q4hifi.runtime.chat_template import render; print(render('{{ bos_token }}', [], bos='<s>'))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("<s>\n", "")


# ---- forms ---------------------------------------------------------------------------------------

PARTS = "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
EACH = "{% for m in messages %}[{{ m.role }}]"
SMOLVLM = (
    "{% for m in messages %}{{ m.role | capitalize }}"
    "{% if m['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for line in m['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}<image>{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
)
TURNS = [{"role": "system", "content": "Be brief."}, *({"role": r, "content": f" {r} said\nthis "} for r in (
    "user", "assistant", "user"))]  # fmt: skip
PLAIN = "[system]Be brief.[user] user said\nthis [assistant] assistant said\nthis [user] user said\nthis "
MERGED = PLAIN.replace("[system]Be brief.[user]", "[user]Be brief.\n")
STRIPPED = re.sub(r" *(\[|$) *", r"\1", PLAIN).replace("] ", "]")

FORMS: dict[str, tuple[str, str]] = {
    "text": (EACH + "{{ m.content }}{% endfor %}", PLAIN),
    "parts": (EACH + PARTS + "{% endfor %}", PLAIN),
    "first part": (EACH + "{{ m.content[0].text }}{% endfor %}", PLAIN),
    "selected parts": (EACH + "{{ m.content|selectattr('type', '==', 'text')|map(attribute='text')|join }}"
                       "{% endfor %}", PLAIN),
    "both": (EACH + "{% if m.content is string %}{{ m.content }}{% else %}parts!" + PARTS
             + "{% endif %}{% endfor %}", PLAIN),
    "parts, else an error": (EACH + "{% if m.content is string %}{{ raise_exception('a list') }}{% endif %}"
                             + PARTS + "{% endfor %}", PLAIN),
    "parts of the user": (EACH + "{% if m.role == 'user' %}" + PARTS
                          + "{% else %}{{ m.content }}{% endif %}{% endfor %}", PLAIN),
    "parts of the system": (EACH + "{% if m.role == 'system' %}" + PARTS
                            + "{% else %}{{ m.content + '' }}{% endif %}{% endfor %}", PLAIN),
    "no system": (EACH + "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
                  "{{ m.content }}{% endfor %}", MERGED),
    "system left out": ("{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}"
                        "{% endfor %}", MERGED),
    "no system, parts": (EACH + "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
                         + PARTS + "{% endfor %}", MERGED),
    "stripped": (EACH + "{{ m.content | trim }}{% endfor %}", STRIPPED),
    "stripped parts": (EACH + "{% for part in m.content %}{{ part.text | trim }}{% endfor %}{% endfor %}",
                       STRIPPED),
    "indented": (EACH + "{{ m.content | replace('\n', '\n> ') }}{% endfor %}", PLAIN.replace("\n", "\n> ")),
    "capitals": (EACH + "{{ m.content | upper }}{% endfor %}",
                 re.sub(r"(?<=\])[^[]+", lambda m: m[0].upper(), PLAIN)),
    "JSON": (EACH + "{{ m.content | tojson }}{% endfor %}",
             re.sub(r"(?<=\])[^[]+", lambda m: '"' + m[0].replace("\n", "\\n") + '"', PLAIN)),
    "no assistant": ("{% for m in messages if m.role != 'assistant' %}[{{ m.role }}]{{ m.content }}"
                     "{% endfor %}", PLAIN.replace("[assistant] assistant said\nthis ", "")),
    "SmolVLM": (SMOLVLM, re.sub(r"\[(\w+)\]([^[]+)", lambda m: f"{m[1].title()}: {m[2]}<end_of_utterance>\n",
                                PLAIN)),
}  # fmt: skip


@pytest.mark.parametrize(("template", "expected"), FORMS.values(), ids=FORMS)
def test_the_words_reach_the_prompt(template: str, expected: str) -> None:
    assert render_words(template, TURNS) == expected


LOSING = {
    "other key": EACH + "{{ m.text }}{% endfor %}",
    "other role": "{% for m in messages if m.role == 'human' %}{{ m.content }}{% endfor %}",
    "other parts": EACH
    + "{% for p in m.content if p.type == 'input_text' %}{{ p.text }}{% endfor %}{% endfor %}",
    "nothing": "Hello!",
    "the first only": EACH + "{{ m.content if loop.first }}{% endfor %}",
    "the end": EACH + "{{ m.content[:8] }}{% endfor %}",
    "the second line": EACH + "{{ m.content.split('\n')[0] }}{% endfor %}",
    "counted": EACH + "{{ m.content | length }}{% endfor %}",
}


@pytest.mark.parametrize("template", LOSING.values(), ids=LOSING)
def test_a_template_that_loses_words_is_an_error(template: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"leaves your message out of the prompt.*`template="):
        render_words(template, TURNS)


def test_a_template_that_refuses_everything_says_why() -> None:
    with pytest.raises(UnsupportedModelError, match="rejects these messages: never"):
        render_words("{{ raise_exception('never') }}", TURNS)
    with pytest.raises(UnsupportedModelError, match="fails: line 1: division by zero"):
        render_words("{{ 1 / 0 }}", TURNS)


def test_a_model_whose_template_loses_words_is_named() -> None:
    model = q4hifi.Model(EXAMPLE)
    with pytest.raises(UnsupportedModelError, match=rf"^{re.escape(str(EXAMPLE))}: .*correct this"):
        q4hifi.Chat(model, q4hifi.Sampler(), template=LOSING["other key"])


# ---- BOS and EOS ---------------------------------------------------------------------------------

BOS, EOS = 0, 1000


@pytest.mark.parametrize(
    ("add_bos", "written", "expected"),
    [
        (True, "", [BOS]),
        (True, "{{ bos_token }}", [BOS]),
        (True, "{{ bos_token }}" * 2, [BOS, BOS]),  # as in llama.cpp, which takes one away
        (False, "", []),
        (False, "{{ bos_token }}", [BOS]),
        (False, "{{ bos_token }}" * 2, [BOS, BOS]),
    ],
)
@pytest.mark.parametrize(
    ("add_eos", "written_last", "expected_last"),
    [(True, "", [EOS]), (True, "{{ eos_token }}", [EOS]), (False, "", []), (False, "{{ eos_token }}", [EOS])],
)
def test_bos_and_eos_are_those_of_llama_cpp(
    add_bos: bool,
    written: str,
    expected: list[int],
    add_eos: bool,
    written_last: str,
    expected_last: list[int],
) -> None:
    model = q4hifi.Model(EXAMPLE)
    tokenizer = model.tokenizer
    tokenizer.eos = EOS
    tokenizer.add_bos, tokenizer.add_eos = add_bos, add_eos
    middle = tokenizer.encode("user: Hi.", add_special=False)
    template = f"{written}{{{{ messages[0].role }}}}: {{{{ messages[0].content }}}}.{written_last}"
    chat = q4hifi.Chat(model, q4hifi.Sampler(), template=template)
    read: list[list[int]] = []
    chat.writer.write = lambda prompt, n: read.append(prompt) or iter(())  # type: ignore[method-assign]
    list(chat.answer("Hi"))
    assert read == [[*expected, *middle, *expected_last]]
