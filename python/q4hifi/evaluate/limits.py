"""Limits and defaults of measurements, in a module that loads quickly for the command's help."""

from __future__ import annotations

MIN_CONTEXT = 4
"""The smallest number of tokens per chunk."""

CHUNK = 512
"""The default number of tokens per chunk; llama-perplexity's and llama-imatrix's too."""

READ_TOKENS, WRITTEN_TOKENS = 512, 128
"""The default tests of speed, llama-bench's pp512 and tg128: tokens to read at once, and to write."""

LONGEST_CHUNK = 512
"""The largest number of tokens per chunk in calibration, and in measuring the Fisher information."""

FISHER_CHUNKS = 12
"""The default number of chunks on which the Fisher information is measured. Eight chunks give it to about ten
percent on the example model. Larger models need more, because single tokens have a larger share of it."""

NOISE_CHUNKS = 1
"""The default number of chunks for trials of noise instead (:mod:`q4hifi.evaluate.noise_trials`). A
chunk takes about three evaluations for every matrix of a layer."""
