"""The process that renders chat templates; :mod:`q4hifi.runtime.template_process` starts it and talks to it.

It runs as a script and imports nothing of q4hifi, so that it starts fast. Each line of standard input is
a job and each line of standard output its answer, both in JSON. The first answer, to no job, says that
the process is ready.

A template runs in Jinja's sandbox with what the transformers library gives to templates. The sandbox
keeps it from files and from Python's internals; the limits below, where the system has them, and the
clock of the other process keep it from using up the machine.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_MOST_OF_A_MESSAGE = 500
"""Characters of an error message that are kept: a template can make it as long as it likes."""


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


def _refuse(message: object) -> NoReturn:
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


def _render(job: dict[str, Any]) -> dict[str, str]:
    """Return ``{"prompt": ...}``, or ``{"failure": kind, "message": ...}``."""
    try:
        pieces, length = [], 0
        for piece in _compiled(job["template"]).generate(job["variables"]):
            pieces.append(piece)
            length += len(piece)
            if length > job["max_length"]:
                return {"failure": "length", "message": ""}
        return {"prompt": "".join(pieces)}
    except MemoryError:
        return {"failure": "memory", "message": ""}
    except _Refused as error:
        return _failure("refused", str(error))
    except jinja2.TemplateSyntaxError as error:
        return _failure("syntax", f"line {error.lineno}: {error.message}")
    except Exception as error:  # the template is foreign code: anything can happen in it
        return _failure("error", f"{type(error).__name__}: {error}")


def _failure(kind: str, message: str) -> dict[str, str]:
    return {"failure": kind, "message": message[:_MOST_OF_A_MESSAGE]}


def _limit(name: str, most: int) -> None:
    """Lower a limit of this process, where the system has it."""
    if resource is not None:
        with suppress(AttributeError, ValueError, OSError):
            which = getattr(resource, name)
            resource.setrlimit(which, (most, resource.getrlimit(which)[1]))


def main() -> None:
    """Answer jobs until standard input ends. The last argument is the memory to use at most, in bytes."""
    answers, sys.stdout = sys.stdout.buffer, sys.stderr  # nothing but answers goes to standard output
    _limit("RLIMIT_AS", int(sys.argv[-1]))
    _limit("RLIMIT_CORE", 0)  # a template that crashes the process must not fill the disk
    answer: dict[str, str] = {}
    while True:
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()
        line = sys.stdin.buffer.readline()
        if not line:
            return
        job = json.loads(line)
        # The other process stops this one when the time is up. This is for the case that it was killed.
        _limit("RLIMIT_CPU", int(time.process_time() + job["seconds"]) + 2)
        answer = _render(job)


if __name__ == "__main__":
    main()
