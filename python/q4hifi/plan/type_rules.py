"""Chooses the type of every tensor by recipe, role, layer and model, without reading weights.

The rules are those of llama-quantize. It decides tensor by tensor, in the order in which it writes them, and
its rules for attn_v and ffn_down count the tensors of the role that came before. :func:`choose_types` does
the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, prod

from ..errors import BadOptionError, UnsupportedModelError
from ..formats.layout import MAX_NAME_BYTES, Format
from ..formats.tensor_names import ATTN_V_LIKE, VOCABULARY_ROLES, is_tied, layer_of, role_of
from ..formats.types import F16, MAX_OUTLIERS, Q4_HIFI, TYPES, TensorType, tensor_type
from ..wording import counted, some
from .model_shape import ModelShape
from .options import TypeOptions
from .recipes import Bumps
from .tensor_rules import SourceTensor, TensorRules

Q3_K, Q4_K, Q5_K, Q6_K = (TYPES[f"Q{bits}_K"] for bits in (3, 4, 5, 6))
Q4_0, Q5_0, Q5_1, Q8_0, IQ4_NL = (TYPES[name] for name in ("Q4_0", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"))

FALLBACK: Mapping[TensorType, TensorType] = {
    **dict.fromkeys((TYPES[name] for name in ("Q2_K", "Q3_K", "TQ1_0", "TQ2_0")), Q4_0),
    Q4_K: Q5_0,
    Q4_HIFI: Q5_0,
    Q5_K: Q5_1,
    Q6_K: Q8_0,
    **dict.fromkeys((kind for name, kind in TYPES.items() if name.startswith("IQ")), IQ4_NL),
}
"""Type -> its replacement in rows that do not consist of whole blocks; F16 if that does not fit either."""

LAYERED = ATTN_V_LIKE | {"ffn_down"}
"""Roles whose type may depend on the layer."""

EXTRA_LAYERS: Mapping[str, int] = {"graniteswitch": 1}
"""Architecture -> layers that llama.cpp counts in addition to ``block_count``."""

AT_LEAST_Q8_0: Mapping[str, tuple[str, ...]] = {
    "glm5-next": ("attn_q_a", "attn_q_b", "nextn.eh_proj"),
    "muse-spark": ("attn_gate", "ffn_latent_down", "ffn_latent_up"),
}
"""Architecture -> parts of names; a matrix whose name contains one of them takes Q8_0 in every mix."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The type chosen for a tensor; ``outliers`` (per block) is 0 except for Q4_HIFI.

    ``fallback_from`` is the type that the recipe or the user wanted, where the tensor cannot have it: its row
    length is not a multiple of the block size, or its name is too long for Q4_HIFI. It is None elsewhere.
    """

    type: TensorType
    outliers: int = 0
    fallback_from: TensorType | None = None


def choose_types(
    tensors: Iterable[SourceTensor], model: ModelShape, options: TypeOptions, *, has_imatrix: bool = False
) -> list[Choice]:
    """Choose the type of every tensor. ``tensors`` must be in the order in which they will be written.

    Raises :class:`UnsupportedModelError` where the recipe depends on the number of layers and the metadata
    lack it, and with ``options.no_fallback`` where a tensor cannot have its type. Raises
    :class:`BadOptionError` where a tensor would need a type that cannot be encoded, or where its rows do not
    fit the type that an option names for it alone.
    """
    tensors = list(tensors)
    chooser = _Chooser(tensors, model, options, has_imatrix)
    choices = [chooser.choose(tensor) for tensor in tensors]
    if options.no_fallback:
        _refuse_fallbacks(tensors, choices)
    return choices


def open_tensors(
    tensors: Iterable[SourceTensor], model: ModelShape, options: TypeOptions
) -> dict[str, SourceTensor]:
    """Return, by name, the tensors whose type neither an option nor a rule for all mixes decides."""
    tensors = list(tensors)
    chooser = _Chooser(tensors, model, options, False)
    return {t.name: t for t in tensors if chooser.is_open(t)}


def name_rules_out_hifi(name: str, layout: str) -> bool:
    """Return whether a tensor of this name cannot be Q4_HIFI: its companions' names would be too long."""
    return not Format(Q4_HIFI, MAX_OUTLIERS, layout).can_name(name)


