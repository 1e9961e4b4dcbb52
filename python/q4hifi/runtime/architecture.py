"""What an architecture's metadata and tensor names mean to the runtime: tables, and how to read them.

The runtime knows no architecture by name; it takes a :class:`Config` and tensors by role. The fields of
these classes are those of the Rust core's, where they are explained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import log, sqrt
from typing import Any, Literal

from ..errors import UnsupportedModelError

Pairs = Literal["neighbours", "halves"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """The choices of an architecture that its metadata do not state."""

    pairs: Pairs
    norm_heads: bool = False
    post_norms: bool = False
    activation: Literal["silu", "gelu"] = "silu"
    scaled_embeddings: bool = False
    windows: bool = False
    temperature: bool = False
    wide_attention: frozenset[int] = frozenset()
    """Layer counts of the models whose attention is scaled by the width, not by the size of a head."""


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("neighbours"),
    "mistral3": Architecture("neighbours", temperature=True),
    "qwen2": Architecture("halves"),
    "qwen3": Architecture("halves", norm_heads=True),
    "gemma3": Architecture(
        "halves",
        norm_heads=True,
        post_norms=True,
        activation="gelu",
        scaled_embeddings=True,
        windows=True,
        wide_attention=frozenset({62}),
    ),
}
"""Every architecture that the runtime knows, by its name in ``general.architecture``."""

SUPPORTED = f"supported are dense models of {', '.join(ARCHITECTURES)}"

_GLOBAL: Mapping[str, str] = {
    "token_embd.weight": "token_embd",
    "output_norm.weight": "output_norm",
    "output.weight": "output",
    "output.bias": "output_bias",
}
_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_NORMS = ("attn_norm", "attn_q_norm", "attn_k_norm", "ffn_norm")
_IN_LAYER: Mapping[str, str] = (
    {f"{name}.weight": name for name in (*_MATRICES, *_NORMS)}
    | {f"{name}.bias": f"{name}_bias" for name in _MATRICES}
    | {"post_attention_norm.weight": "attn_post_norm", "post_ffw_norm.weight": "ffn_post_norm"}
)
_LAYER = re.compile(r"blk\.(\d{1,9})\.(.+)")

FACTORS = "rope_freqs.weight"
"""The tensor of the numbers that each frequency of the positions is divided by."""

_SCALINGS = ("none", "linear", "yarn")
_WINDOW_PATTERN = 6  # of so many layers the last sees everything


def place_of(name: str) -> tuple[str, int | None] | None:
    """Return the role and layer of a tensor; None for one that the runtime has no use for."""
    if name in _GLOBAL:
        return _GLOBAL[name], None
    found = _LAYER.fullmatch(name)
    role = _IN_LAYER.get(found[2]) if found else None
    return (role, int(found[1])) if found and role else None


def name_of(role: str, layer: int | None) -> str:
    """Return the tensor's name; the inverse of :func:`place_of`."""
    if layer is None:
        return next(name for name, found in _GLOBAL.items() if found == role)
    return f"blk.{layer}." + next(name for name, found in _IN_LAYER.items() if found == role)


@dataclass(frozen=True, slots=True)
class Yarn:
    """YaRN's ramp."""

    context: float
    fast: float
    slow: float


@dataclass(frozen=True, slots=True)
class Rope:
    """How positions are encoded."""

    base: float
    dimensions: int
    stretch: float
    yarn: Yarn | None
    magnitude: float
    factors: list[float]


@dataclass(frozen=True, slots=True)
class Local:
    """Layers with a sliding window."""

    window: int
    rope: Rope
    layers: list[bool]


@dataclass(frozen=True, slots=True)
class Temperature:
    """How queries grow with their positions."""

    scale: float
    interval: int


@dataclass(frozen=True, slots=True)
class Config:
    """The shape of a model and the choices of its architecture; ``n_context`` is what it was trained with."""

    n_vocab: int
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_size: int
    norm_eps: float
    embedding_scale: float
    attention_scale: float
    norm_heads: bool
    post_norms: bool
    activation: str
    logit_softcap: float | None
    pairs: Pairs
    rope: Rope
    local: Local | None
    temperature: Temperature | None
    n_context: int


