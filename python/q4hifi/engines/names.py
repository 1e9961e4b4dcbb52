"""The names of the engines, in a module that loads quickly for the command's help."""

from __future__ import annotations

AUTO, OWN, LLAMA = "auto", "q4hifi", "llama.cpp"
ENGINES = (AUTO, OWN, LLAMA)
