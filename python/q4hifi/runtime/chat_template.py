"""Chats to prompts, by the Jinja template that a model brings with it."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ..errors import Q4HifiError, UnsupportedModelError
from ..formats.gguf_constants import Keys
from .template_process import ANOTHER_TEMPLATE, RENDER_SECONDS, TemplateLimitError, render_template

_NOT_A_WORD = "q4hifi-key"
"""A key that the parts of made-up messages have besides; it is in a prompt that shows them whole."""

Message = Mapping[str, Any]
"""It has a ``role`` (system, user, assistant, ...), a ``content``, and what else the template reads."""


def template_of(metadata: Mapping[str, Any]) -> str:
    """Return the chat template of a model.

    Raises :class:`UnsupportedModelError` where it has none, as base models do.
    """
    template = metadata.get(Keys.Tokenizer.CHAT_TEMPLATE)
    if not isinstance(template, str) or not template.strip():
        raise UnsupportedModelError(
            f"the model has no chat template ({Keys.Tokenizer.CHAT_TEMPLATE}), so it was hardly trained for"
            f" chats; {ANOTHER_TEMPLATE}, or give the prompt as plain text"
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
    time_limit: float = RENDER_SECONDS,
    **variables: Any,
) -> str:
    """Return the prompt that ``template`` makes of ``messages``, exactly as they are.

    ``bos`` and ``eos`` are the texts of these tokens. ``add_generation_prompt`` ends the prompt where the
    model's answer begins. ``variables`` are what else a template may ask for, such as
    ``enable_thinking``. All of these must be what JSON can hold.

    The template runs in a process of its own, for ``time_limit`` seconds at most. Raises
    :class:`UnsupportedModelError` for a template that does not parse, that fails or that takes too much
    time or memory, and :class:`BadOptionError` for messages that it refuses.
    """
    known = {"bos_token": bos, "eos_token": eos, "add_generation_prompt": add_generation_prompt}
    plain = [dict(message) for message in messages]
    return render_template(template, {**variables, **known, "messages": plain, "tools": tools}, time_limit)


def render_words(
    template: str, messages: Sequence[Message], *, time_limit: float = RENDER_SECONDS, **options: Any
) -> str:
    """Return the prompt of a chat with all its words; ``options`` are those of :func:`render`.

    ``messages`` have texts as contents and end with a user's message. Some templates show a content only
    as a list of parts, ``[{"type": "text", "text": ...}]``, some in one of these forms for one role and
    in the other for another. Each role gets the form that shows its words; a text where both do. Where a
    system message is refused or left out, the user's first message begins with its words, as in llama.cpp.

    Which form shows the words is found with made-up words in their places. The blanks between the words
    do not count, and neither does what the template writes there: it may strip blanks, or indent.

    Raises :class:`UnsupportedModelError` where the prompt lacks the words of the system or of the last
    message whatever their form, and what :func:`render` raises.
    """
    seconds = 0.0

    def shown(messages: Sequence[Message]) -> str:
        nonlocal seconds
        started = time.monotonic()
        try:
            return render(template, messages, time_limit=max(0.0, time_limit - seconds), **options)
        finally:
            seconds += time.monotonic() - started

    best: list[Message] | None = None
    failure: Q4HifiError | None = None  # of the plainest form
    probes = [{**message, "content": _probe(i, message["content"])} for i, message in enumerate(messages)]
    needed = {
        i for i, message in enumerate(messages) if message["role"] == "system" or i == len(messages) - 1
    }
    for merged, parts in _arrangements(messages):
        try:
            prompt = shown(_arranged(probes, merged, parts, {_NOT_A_WORD: ""})).casefold()
        except TemplateLimitError:
            raise  # it would take as long in every form
        except Q4HifiError as error:
            failure = failure if parts else error
            continue
        missing = {i for i, probe in enumerate(probes) if not _is_shown(probe["content"], prompt)}
        if _NOT_A_WORD in prompt:  # it prints lists with brackets and all
            missing = needed
        if not missing or (best is None and not missing & needed):
            best = _arranged(messages, merged, parts, {})
        if not missing:
            break
        if not parts:
            failure = UnsupportedModelError(
                "the chat template leaves your message out of the prompt, given as a text and as a list of"
                f" parts; {ANOTHER_TEMPLATE}"
            )
    if best is None:
        assert failure is not None
        raise failure
    return shown(best)


def _probe(number: int, content: str) -> str:
    """``content`` with other words, which are as long and which no template has by itself."""
    count = itertools.count()
    return re.sub(r"\S+", lambda word: f"q4hifi{number}w{next(count)}".ljust(len(word[0]), "x"), content)


def _is_shown(probe: str, prompt: str) -> bool:
    """Whether the words of ``probe`` are in ``prompt``, in their order."""
    at = 0
    for word in probe.split():
        at = prompt.find(word, at) + len(word)
        if at < len(word):
            return False
    return True


def _arrangements(messages: Sequence[Message]) -> Iterator[tuple[bool, Collection[str]]]:
    """Ways to give messages to a template, the plainest first.

    Each says whether the system message becomes part of the first user message, and the roles whose
    contents are lists of parts.
    """
    roles = list(dict.fromkeys(message["role"] for message in messages))
    can_merge = roles[0] == "system" and len(messages) > 1 and messages[1]["role"] == "user"
    for merged in (False, True)[: 1 + can_merge]:
        present = roles[1:] if merged else roles
        for count in range(len(present) + 1):
            for parts in itertools.combinations(present, count):
                yield merged, parts


def _arranged(
    messages: Sequence[Message], merged: bool, parts: Collection[str], more: Mapping[str, str]
) -> list[Message]:
    """Return the messages in one of the arrangements, with ``more`` in each part of a list."""
    if merged:
        system, first, *rest = messages
        messages = [{**first, "content": f"{system['content']}\n{first['content']}"}, *rest]
    return [
        {**message, "content": [{"type": "text", "text": message["content"], **more}]}
        if message["role"] in parts
        else message
        for message in messages
    ]
