"""The meaning of tensor names: a tensor's role and layer, and whether it is quantized at all.

The names are GGUF's, such as ``blk.7.attn_v.weight``. The rules are llama-quantize's.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

ROLES: tuple[tuple[str, str], ...] = (
    ("output", r"^output\.weight$"),
    ("token_embd", r"^(per_layer_)?token_embd\.weight$"),
    ("lm_head", r"^lm_head\.weight$"),
    ("bias", r"\.bias$"),
    ("norm", r"_norm\b"),
    ("router", r"ffn_gate_inp"),
    ("attn_qkv", r"attn_qkv\.weight"),
    ("attn_kv_b", r"attn_kv_b\.weight"),
    ("attn_v", r"attn_v\.weight"),
    ("attn_k", r"attn_k\.weight"),
    ("attn_q", r"attn_q\.weight"),
    ("attn_output", r"attn_output\.weight"),
    ("ffn_up", r"ffn_up"),
    ("ffn_gate", r"ffn_gate"),
    ("ffn_down", r"ffn_down"),
    ("other", r""),
)
"""(role, regular expression). The first expression that is found in a name decides its role.

Expert tensors (``ffn_down_exps``, ``ffn_down.3``, ``ffn_down_shexp``) have the role of the dense tensor.
"""

OUTPUT, EMBEDDINGS = "output.weight", "token_embd.weight"
"""Names of the output matrix and of the token embeddings."""

ATTN_V_LIKE = frozenset({"attn_v", "attn_qkv", "attn_kv_b"})
"""Roles that contain the value projection, alone or fused with others. Recipes treat them alike."""

OUTPUT_LIKE = frozenset({"output", "lm_head"})
"""Roles of the matrix that computes the logits; see also :func:`output_of`."""

SAME_INPUT: Mapping[str, str] = {"attn_k": "attn_q", "attn_v": "attn_q", "ffn_up": "ffn_gate"}
"""Role -> role of the layer's matrix with the same input, in every architecture that the runtime supports."""

WRITERS = frozenset({"attn_output", "ffn_down"})
"""Roles of the matrices that write to the residual stream, in these architectures."""

VOCABULARY_ROLES = OUTPUT_LIKE | {"token_embd"}
"""Roles whose matrices have a row per token of the vocabulary. Q4_HIFI gives them twice the outliers."""

KEPT: tuple[str, ...] = (
    # small but sensitive: norms, routers and token-to-expert tables
    *("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight"),
    *("altup", "laurel", "per_layer_model_proj"),
    # convolutions and indexers
    *("ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight"),
    # RWKV's small two-dimensional weights
    *(f"time_mix_{part}.weight" for part in ("first", "lerp_fused", "decay_w1", "decay_w2")),
    *(f"time_mix_{part}.weight" for part in ("w0", "w1", "w2", "v0", "v1", "v2")),
    *(f"time_mix_{part}.weight" for part in ("a0", "a1", "a2", "g1", "g2")),
    # position embeddings: T5's relative bias, and those of vision and audio encoders
    *("attn_rel_b.weight", ".position_embd", ".rel_pos", "sam.pos_embd"),
    *("sam.neck.", "sam.net_", ".patch_embd", ".patch_merger", "a.rvq.codebook", "mm.a.code_embd"),
)
"""Parts of names. A matrix whose name contains one of them keeps its source type."""

KEPT_NAMES = frozenset({"position_embd.weight", "token_types.weight"})
"""Full names of further matrices that keep their source type (BERT's)."""

KEPT_BY_ARCHITECTURE: dict[str, tuple[str, ...]] = {
    "glm5-next": (
        *("hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj"),
        *("indexer_compressor_gate", "indexer_compressor_ape"),
        *("ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight", "ssm_g_b.weight", "ssm_beta.weight"),
        *("attn_kv_a_mqa.weight", "attn_k_b.weight", "attn_v_b.weight"),
    ),
}
"""Architecture -> further parts of names, used as :data:`KEPT`."""

_ROLE_PATTERNS = tuple((role, re.compile(pattern)) for role, pattern in ROLES)
_LAYER = re.compile(r"\bblk\.(\d{1,9})")


