"""How long work says how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with the work that is done, all the work, and the name of the tensor or step that was worked on.

The unit depends on the function: weights where files are written, tokens where models run.
"""
