"""The facts about a model on which the type of a tensor depends. They are read from its metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import BadOptionError

GROUPED_70B: Mapping[str, int] = {
    "llama": 80,
    "llama-embed": 80,
    "qwen2": 80,
    "deci": 80,
    "olmo": 80,
    "jais2": 68,
}
"""Architecture -> number of layers by which llama.cpp recognises its 70 B model."""

ONLY_GROUPED = frozenset({"llama", "llama-embed"})
"""Architectures of :data:`GROUPED_70B` whose 70 B model must also use grouped-query attention."""

MAX_CONTEXT = 1 << 24
"""The largest number of tokens in a text. The models with the longest contexts read 10 million."""

LARGEST = 1 << 16
"""The largest plausible number of layers, heads or experts."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The facts about a model that recipes use.

    ``architecture`` is "" and ``n_layer`` None if the metadata does not contain them: such a file is not a
    language model. ``n_head_kv`` is the number of key-value heads. ``n_expert`` is 0 for a dense model.
    ``adapter`` is whether the file is an adapter (LoRA) for another model. ``fault`` is a message about a
    value that is not a valid count, or "".
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
        """Read the facts from a GGUF file's metadata. Of a list with a value per layer, the first is used."""
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
            faults.append(f"{key} is {value!r:.60}, and must be a whole number from 0 to {LARGEST}")
            return None

        adapter = metadata.get("general.type") == "adapter"
        if architecture == "clip":  # llama.cpp reads no counts of a vision or audio encoder
            return cls(architecture, 0, adapter=adapter)
        n_layer = number("block_count", by_layer=False)
        n_head = number("attention.head_count") or 0
        n_head_kv = number("attention.head_count_kv")
        return cls(
            architecture,
            n_layer,
            n_head,
            n_head if n_head_kv is None else n_head_kv,
            number("expert_count") or 0,
            adapter=adapter,
            fault=faults[0] if faults else "",
        )

    @property
    def heads_a_value(self) -> int:
        """Query heads per key-value head; 0 if the model has no key-value heads."""
        return self.n_head // self.n_head_kv if self.n_head_kv else 0

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp treats the model as a 70 B model: its attn_v is at least Q5_K."""
        if self.n_layer != GROUPED_70B.get(self.architecture, -1):
            return False
        return self.architecture not in ONLY_GROUPED or self.n_head != self.n_head_kv


def check_context(n_ctx: int | None) -> None:
    """Raise :class:`BadOptionError` for a context size that is not 1 to :data:`MAX_CONTEXT`, or None."""
    if n_ctx is not None and not 1 <= n_ctx <= MAX_CONTEXT:
        raise BadOptionError(f"`n_ctx` is {n_ctx}; it is a number of tokens, 1 to {MAX_CONTEXT}")


def trained_context(metadata: Mapping[str, Any]) -> int | None:
    """Return the length in tokens of the texts that a model was trained on, or None if it is not known."""
    value = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    return value if isinstance(value, int) and value > 0 else None


def unused_layers(metadata: Mapping[str, Any]) -> int:
    """Return how many of a model's last layers are for multi-token prediction alone."""
    value = metadata.get(f"{metadata.get('general.architecture')}.nextn_predict_layers", 0)
    return value if isinstance(value, int) and 0 <= value <= LARGEST else 0
