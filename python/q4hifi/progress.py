"""The callback with which long-running functions report their progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with ``(done, total, name)``: the work done so far, all the work, and the current tensor or step.

``done`` and ``total`` count weights in functions that write files, and tokens in functions that run models.
"""
