"""The types that models are exported to, in a module that loads quickly for the command's help."""

from __future__ import annotations

from collections.abc import Mapping

from ..formats.types import BF16, F16, F32, TYPES, TensorType

DROP = "drop"
EXPORTS: Mapping[str, TensorType] = {
    DROP: TYPES["Q4_K"],
    "q5_k": TYPES["Q5_K"],
    "q6_k": TYPES["Q6_K"],
    "q8_0": TYPES["Q8_0"],
    "f16": F16,
}
"""Name -> the type that a Q4_HIFI tensor becomes for stock llama.cpp. ``drop`` keeps the base blocks and
drops the outliers. The others encode the decoded weights."""

DEQUANTIZED: Mapping[str, TensorType] = {"F32": F32, "F16": F16, "BF16": BF16}
"""Name -> the type that matrices are decoded to."""
