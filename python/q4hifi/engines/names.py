"""The names of the engines, and their options, in a module that loads quickly for the command's help."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

AUTO, OWN, LLAMA = "auto", "q4hifi", "llama.cpp"
ENGINES = (AUTO, OWN, LLAMA)


@dataclass(frozen=True, slots=True)
class LlamaOptions:
    """The options that only llama.cpp has (:class:`q4hifi.LlamaModel` explains them)."""

    library: str | os.PathLike[str] | None = None
    gpu_layers: int | None = None
    tensor_split: Sequence[float] = ()
    rpc: Sequence[str] = ()

    def given(self) -> dict[str, Any]:
        """Return the options that are not the default: name -> value."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value not in (None, ())}


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Which engine runs a model, and the options of llama.cpp. One that is given chooses llama.cpp."""

    engine: str = AUTO
    llama: LlamaOptions = LlamaOptions()


BEST_ENGINE = EngineOptions()
"""Our own runtime if it runs the model, else llama.cpp."""
