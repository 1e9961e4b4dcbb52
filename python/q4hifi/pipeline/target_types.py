"""The types that exports may have, in a module that loads quickly: the command's options name them."""

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
"""What stock llama.cpp may get in place of a Q4_HIFI tensor: the base without its outliers, or the
decoded weights in a type that holds them well."""

DEQUANTIZED: Mapping[str, TensorType] = {"F32": F32, "F16": F16, "BF16": BF16}
"""What matrices may be decoded to."""