def role_of(name: str) -> str:
    """Return the role of a tensor, one of those in :data:`ROLES`."""
    return next(role for role, pattern in _ROLE_PATTERNS if pattern.search(name))


def first_with_same_input(name: str) -> str:
    """Return the name of the first matrix of the layer that has the same input as the matrix ``name``.

    Sums over inputs are stored once for all these matrices, under this name. It is ``name`` itself where no
    other matrix has the same input.
    """
    role = role_of(name)
    return name.replace(role, SAME_INPUT.get(role, role))


def output_of(names: Container[str]) -> str:
    """Return the name of the matrix that computes a model's logits; ``names`` are those of all its tensors.

    A model without an output matrix has tied embeddings: it uses the token embeddings instead.
    """
    return OUTPUT if OUTPUT in names else EMBEDDINGS


def is_expert(name: str) -> bool:
    """Return whether a tensor is a stack of the matrices of all experts of a layer (``ffn_up_exps``)."""
    return "_exps." in name


def is_tied(names: Container[str]) -> bool:
    """Return whether a model has tied embeddings: no output matrix of its own (llama-quantize's rule)."""
    return output_of(names) == EMBEDDINGS


def split_at_layer(name: str) -> tuple[str, int | None, str]:
    """Split a name around its layer: ``enc.blk.3.attn_q.weight`` gives ("enc.", 3, ".attn_q.weight").

    A name outside the layers gives ("", None, name).
    """
    found = _LAYER.search(name)
    return ("", None, name) if found is None else (name[: found.start()], int(found[1]), name[found.end() :])


def layer_of(name: str) -> int | None:
    """Return the layer number in a name (3 in ``blk.3.``, ``enc.blk.3.``, ``v.blk.3.``), or None."""
    return split_at_layer(name)[1]


def alike_layers(layer: int, n_layer: int, size: int | None = None) -> int | None:
    """Return a number that layers have in common whose matrices are equally sensitive.

    The first and the last of ``n_layer`` layers differ from all others. These are alike: ``size`` neighbours
    each, or without ``size`` all of them, which gives None.
    """
    if not 0 < layer < n_layer - 1:
        return layer
    return None if size is None else 1 + (layer - 1) // size * size


def with_layer(name: str, layer: int) -> str:
    """Return the name of the same tensor in another layer: blk.4.attn_v.weight for blk.3.attn_v.weight."""
    return _LAYER.sub(f"blk.{layer}", name, count=1)


def kind_of(name: str) -> str:
    """Return the name of a tensor without its layer."""
    prefix, _, rest = split_at_layer(name)
    return prefix + rest


def group_of(name: str, n_layer: int, size: int | None = None) -> tuple[str, int | None]:
    """Return what a matrix has in common with others that are equally sensitive.

    That is its kind, and what its layer has in common with ``size`` neighbours, or without ``size`` with all
    others (:func:`alike_layers`).
    """
    layer = layer_of(name)
    return kind_of(name), None if layer is None else alike_layers(layer, n_layer, size)


def is_quantizable(
    name: str, shape: tuple[int, ...], architecture: str, *, leave_output_tensor: bool = False
) -> bool:
    """Return whether recipes quantize this tensor; otherwise it keeps its type.

    ``shape`` has the row length first. Recipes quantize weights with two or more dimensions, not counting
    trailing dimensions of 1. They leave out tensors without elements, the names of :data:`KEPT`,
    :data:`KEPT_NAMES` and :data:`KEPT_BY_ARCHITECTURE`, and the output matrix if ``leave_output_tensor``.
    """
    parts = KEPT + KEPT_BY_ARCHITECTURE.get(architecture, ())
    return (
        all(shape)
        and any(n > 1 for n in shape[1:])
        and name.endswith("weight")
        and name not in KEPT_NAMES
        and not any(part in name for part in parts)
        and not (leave_output_tensor and name == OUTPUT)
    )


def processing_order(name: str) -> tuple[int, str]:
    """Return a sort key: tensors in this order are in the order in which llama-quantize writes them.

    Tensors outside the layers come first, then the layers in order; each group is sorted by name. A tensor is
    inside a layer if its name begins with ``blk.``.
    """
    layer = layer_of(name) if name.startswith("blk.") else None
    return (-1 if layer is None else layer, name)
