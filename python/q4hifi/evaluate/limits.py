"""Limits and defaults of measurements, in a module that loads quickly for the command's help."""

from __future__ import annotations

MIN_CONTEXT = 4
"""The smallest number of tokens per chunk."""

LONGEST_CHUNK = 512
"""The largest number of tokens per chunk in calibration, and in measuring the Fisher information."""

FISHER_CHUNKS = 12
"""The default number of chunks on which the Fisher information is measured. Eight chunks give it to about ten
percent on the example model. Larger models need more, because single tokens have a larger share of it."""