def config_of(metadata: Mapping[str, Any], n_vocab: int, factors: list[float]) -> Config:
    """Read the configuration of a model; ``factors`` are those of :data:`FACTORS`, if it has them.

    Raises :class:`UnsupportedModelError` for an architecture that is not known, an option of one that is
    not, and metadata that are missing or not the numbers they should be.
    """
    name = metadata.get("general.architecture")
    known = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if known is None:
        raise UnsupportedModelError(f"the architecture is {name!r:.80}, which cannot be run; {SUPPORTED}")
    keys = _Keys(metadata, str(name))
    if keys.number("expert_count", 0):
        raise UnsupportedModelError(f"a mixture of experts, which cannot be run; {SUPPORTED}")
    n_layer, n_embd, n_head = (
        int(keys.number(key)) for key in ("block_count", "embedding_length", "attention.head_count")
    )
    head_size = int(keys.number("attention.key_length", n_embd // max(1, n_head)))
    if keys.number("attention.value_length", head_size) != head_size:
        raise UnsupportedModelError("keys and values differ in length, which cannot be run")
    n_context = int(keys.number("context_length"))
    rope = _rope(keys, head_size, n_context, factors)
    wide = n_layer in known.wide_attention
    return Config(
        n_vocab=n_vocab,
        n_layer=n_layer,
        n_embd=n_embd,
        n_ff=int(keys.number("feed_forward_length")),
        n_head=n_head,
        n_head_kv=int(keys.number("attention.head_count_kv", n_head)),
        head_size=head_size,
        norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
        embedding_scale=sqrt(n_embd) if known.scaled_embeddings else 1.0,
        attention_scale=1 / sqrt(n_embd // n_head if wide else max(1, head_size)),
        norm_heads=known.norm_heads,
        post_norms=known.post_norms,
        activation=known.activation,
        logit_softcap=keys.number("final_logit_softcapping", 0) or None,
        pairs=known.pairs,
        rope=rope,
        local=_local(keys, n_layer, rope) if known.windows else None,
        temperature=_temperature(keys, n_context) if known.temperature else None,
        n_context=n_context,
    )


@dataclass(frozen=True, slots=True)
class _Keys:
    """The metadata of one architecture."""

    metadata: Mapping[str, Any]
    architecture: str

    def get(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def number(self, key: str, default: float | None = None) -> float:
        """A number that is not negative; a list of the same number for every layer counts as one."""
        value = self.get(key, default)
        if isinstance(value, list) and value and all(v == value[0] for v in value):
            value = value[0]
        if isinstance(value, (int, float)) and 0 <= value < 1 << 62:
            return value
        said = "is missing" if value is None else f"is {value!r:.80}, which cannot be run"
        raise UnsupportedModelError(f"the metadata's {self.architecture}.{key} {said}")


def _rope(keys: _Keys, head_size: int, n_context: int, factors: list[float]) -> Rope:
    scaling = keys.get("rope.scaling.type", "linear")
    if scaling not in _SCALINGS:
        known = ", ".join(_SCALINGS)
        raise UnsupportedModelError(f"positions are scaled by {scaling!r:.80}; supported are {known}")
    stretch = keys.number("rope.scaling.factor", 0) or keys.number("rope.scale_linear", 0) or 1.0
    yarn, magnitude = None, keys.number("rope.scaling.attn_factor", 1.0)
    if scaling == "none":
        stretch = 1.0
    if scaling == "yarn":
        yarn = Yarn(
            context=keys.number("rope.scaling.original_context_length", n_context),
            fast=keys.number("rope.scaling.yarn_beta_fast", 32.0),
            slow=keys.number("rope.scaling.yarn_beta_slow", 1.0),
        )
        growth = 0.1 * log(max(1.0, stretch))
        magnitude *= (1 + growth) / (1 + growth * keys.number("rope.scaling.yarn_log_multiplier", 0))
    return Rope(
        base=keys.number("rope.freq_base", 10000.0),
        dimensions=int(keys.number("rope.dimension_count", head_size)),
        stretch=stretch,
        yarn=yarn,
        magnitude=magnitude,
        factors=factors,
    )


def _local(keys: _Keys, n_layer: int, rope: Rope) -> Local | None:
    window = int(keys.number("attention.sliding_window", 0))
    if not window:
        return None
    pattern = keys.get("attention.sliding_window_pattern", _WINDOW_PATTERN)
    if isinstance(pattern, list):
        layers = [bool(near) for near in pattern]
    else:
        n = int(keys.number("attention.sliding_window_pattern", _WINDOW_PATTERN))
        layers = [n == 0 or layer % n < n - 1 for layer in range(n_layer)]
    near = Rope(
        base=keys.number("rope.freq_base_swa", 10000.0),
        dimensions=rope.dimensions,
        stretch=1.0,
        yarn=None,
        magnitude=keys.number("rope.scaling.attn_factor", 1.0),
        factors=[],
    )
    return Local(window, near, layers)


def _temperature(keys: _Keys, n_context: int) -> Temperature | None:
    scale = keys.number("attention.temperature_scale", 0)
    interval = int(keys.number("rope.scaling.original_context_length", n_context))
    return Temperature(scale, interval) if scale and interval else None