class _Chooser:
    """Chooses types in one pass over a model. It counts the tensors of some roles on the way."""

    def __init__(
        self, tensors: Sequence[SourceTensor], model: ModelShape, options: TypeOptions, has_imatrix: bool
    ) -> None:
        self.model, self.options, self.recipe = model, options, options.recipe
        self.has_imatrix = has_imatrix
        roles = Counter(role_of(t.name) for t in tensors)
        _check_facts(model, options, has_imatrix, roles)
        self.size_class = options.size_class(sum(prod(t.shape) for t in tensors))
        self.rules = TensorRules(options, model.architecture)
        self.tied = is_tied({t.name for t in tensors})
        self.n_attn_v = sum(roles[role] for role in ATTN_V_LIKE)
        self.n_layer = model.n_layer or 0
        self.n_ffn_down = self.n_layer + EXTRA_LAYERS.get(model.architecture, 0)
        self.seen: Counter[str] = Counter()

    def choose(self, tensor: SourceTensor) -> Choice:
        kept = Choice(tensor.format.type, tensor.format.outliers)
        if self.recipe.default is None or not self._is_quantizable(tensor):
            return kept
        name, shape, role = tensor.name, tensor.shape, role_of(tensor.name)
        wanted = self.rules.type_of(tensor) or self._mixed(name, role, self.recipe.default)
        if wanted == tensor.format.type and (wanted != Q4_HIFI or self.options.outliers is None):
            return kept
        outliers = 0
        if wanted == Q4_HIFI:
            outliers = min(self.size_class.outliers * (2 if role in VOCABULARY_ROLES else 1), MAX_OUTLIERS)
            wanted = Q4_HIFI if outliers else Q4_K
        fitting = _fit(wanted, shape[0])
        option = self.rules.option_of(name)
        if fitting != wanted and (option or not _has_fallback(wanted)):
            raise BadOptionError(
                f"tensor {name} has rows of {shape[0]} weights, and {wanted} has blocks of"
                f" {wanted.block_size}; name another type for it, such as {fitting}"
                + (f", with `{option}`" if option else "")
            )
        if not fitting.codec:
            raise BadOptionError(
                f"tensor {name} is {tensor.format.type} and was to become {wanted}, which q4hifi cannot"
                f" encode: only tensors that are {wanted} already can keep it; name another type for this"
                " tensor"
            )
        if fitting == Q4_HIFI and name_rules_out_hifi(name, self.options.layout):
            fitting = Q4_K
        if fitting == wanted:
            return Choice(wanted, outliers)
        return Choice(fitting, fallback_from=wanted)

    def is_open(self, tensor: SourceTensor) -> bool:
        name = tensor.name
        return (
            self.rules.is_quantizable(tensor)
            and self.rules.type_of(tensor) is None
            and not self._is_at_least_q8_0(name)
            and not (self.options.output_tensor_type is not None and self._is_output(role_of(name)))
        )

    def _is_quantizable(self, tensor: SourceTensor) -> bool:
        return not self.model.adapter and self.rules.is_quantizable(tensor)

    def _is_at_least_q8_0(self, name: str) -> bool:
        return any(part in name for part in AT_LEAST_Q8_0.get(self.model.architecture, ()))

    def _mixed(self, name: str, role: str, default: TensorType) -> TensorType:
        """Return the type that the recipe's mix gives to a tensor."""
        model = self.model
        if not default.quantized or self.options.pure:
            return default
        if self._is_at_least_q8_0(name):
            return Q8_0
        if self._is_output(role):
            return self._output(default)
        if default == Q4_HIFI:
            return self._hifi(role, layer_of(name))
        if role in ATTN_V_LIKE:
            return self._attn_v(default)
        if role == "ffn_down":
            return self._ffn_down(name, default)
        if model.n_expert == 8 and role == "attn_k":
            return Q8_0
        if role == "attn_output":
            return self._attn_output() or default
        return default

    def _is_output(self, role: str) -> bool:
        """Whether matrices of a role compute the logits."""
        return role == "output" or (role == "token_embd" and self.tied)

    def _output(self, default: TensorType) -> TensorType:
        if self.options.output_tensor_type is not None:
            return tensor_type(self.options.output_tensor_type, codec=False)
        falcon = self.model.architecture == "falcon" and default != Q4_HIFI
        return Q8_0 if falcon or default == Q8_0 else Q6_K

    def _hifi(self, role: str, layer: int | None) -> TensorType:
        if self.options.stock:
            return Q4_K
        covered = (role in ATTN_V_LIKE and self._covers(self.size_class.attn_v_coverage, layer)) or (
            role == "ffn_down" and self._covers(self.size_class.ffn_down_coverage, layer)
        )
        return Q4_HIFI if covered else Q4_K

    def _covers(self, coverage: float, layer: int | None) -> bool:
        # the small addend corrects rounding errors: 0.29 of 100 layers is 29, but the product is 28.999...
        limit = floor(self.n_layer * coverage + 1e-9)
        return coverage >= 1 or (layer is not None and layer < limit)

    def _attn_v(self, default: TensorType) -> TensorType:
        chosen = _bump(self.recipe.attn_v, self._count("attn_v"), self.n_attn_v, default)
        if self.model.heads_a_value >= 4:
            chosen = self.recipe.attn_v_grouped or chosen
        if self.model.n_expert == 8:
            return Q8_0
        return Q5_K if self.model.is_70b and chosen in (Q3_K, Q4_K) else chosen

    def _attn_output(self) -> TensorType | None:
        recipe = self.recipe
        if self.model.architecture == "falcon":
            return recipe.attn_output_falcon
        return recipe.attn_output_of_8_experts if self.model.n_expert == 8 else recipe.attn_output

    def _ffn_down(self, name: str, default: TensorType) -> TensorType:
        i = self._count("ffn_down")
        if self.model.n_expert > 1:  # a layer may have several tensors, so the count is not the layer
            layer = layer_of(name)
            i = i if layer is None else layer
        by_imatrix = self.recipe.ffn_down_imatrix if self.has_imatrix else self.recipe.ffn_down_plain
        bumps = self.recipe.ffn_down + by_imatrix
        if self.model.architecture == "falcon" and self.recipe.ffn_down_falcon is not None:
            bumps = self.recipe.ffn_down_falcon
        return _bump(bumps, i, self.n_ffn_down, default)

    def _count(self, role: str) -> int:
        """Return the number of earlier tensors of this role, and count this one."""
        self.seen[role] += 1
        return self.seen[role] - 1


