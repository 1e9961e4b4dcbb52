"""The script of the process that renders chat templates, for :mod:`q4hifi.runtime.template_process`.

It imports nothing from q4hifi, so that it starts fast. Each line of standard input is a job, and each line
of standard output is its answer, both in JSON. An empty first answer means that the process is ready.

A template runs in Jinja's sandbox, with the functions that the transformers library gives to templates. The
sandbox denies access to files and to Python's internals. The limits below, on systems that have them, and
the time limit of the other process keep the template from using up the machine.
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

_MAX_MESSAGE = 500
"""Characters of an error message that are kept. A template can make a message of any length."""


class _Refused(Exception):
    """The template called ``raise_exception``."""


class _Generation(Extension):
    """Lets templates contain ``{% generation %}``, which marks text to train on. A prompt ignores it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the statements between the two tags."""
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
    """Return ``value`` as JSON. Jinja's own filter escapes it for HTML, which a model should not read."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _render(job: dict[str, Any]) -> dict[str, str]:
    """Return ``{"prompt": ...}``, or ``{"failure": ..., "message": ...}`` with a key of ``_FAILURES``."""
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
    except Exception as error:  # a template is a program, and can raise anything
        return _failure("error", _line(error) + _words(error))


def _line(error: Exception) -> str:
    """Return "line N: " for the last line of the template that ran, or "" if none did."""
    lines, trace = [], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f"line {lines[-1]}: " if lines else ""


def _words(error: Exception) -> str:
    """Return what went wrong, without the names of Python's exceptions where their messages say enough."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, KeyError):
        return f"there is no {error}"
    return str(error) or f"there is an error of the kind {type(error).__name__}"


def _failure(name: str, message: str) -> dict[str, str]:
    return {"failure": name, "message": message[:_MAX_MESSAGE]}


def _limit(name: str, most: int) -> None:
    """Lower a resource limit of this process, if the system has it."""
    if resource is not None:
        with suppress(AttributeError, ValueError, OSError):
            number = getattr(resource, name)
            resource.setrlimit(number, (most, resource.getrlimit(number)[1]))


def main() -> None:
    """Answer jobs until standard input ends. The last argument is the memory limit in bytes."""
    answers, sys.stdout = sys.stdout.buffer, sys.stderr  # standard output is for answers only
    _limit("RLIMIT_AS", int(sys.argv[-1]))
    _limit("RLIMIT_CORE", 0)  # no core dump if a template crashes the process
    answer: dict[str, str] = {}
    while True:
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()
        line = sys.stdin.buffer.readline()
        if not line:
            return
        job = json.loads(line)
        # The other process kills this one after the time limit. If it was itself killed, this limit does.
        _limit("RLIMIT_CPU", int(time.process_time() + job["seconds"]) + 2)
        answer = _render(job)


if __name__ == "__main__":
    main()
