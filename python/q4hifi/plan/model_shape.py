"""The few facts of a model, read from its metadata, that decide which type a tensor takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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

LARGEST = 1 << 16
"""The largest number of layers, heads or experts that is believed."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The few facts of a model that recipes ask for.

    ``architecture`` is "" and ``n_layer`` None where the file has none: a file that holds no language
    model. ``n_expert`` is 0 for a dense model. An ``adapter`` (LoRA) changes another model. ``fault`` says
    which of the numbers is not one, "" where all are.
    """

    architecture: str
    n_layer: int | None
    n_head: int = 0
    n_head_kv: int = 0
    n_expert: int = 0
    adapter: bool = False
    fault: str = ""

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> ModelShape:
        """Read them from a GGUF file's metadata; a list (a value a layer) counts by its first entry."""
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str):
            architecture = ""
        faults: list[str] = []

        def number(key: str, *, by_layer: bool = True) -> int | None:
            key = f"{architecture}.{key}"
            value = metadata.get(key)
            if by_layer and isinstance(value, Sequence) and not isinstance(value, str):
                value = value[0] if len(value) else None
            if value is None or (type(value) is int and 0 <= value <= LARGEST):
                return value
            faults.append(f"{key} is {value!r:.60}, and must be a whole number of 0 to {LARGEST}")
            return None

        n_layer = number("block_count", by_layer=False)
        if n_layer is None and architecture == "clip":
            n_layer = 0  # a vision or audio tower has layers, but none of a language model's
        n_head = number("attention.head_count") or 0
        n_head_kv = number("attention.head_count_kv")
        return cls(
            architecture,
            n_layer,
            n_head,
            n_head if n_head_kv is None else n_head_kv,
            number("expert_count") or 0,
            adapter=metadata.get("general.type") == "adapter",
            fault=faults[0] if faults else "",
        )

    @property
    def heads_a_value(self) -> int:
        """Heads that share a key and a value; 0 where there are none."""
        return self.n_head // self.n_head_kv if self.n_head_kv else 0

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp takes the model for its 70 B size."""
        if self.n_layer != GROUPED_70B.get(self.architecture, -1):
            return False
        return self.architecture not in ONLY_GROUPED or self.n_head != self.n_head_kv
