"""Limits and defaults of measurements, in a module that loads quickly: the command's help states them."""

from __future__ import annotations

MIN_CONTEXT = 4
"""The shortest chunk that scores anything, in tokens."""

LONGEST_CHUNK = 512
"""The longest chunk of which gradients are computed, in tokens."""

FISHER_CHUNKS = 12
"""Chunks whose Fisher information is measured. Of eight it is known to some ten percent on the example model;
on larger ones single tokens have more of it."""
