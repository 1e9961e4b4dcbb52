"""The architectures that the runtime runs: a table, and how their metadata and tensor names are read.

The Rust core does not see the names of architectures. It takes a :class:`Config`, and each tensor with its
role and layer. The configuration classes here have the fields of the core's, which explains them
(``src/model/config.rs``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log, sqrt
from typing import Any, Literal

from ..errors import UnsupportedModelError
from ..formats.tensor_names import split_at_layer

Pairs = Literal["neighbours", "halves"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """What is fixed for an architecture, and so not in the metadata of its files.

    ``pairs``: whether rotary embeddings rotate neighbouring values or the two halves of a head.
    ``norm_heads``: queries and keys are normalized head by head. ``post_norms``: there are norms after
    attention and feed-forward. ``scaled_embeddings``: embeddings are multiplied by sqrt(n_embd).
    ``windows``: some layers have sliding-window attention. ``temperature``: queries are scaled by position.
    """

    pairs: Pairs
    norm_heads: bool = False
    post_norms: bool = False
    activation: Literal["silu", "gelu"] = "silu"
    scaled_embeddings: bool = False
    windows: bool = False
    temperature: bool = False
    wide_attention: frozenset[int] = frozenset()
    """Numbers of layers of the models that scale attention by n_embd / n_head, not by the head size."""
    expert_length: str | None = None
    """The key with the hidden dimensions of an expert; None if mixtures of experts cannot be run."""


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("neighbours", expert_length="feed_forward_length"),
    "mistral3": Architecture("neighbours", temperature=True),
    "qwen2": Architecture("halves"),
    "qwen3": Architecture("halves", norm_heads=True),
    "qwen3moe": Architecture("halves", norm_heads=True, expert_length="expert_feed_forward_length"),
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

_MIXTURES = [name for name, architecture in ARCHITECTURES.items() if architecture.expert_length]
SUPPORTED = (
    f"supported are models of {', '.join(ARCHITECTURES)}; mixtures of experts only of {', '.join(_MIXTURES)}"
)

ROUTER = "ffn_gate_inp"
"""Role of the matrix that chooses the experts of a token. It is not quantized."""

_GLOBAL: Mapping[str, str] = {
    "token_embd.weight": "token_embd",
    "output_norm.weight": "output_norm",
    "output.weight": "output",
    "output.bias": "output_bias",
}
_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_EXPERTS = (ROUTER, "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
_NORMS = ("attn_norm", "attn_q_norm", "attn_k_norm", "ffn_norm")
_IN_LAYER: Mapping[str, str] = (
    {f".{name}.weight": name for name in (*_MATRICES, *_EXPERTS, *_NORMS)}
    | {f".{name}.bias": f"{name}_bias" for name in _MATRICES}
    | {".post_attention_norm.weight": "attn_post_norm", ".post_ffw_norm.weight": "ffn_post_norm"}
)

FREQUENCY_FACTORS = "rope_freqs.weight"
"""Name of the tensor with the divisor of each rotary frequency (Llama 3's long contexts)."""

RoleAndLayer = tuple[str, int | None]
"""A tensor's role in the core, and its layer: None outside the layers."""

_PLAIN_MIXTURE: Mapping[str, tuple[float, ...]] = {
    "expert_shared_count": (0,),
    "expert_group_count": (0, 1),
    "expert_gating_func": (0, 1),  # not given, softmax
    "expert_weights_scale": (0, 1),
    "leading_dense_block_count": (0,),
}
"""Options of mixtures of experts -> the values that mean that the option is not used."""

_SCALINGS = ("none", "linear", "yarn")
_WINDOW_PATTERN = 6  # every sixth layer has full attention


def role_and_layer(name: str) -> RoleAndLayer | None:
    """Return a tensor's role in the core and its layer, or None if the runtime does not use the tensor."""
    if name in _GLOBAL:
        return _GLOBAL[name], None
    prefix, layer, rest = split_at_layer(name)
    role = _IN_LAYER.get(rest)
    return None if role is None or layer is None or prefix else (role, layer)


def name_of(role: str, layer: int | None) -> str:
    """Return the tensor's name; the inverse of :func:`role_and_layer`."""
    if layer is None:
        return next(name for name, found in _GLOBAL.items() if found == role)
    return f"blk.{layer}" + next(name for name, found in _IN_LAYER.items() if found == role)


@dataclass(frozen=True, slots=True)
class Yarn:
    """The ramp of YaRN (Peng et al. 2023): original context in tokens, beta_fast and beta_slow."""

    context: float
    fast: float
    slow: float


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embeddings of a layer."""

    base: float
    dimensions: int
    stretch: float
    yarn: Yarn | None
    magnitude: float
    factors: list[float]


@dataclass(frozen=True, slots=True)
class Local:
    """Sliding-window attention: the window in tokens, and for each layer whether it has one."""

    window: int
    rope: Rope
    layers: list[bool]


@dataclass(frozen=True, slots=True)
class Temperature:
    """Scaling of queries that grows with the position, by steps of ``interval`` tokens."""

    scale: float
    interval: int


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts: the experts of a layer, and how many of them each token uses."""

    count: int
    used: int


@dataclass(frozen=True, slots=True)
class Config:
    """A model's sizes and the properties of its architecture; ``n_context`` is the trained context length."""

    n_vocab: int
    n_layer: int
    n_embd: int
    n_ff: int
    experts: Experts | None
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
    """Read a model's configuration from its metadata.

    ``n_vocab`` is the number of rows of the embeddings. ``factors`` are the values of the tensor
    :data:`FREQUENCY_FACTORS`, empty if there is none. Raises :class:`UnsupportedModelError` for an
    architecture that is not in the table, for options that are not supported, and for metadata that are
    missing or no sensible numbers.
    """
    name = metadata.get("general.architecture")
    known = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if known is None:
        raise UnsupportedModelError(f"the architecture is {name!r:.80}, which cannot be run; {SUPPORTED}")
    keys = _Keys(metadata, str(name))
    if keys.get("attention.causal") is False:
        raise UnsupportedModelError("the model reads texts in both directions, which cannot be run")
    experts = _experts(keys, known)
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
        n_ff=int(keys.number((experts and known.expert_length) or "feed_forward_length")),
        experts=experts,
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
        """Return a number, not negative. A list with the same value for every layer counts as that value."""
        value = self.get(key, default)
        if isinstance(value, list) and value and all(v == value[0] for v in value):
            value = value[0]
        if isinstance(value, (int, float)) and 0 <= value < 1 << 62:
            return value
        said = "is missing" if value is None else f"is {value!r:.80}, which cannot be run"
        raise UnsupportedModelError(f"the metadata's {self.architecture}.{key} {said}")


def _experts(keys: _Keys, known: Architecture) -> Experts | None:
    count = int(keys.number("expert_count", 0))
    if not count:
        return None
    if known.expert_length is None:
        raise UnsupportedModelError(f"a mixture of experts, which cannot be run; {SUPPORTED}")
    for key, unused in _PLAIN_MIXTURE.items():
        if (value := keys.number(key, unused[0])) not in unused:
            raise UnsupportedModelError(
                f"a mixture of experts with {keys.architecture}.{key} = {value:g}, which cannot be run"
            )
    return Experts(count, int(keys.number("expert_used_count")))


def _rope(keys: _Keys, head_size: int, n_context: int, factors: list[float]) -> Rope:
    scaling = keys.get("rope.scaling.type", "linear")
    if scaling not in _SCALINGS:
        known = ", ".join(_SCALINGS)
        raise UnsupportedModelError(f"rope.scaling.type is {scaling!r:.80}; supported are {known}")
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
