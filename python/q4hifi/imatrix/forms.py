"""The forms of importance matrix files, in a module that loads quickly: the command's options name them."""

from __future__ import annotations

GGUF, DAT = "gguf", "dat"
FORMS = (GGUF, DAT)
"""The one that llama.cpp writes today, and its older one."""
