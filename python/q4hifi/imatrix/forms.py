"""Names of the forms of importance matrix files.

A module of its own, because the command needs these names for its help and must start quickly.
"""

from __future__ import annotations

GGUF, DAT = "gguf", "dat"
FORMS = (GGUF, DAT)
"""llama.cpp's form today (GGUF) and its older binary form."""