def _check_facts(model: ModelShape, options: TypeOptions, has_imatrix: bool, roles: Collection[str]) -> None:
    """Raise :class:`UnsupportedModelError` where the recipe's mix needs a fact that the metadata lack.

    ``roles`` are those of the model's tensors. Models without layers, such as those of diffusion, have no
    tensor for which a recipe counts the layers.
    """
    recipe = options.recipe
    if recipe.default is None or not recipe.default.quantized or options.pure:
        return
    by_layer = recipe.chooses_by_layer(has_imatrix)
    if model.adapter and by_layer:
        raise UnsupportedModelError(
            "this is an adapter, whose matrices no recipe changes; use COPY, or make it again in another type"
        )
    if model.fault and not model.adapter:
        raise UnsupportedModelError(f"{model.fault}; use `pure=True` or F16, which do not need it")
    if model.n_layer is None and by_layer and not LAYERED.isdisjoint(roles):
        missing = f"{model.architecture}.block_count is missing"
        if not model.architecture:
            missing = "general.architecture is missing, and so block_count is missing"
        raise UnsupportedModelError(f"{missing}, {recipe.name} chooses by layers; use `pure=True` or Q8_0")


def _bump(bumps: Bumps, i: int, n: int, default: TensorType) -> TensorType:
    return next((kind for applies, kind in bumps if applies(i, n)), default)


def _has_fallback(kind: TensorType) -> bool:
    """Whether llama-quantize has another type for rows that this type does not fit."""
    return kind in FALLBACK or kind.block_size <= Q8_0.block_size


def _fit(wanted: TensorType, row_length: int) -> TensorType:
    """Return ``wanted`` if rows of this length can have it, else its fallback, else F16."""
    for kind in (wanted, FALLBACK.get(wanted, wanted)):
        if kind.divides(row_length):
            return kind
    return F16


def _refuse_fallbacks(tensors: Sequence[SourceTensor], choices: Sequence[Choice]) -> None:
    misfits = [
        f"{t.name} ({_misfit(t.shape[0], c.fallback_from)})"
        for t, c in zip(tensors, choices, strict=True)
        if c.fallback_from is not None
    ]
    if misfits:
        raise UnsupportedModelError(
            f"{counted(len(misfits), 'tensor does', 'tensors do')} not fit their type:"
            f" {some(misfits)}; drop `no_fallback`, or give them a type with `tensor_types=...`"
        )


def _misfit(row_length: int, wanted: TensorType) -> str:
    """Return why a tensor with rows of this length cannot have the type ``wanted``."""
    if not wanted.divides(row_length):
        return f"rows of {row_length}, {wanted} needs a multiple of {wanted.block_size}"
    return f"the names of {wanted}'s companions would have more than {MAX_NAME_BYTES} bytes"
