"""The ``q4hifi`` command: options and printing only, a file for each kind of command.

Exit status: 0, 1 where the work failed, 2 where an argument or option does not fit.
"""

from . import evaluate, generate, inspect, quantize
from .group import main

__all__ = ["evaluate", "generate", "inspect", "main", "quantize"]
