"""The exceptions of q4hifi: one base class to catch, and a subclass for each cause.

Every message says what is wrong, where (file, tensor, position) and what to do about it. A message writes a
keyword argument in backquotes, with its value if the value matters: ```overwrite=True```. The command line
prints the matching option instead: ``--overwrite``.

The constructor of every class takes the message alone, because callers that add a file's name to a message
raise ``type(error)(message)``.
"""

from __future__ import annotations


class Q4HifiError(Exception):
    """Base class of every exception that q4hifi raises on purpose."""


class BadFileError(Q4HifiError):
    """A file cannot be read, or its contents are truncated, inconsistent or hostile."""


class UnsupportedModelError(Q4HifiError):
    """A model is well-formed, but q4hifi cannot process something in it."""


class BadOptionError(Q4HifiError, ValueError):
    """An argument or a command-line option is invalid."""


class NotFiniteError(Q4HifiError, ValueError):
    """Weights or importance values are NaN, infinite, or too large for the target type."""


class UnavailableError(Q4HifiError):
    """The request needs something that this machine lacks: a GPU, or a package."""
