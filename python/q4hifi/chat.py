"""Chats to prompts, by the Jinja template that a model brings with it.

A template is a program from a file that anyone may have written: it runs in Jinja's sandbox, with what
the transformers library gives to templates and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .errors import BadOptionError, UnsupportedModelError
from .gguf_constants import Keys

Message = Mapping[str, Any]
"""It has a ``role`` (system, user, assistant, ...), a ``content``, and what else the template reads."""

_HELP = "give another template, or the prompt as plain text"


def template_of(metadata: Mapping[str, Any]) -> str:
    """Return the chat template of a model.

    Raises :class:`UnsupportedModelError` where it has none, as base models do.
    """
    template = metadata.get(Keys.Tokenizer.CHAT_TEMPLATE)
    if not isinstance(template, str) or not template.strip():
        raise UnsupportedModelError(
            f"the model has no chat template ({Keys.Tokenizer.CHAT_TEMPLATE}), so it was hardly trained for"
            f" chats; {_HELP}"
        )
    return template


def render(
    template: str,
    messages: Sequence[Message],
    *,
    bos: str = "",
    eos: str = "",
    add_generation_prompt: bool = True,
    tools: Sequence[Any] | None = None,
    **variables: Any,
) -> str:
    """Return the prompt that ``template`` makes of ``messages``.

    ``bos`` and ``eos`` are the texts of these tokens: most templates begin with BOS, so encode the prompt
    with ``parse_special`` and without ``add_special``. ``add_generation_prompt`` ends it where the model's
    answer begins. ``variables``: what else a template may ask for, such as ``enable_thinking``.

    Raises :class:`UnsupportedModelError` for a template that does not parse or that fails, and
    :class:`BadOptionError` for messages that it refuses.
    """
    try:
        return _compiled(template).render(
            messages=messages,
            bos_token=bos,
            eos_token=eos,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            **variables,
        )
    except _Refused as error:
        raise BadOptionError(f"the chat template refuses these messages: {error}") from None
    except jinja2.TemplateSyntaxError as error:
        raise UnsupportedModelError(
            f"the chat template does not parse: line {error.lineno}: {error.message}; {_HELP}"
        ) from error
    except Exception as error:  # it is foreign code: anything can happen in it
        raise UnsupportedModelError(
            f"the chat template fails: {type(error).__name__}: {error}; {_HELP}"
        ) from error


class _Refused(Exception):
    """The template called ``raise_exception``."""


class _Generation(Extension):
    """``{% generation %}`` marks what a model is trained to say; in a prompt it means nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return what stands between the marks."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(8)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(template)


def _refuse(message: str) -> NoReturn:
    raise _Refused(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON for a model to read; Jinja's own filter writes it for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
