"""Chat templates rendered in a process of their own, within limits.

A template is a program from a file that anyone may have written. One that never ends, or that builds a
string of gigabytes, cannot be stopped inside this process; another process can be killed. It is started
when first needed and then waits for the next job, so that a turn of a chat costs no start.
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
"""What a template may take. Sound ones need milliseconds."""

ANOTHER_TEMPLATE = "give another template with `template=...`"
"""What to do about a template that is no good."""

_START_SECONDS = 60.0  # it takes 0.1 s, but not on a busy machine
_SENDING_SECONDS = 1e-6  # for each character of the variables, far more than it takes
_MEMORY = 512 << 20  # bytes
_MAX_TEMPLATE = 1 << 20  # characters; published templates have up to 0.1 million
_MAX_ADDED = 1 << 18  # characters that a template may add to a conversation ...
_MAX_REPEATS = 4  # ... which it may repeat this often

_SCRIPT = Path(__file__).with_name("template_worker.py")
_START = "import runpy, sys; sys.path += sys.argv[2:-1]; runpy.run_path(sys.argv[1], run_name='__main__')"
_LIBRARIES = ("jinja2", "markupsafe")


class TemplateLimitError(UnsupportedModelError):
    """A chat template needs more time, memory or characters than it may have."""


_FAILURES: Mapping[str, tuple[type[Q4HifiError], str]] = {
    "refused": (BadOptionError, "refuses these messages: {message}"),
    "syntax": (UnsupportedModelError, "does not parse: {message}; {help}"),
    "error": (UnsupportedModelError, "fails: {message}; {help}"),
    "length": (TemplateLimitError, "makes a prompt of more than {max_length} characters; {help}"),
    "memory": (TemplateLimitError, "needs more than {memory} MiB of memory; {help}"),
    "time": (TemplateLimitError, "takes too long to render; {help}"),
    "crash": (TemplateLimitError, "crashes the process that renders it; {help}"),
}
"""Kind of failure -> the error, and what the template does."""

_BROKEN = ("memory", "time", "crash")
"""Failures after which the process is not used again."""


class _Worker:
    """The process that renders, and its pipes."""

    def __init__(self) -> None:
        folders = dict.fromkeys(
            str(Path(spec.origin).parent.parent)
            for spec in map(find_spec, _LIBRARIES)
            if spec is not None and spec.origin is not None
        )
        # -I -S: neither the environment nor the working folder decides what is imported.
        command = [sys.executable, "-I", "-S", "-c", _START, str(_SCRIPT), *folders, str(_MEMORY)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal is not for this process
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # nor on Windows
            )
        except OSError as error:
            raise UnavailableError(f"no process for chat templates can be started: {error}") from error
        self._owner = os.getpid()
        if self._exchange(b"", _START_SECONDS, 100) != b"{}\n":
            self.stop()
            raise UnavailableError(
                f"the process for chat templates does not start; does {sys.executable} import jinja2?"
            )

    @property
    def is_ready(self) -> bool:
        """Whether it runs and was started by this process, not by one that this was forked from."""
        return self._owner == os.getpid() and self._process.poll() is None

    def stop(self) -> None:
        """End it."""
        if self._owner != os.getpid():
            return
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        self._process.wait()

    def render(self, job: Mapping[str, Any]) -> dict[str, str]:
        """Return the answer to a job; see :mod:`q4hifi.runtime.template_worker`."""
        line = json.dumps(job).encode() + b"\n"
        answer = self._exchange(line, job["seconds"], 12 * job["max_length"] + 10_000)
        if answer is None:
            return {"failure": "time"}
        with suppress(ValueError):
            found = json.loads(answer)
            if isinstance(found, dict) and ("prompt" in found or found.get("failure") in _FAILURES):
                return found
        return {"failure": "crash"}

    def _exchange(self, line: bytes, seconds: float, most: int) -> bytes | None:
        """Send a line and return the next one that comes, of ``most`` bytes; None if that takes too long."""
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
        except OSError:  # the process has ended
            answer = b""
        finally:
            clock.cancel()
        return None if is_late.is_set() else answer


_worker: _Worker | None = None
_lock = threading.Lock()


def render_template(template: str, variables: Mapping[str, Any], seconds: float) -> str:
    """Return what ``template`` makes of ``variables``.

    Raises :class:`TemplateLimitError` for a template that takes more than ``seconds`` or 512 MiB of memory,
    that is longer than a million characters, or whose prompt is far longer than the variables;
    :class:`UnsupportedModelError` for one that does not parse or that fails; :class:`BadOptionError` for
    variables that it refuses or that JSON cannot hold; :class:`UnavailableError` where no process can be
    started.
    """
    if len(template) > _MAX_TEMPLATE:
        raise TemplateLimitError(
            f"the chat template has more than {_MAX_TEMPLATE} characters; {ANOTHER_TEMPLATE}"
        )
    try:
        length = len(json.dumps(variables, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise BadOptionError(
            f"a chat template takes only what JSON can hold (texts, numbers, lists, dicts): {error}"
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
    """Return the process's answer to a job; start the process if need be, stop it if it is broken."""
    global _worker
    if _worker is None or not _worker.is_ready:
        _stop()
        _worker = _Worker()
    try:
        answer = _worker.render(job)
    except BaseException:  # Ctrl-C: the answer may still come, and must not be taken for the next job's
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
