"""Rendering chat templates in another process, with limits on time, memory and length.

A template is a program in a file that anyone may have written. If it never ends, or builds a string of
gigabytes, this process could not stop it; but it can kill another process. That process is started at the
first use and then waits for more jobs, so that later turns of a chat need no start.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import BadOptionError, Q4HifiError, UnavailableError, UnsupportedModelError

RENDER_SECONDS = 2.0
"""Time limit for a prompt: for the renderings in all forms together. Ordinary templates need milliseconds."""

ANOTHER_TEMPLATE = "give another template with `template=...`"
"""The remedy in messages about a template that cannot be used."""

CORRECTED_TEMPLATE = "correct this template, or leave it out to use that of the model"
"""The remedy if the user has given this template."""

_START_SECONDS = 60.0  # 0.1 s is usual, but a busy machine needs longer
_SENDING_SECONDS = 1e-6  # per character of the variables, far more than it takes
_MEMORY = 512 << 20  # bytes
_MAX_TEMPLATE = 1 << 20  # characters; published templates have up to 0.1 million
# A prompt may have _MAX_REPEATS times the characters of the variables, and _MAX_ADDED more.
_MAX_REPEATS = 4
_MAX_ADDED = 1 << 18

_SCRIPT = Path(__file__).with_name("template_worker.py")
_START = "import runpy, sys; sys.path += sys.argv[2:-1]; runpy.run_path(sys.argv[1], run_name='__main__')"
_LIBRARIES = ("jinja2", "markupsafe")


class TemplateLimitError(UnsupportedModelError):
    """A chat template exceeds the limit of time, memory or length."""


_FAILURES: Mapping[str, tuple[type[Q4HifiError], str]] = {
    "refused": (UnsupportedModelError, "rejects these messages: {message}"),
    "syntax": (UnsupportedModelError, "does not parse: {message}; {help}"),
    "error": (UnsupportedModelError, "fails: {message}; {help}"),
    "length": (TemplateLimitError, "makes a prompt of more than {max_length} characters; {help}"),
    "memory": (TemplateLimitError, "needs more than {memory} MiB of memory; {help}"),
    "time": (TemplateLimitError, "takes too long to render; {help}"),
    "crash": (TemplateLimitError, "crashes the process that renders it; {help}"),
}
"""Failure -> class of the error, and its message after "the chat template"."""

_BROKEN = ("memory", "time", "crash")
"""Failures after which the process is not used again."""


class _Worker:
    """The process that renders templates, and the pipes to it."""

    def __init__(self) -> None:
        """Start the process. Raises :class:`UnavailableError` if this fails."""
        folders = dict.fromkeys(
            str(Path(spec.origin).parent.parent)
            for spec in map(find_spec, _LIBRARIES)
            if spec is not None and spec.origin is not None
        )
        # -I -S: imports depend neither on environment variables nor on the working folder.
        command = [sys.executable, "-I", "-S", "-c", _START, str(_SCRIPT), *folders, str(_MEMORY)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal does not reach this process
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # the same on Windows
            )
        except OSError as error:
            raise UnavailableError(
                f"the process that renders chat templates cannot be started: {error}"
            ) from error
        self._owner = os.getpid()
        if self._exchange(b"", _START_SECONDS, 100) != b"{}\n":
            self.stop()
            raise UnavailableError(
                "the process that renders chat templates cannot be started; check that"
                f" {sys.executable} can import jinja2"
            )

    @property
    def is_ready(self) -> bool:
        """Whether the process runs, and was started by this process and not before a fork."""
        return self._owner == os.getpid() and self._process.poll() is None

    def stop(self) -> None:
        """Kill the process, unless it belongs to the process that this one was forked from."""
        if self._owner != os.getpid():
            return
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        self._process.wait()

    def render(self, job: Mapping[str, Any]) -> dict[str, str]:
        """Return the answer to a job, or a failure; see :mod:`q4hifi.runtime.template_worker`."""
        line = json.dumps(job).encode() + b"\n"
        answer = self._exchange(line, job["seconds"], 12 * job["max_length"] + 10_000)
        if answer is None:
            return {"failure": "time"}
        with suppress(ValueError):
            result = json.loads(answer)
            if isinstance(result, dict) and ("prompt" in result or result.get("failure") in _FAILURES):
                return result
        return {"failure": "crash"}

    def _exchange(self, line: bytes, seconds: float, most: int) -> bytes | None:
        """Send a line, and return the line that answers it, at most ``most`` bytes.

        After ``seconds`` without an answer, kill the process and return None.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        is_late = threading.Event()

        def end() -> None:
            is_late.set()
            self._process.kill()

        clock = threading.Timer(seconds, end)
        clock.start()
        try:
            stdin.write(line)
            stdin.flush()
            answer = stdout.readline(most)
        except OSError:  # the process has crashed
            answer = b""
        finally:
            clock.cancel()
        return None if is_late.is_set() else answer


_worker: _Worker | None = None
_lock = threading.Lock()


def render_template(template: str, variables: Mapping[str, Any], seconds: float) -> str:
    """Return the text that the Jinja ``template`` makes from ``variables``.

    Raises :class:`TemplateLimitError` for a template that needs more than ``seconds`` or 512 MiB of memory,
    has more than 2^20 characters, or makes a prompt far longer than the variables;
    :class:`UnsupportedModelError` for a template that does not parse, fails, or rejects the variables;
    :class:`BadOptionError` for variables that JSON cannot represent; and :class:`UnavailableError` if the
    process cannot be started.
    """
    if len(template) > _MAX_TEMPLATE:
        raise TemplateLimitError(
            f"the chat template has more than {_MAX_TEMPLATE} characters; {ANOTHER_TEMPLATE}"
        )
    try:
        length = len(json.dumps(variables, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise BadOptionError(
            "a chat template takes only values that JSON can represent (text, numbers, lists, dicts):"
            f" {error}"
        ) from None
    max_length = _MAX_ADDED + _MAX_REPEATS * length
    seconds += _SENDING_SECONDS * length
    job = {"template": template, "variables": variables, "max_length": max_length, "seconds": seconds}
    with _lock:
        answer = _answer(job)
    if "prompt" in answer:
        return answer["prompt"]
    error_class, text = _FAILURES[answer["failure"]]
    text = text.format(
        message=answer.get("message", ""),
        max_length=max_length,
        memory=_MEMORY >> 20,
        help=ANOTHER_TEMPLATE,
    )
    raise error_class(f"the chat template {text}")


def _answer(job: Mapping[str, Any]) -> dict[str, str]:
    """Return the answer to a job. Start the process if necessary, and stop it if it no longer works."""
    global _worker
    if _worker is None or not _worker.is_ready:
        _stop()
        _worker = _Worker()
    try:
        answer = _worker.render(job)
    except BaseException:  # after Ctrl-C, a late answer must not be taken for the answer to the next job
        _stop()
        raise
    if answer.get("failure") in _BROKEN:
        _stop()
    return answer


@atexit.register
def _stop() -> None:
    global _worker
    worker, _worker = _worker, None
    if worker is not None:
        worker.stop()
