"""The few facts of a model, read from its metadata, that decide which type a tensor takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import UnsupportedModelError

GROUPED_70B: Mapping[str, int] = {
    "llama": 80,
    "llama-embed": 80,
    "qwen2": 80,
    "deci": 80,
    "olmo": 80,
    "jais2": 68,
}
"""Architecture -> layer count of its 70 B model, whose attn_v never takes less than Q5_K."""

ONLY_GROUPED = frozenset({"llama", "llama-embed"})
"""Of those, the architectures where heads must be grouped for it."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The few facts of a model that recipes ask for. ``n_expert`` is 0 for a dense model."""

    architecture: str
    n_layer: int
    n_head: int = 0
    n_head_kv: int = 0
    n_expert: int = 0

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> ModelShape:
        """Read them from a GGUF file's metadata; a list (a value a layer) counts by its first entry.

        Raises :class:`UnsupportedModelError` where the architecture or the layer count is missing.
        """
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise UnsupportedModelError(
                "the metadata has no general.architecture; is this a language model in GGUF form?"
            )

        def number(key: str, default: int | None) -> int:
            value = metadata.get(f"{architecture}.{key}", default)
            if isinstance(value, Sequence) and not isinstance(value, str):
                value = value[0] if len(value) else default
            try:
                return max(0, int(value))
            except (TypeError, ValueError, OverflowError):
                raise UnsupportedModelError(
                    f"the metadata gives no number as {architecture}.{key} (it says {value!r})"
                ) from None

        n_head = number("attention.head_count", 0)
        return cls(
            architecture,
            # a vision or audio tower has layers, but none of a language model's
            number("block_count", 0 if architecture == "clip" else None),
            n_head,
            number("attention.head_count_kv", n_head),
            number("expert_count", 0),
        )

    @property
    def heads_a_value(self) -> int:
        """Heads that share a key and a value; 0 where there are none."""
        return self.n_head // self.n_head_kv if self.n_head_kv else 0

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp takes the model for its 70 B size."""
        if self.n_layer != GROUPED_70B.get(self.architecture):
            return False
        return self.architecture not in ONLY_GROUPED or self.n_head != self.n_head_kv
