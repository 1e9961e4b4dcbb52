"""The tables of the ``gguf`` package: tensor types, metadata keys and ids of GGUF files.

Only the package's module ``gguf.constants`` is loaded. A normal import would run the whole package, which
imports numpy and yaml and takes five times as long.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gguf.constants import (
        GGML_QUANT_SIZES,
        GGUF_DEFAULT_ALIGNMENT,
        GGUF_MAGIC,
        GGUF_VERSION,
        GGMLQuantizationType,
        GGUFValueType,
        Keys,
        LlamaFileType,
        TokenType,
    )

__all__ = [
    "GGML_QUANT_SIZES",
    "GGUF_DEFAULT_ALIGNMENT",
    "GGUF_MAGIC",
    "GGUF_VERSION",
    "GGMLQuantizationType",
    "GGUFValueType",
    "Keys",
    "LlamaFileType",
    "TokenType",
]


def _load() -> ModuleType:
    if found := sys.modules.get("gguf.constants"):
        return found
    package = find_spec("gguf")  # does not run the package
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'gguf'", name="gguf")
    file = Path(package.submodule_search_locations[0], "constants.py")
    spec = spec_from_file_location(f"{__package__}._gguf_constants", file)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_constants = _load()
globals().update({name: getattr(_constants, name) for name in __all__})
