"""The exceptions of q4hifi: one class to catch, and a child for each kind of trouble.

Every message says what is wrong, where (file, tensor, position) and what to do about it. A keyword
argument stands in it between backquotes, with its value if that matters, such as ```overwrite=True```.
There the command shows its option, such as ``--overwrite``.
"""

from __future__ import annotations


class Q4HifiError(Exception):
    """Base class of everything that q4hifi raises on purpose."""


class BadFileError(Q4HifiError):
    """A file is not what it claims to be: truncated, inconsistent or hostile."""


class UnsupportedModelError(Q4HifiError):
    """A well-formed model holds something that q4hifi cannot process."""


class BadOptionError(Q4HifiError, ValueError):
    """An argument or a command-line option does not fit."""


class NotFiniteError(Q4HifiError, ValueError):
    """Weights or importance values are NaN or infinite, or too large for the target type."""


class UnavailableError(Q4HifiError):
    """What was asked for needs something that this machine lacks: a GPU, or a package."""
