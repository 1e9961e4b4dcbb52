"""Formatting chats as prompts, with the Jinja template in a model's metadata."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ..errors import Q4HifiError, UnsupportedModelError
from ..formats.gguf_constants import Keys
from .template_process import ANOTHER_TEMPLATE, RENDER_SECONDS, TemplateLimitError, render_template

_EXTRA_KEY = "q4hifi-key"
"""A key that is added to the parts of probe messages. No template should show it.

If it is in the prompt, the template printed the whole list of parts as Python writes it.
"""

Message = Mapping[str, Any]
"""A message: a ``role`` (system, user, assistant, ...), a ``content``, and other keys for the template."""


def template_of(metadata: Mapping[str, Any]) -> str:
    """Return the chat template in a model's metadata.

    Raises :class:`UnsupportedModelError` if there is none, as in most base models.
    """
    template = metadata.get(Keys.Tokenizer.CHAT_TEMPLATE)
    if not isinstance(template, str) or not template.strip():
        raise UnsupportedModelError(
            f"the model has no chat template ({Keys.Tokenizer.CHAT_TEMPLATE}), so it is probably a base"
            " model, not trained for chats; let it continue a plain text, or give a template with"
            " `template=...`"
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
    """Return the prompt that the Jinja ``template`` makes from ``messages``, which it gets unchanged.

    ``bos`` and ``eos`` are the texts of these tokens. ``add_generation_prompt``: the prompt ends where the
    model's answer begins. ``tools``: descriptions of tools that the model may call. ``variables``: other
    variables of the template, such as ``enable_thinking``. JSON must be able to represent all of them.

    The template runs in another process, for at most ``time_limit`` seconds. Raises
    :class:`UnsupportedModelError` for a template that does not parse, fails, rejects the messages, or needs
    too much time or memory; :class:`BadOptionError` for values that JSON cannot represent; and
    :class:`UnavailableError` if the process cannot be started.
    """
    standard = {"bos_token": bos, "eos_token": eos, "add_generation_prompt": add_generation_prompt}
    plain = [dict(message) for message in messages]
    return render_template(template, {**variables, **standard, "messages": plain, "tools": tools}, time_limit)


def render_words(
    template: str, messages: Sequence[Message], *, time_limit: float = RENDER_SECONDS, **options: Any
) -> str:
    """Return the prompt of a chat, checked to contain all its words; ``options`` are those of :func:`render`.

    The contents of ``messages`` are texts, and the last message is the user's. Some templates expect a
    content as a list of parts instead, ``[{"type": "text", "text": ...}]``, and some expect this for certain
    roles only. Each role gets the form in which the template shows its words; a text if both forms do. If
    the template rejects or leaves out the system message, its words are put before the user's first message,
    as in llama.cpp.

    To find these forms, the template first renders probe words in place of the real ones. Whitespace, and
    what the template writes between the words, do not matter: it may strip or indent them.

    Raises :class:`UnsupportedModelError` if the prompt lacks the words of the system message or of the last
    message in every form, and the errors of :func:`render`.
    """
    seconds = 0.0

    def rendered(messages: Sequence[Message]) -> str:
        nonlocal seconds
        started = time.monotonic()
        try:
            return render(template, messages, time_limit=max(0.0, time_limit - seconds), **options)
        finally:
            seconds += time.monotonic() - started

    best: list[Message] | None = None
    failure: Q4HifiError | None = None  # of the last arrangement without lists of parts
    probes = [{**message, "content": _probe(i, message["content"])} for i, message in enumerate(messages)]
    needed = {
        i for i, message in enumerate(messages) if message["role"] == "system" or i == len(messages) - 1
    }
    for merged, parts in _arrangements(messages):
        try:
            prompt = rendered(_arranged(probes, merged, parts, {_EXTRA_KEY: ""})).casefold()
        except TemplateLimitError:
            raise  # every other form would reach the limit, too
        except Q4HifiError as error:
            failure = failure if parts else error
            continue
        missing = {i for i, probe in enumerate(probes) if not _is_shown(probe["content"], prompt)}
        if _EXTRA_KEY in prompt:  # the list was printed as it is, so the words are not shown properly
            missing = needed
        if not missing or (best is None and not missing & needed):
            best = _arranged(messages, merged, parts, {})
        if not missing:
            break
        if not parts:
            failure = UnsupportedModelError(
                "the chat template leaves your message out of the prompt, both as a text and as a list of"
                f" parts; {ANOTHER_TEMPLATE}"
            )
    if best is None:
        assert failure is not None
        raise failure
    return rendered(best)


def _probe(message: int, content: str) -> str:
    """Return ``content`` with unique probe words, at least as long, that no template contains itself."""
    count = itertools.count()
    return re.sub(r"\S+", lambda word: f"q4hifi{message}w{next(count)}".ljust(len(word[0]), "x"), content)


def _is_shown(probe: str, prompt: str) -> bool:
    """Return whether the words of ``probe`` are in ``prompt``, in this order."""
    at = 0
    for word in probe.split():
        at = prompt.find(word, at) + len(word)
        if at < len(word):
            return False
    return True


def _arrangements(messages: Sequence[Message]) -> Iterator[tuple[bool, Collection[str]]]:
    """Yield the ways to pass messages to a template, the simplest first.

    Each is a pair: whether the system message is merged into the first user message, and the roles whose
    contents become lists of parts.
    """
    roles = list(dict.fromkeys(message["role"] for message in messages))
    can_merge = roles[0] == "system" and len(messages) > 1 and messages[1]["role"] == "user"
    for merged in (False, True)[: 1 + can_merge]:
        present = roles[1:] if merged else roles
        for count in range(len(present) + 1):
            for parts in itertools.combinations(present, count):
                yield merged, parts


def _arranged(
    messages: Sequence[Message], merged: bool, parts: Collection[str], extra: Mapping[str, str]
) -> list[Message]:
    """Return the messages in one of the arrangements, with the keys ``extra`` added to each part."""
    if merged:
        system, first, *rest = messages
        messages = [{**first, "content": f"{system['content']}\n{first['content']}"}, *rest]
    return [
        {**message, "content": [{"type": "text", "text": message["content"], **extra}]}
        if message["role"] in parts
        else message
        for message in messages
    ]
