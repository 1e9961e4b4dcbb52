"""Plans: the type that every tensor of a model takes, and sizes that are exact to the byte.

Nothing here reads weights. A plan is what ``--dry-run`` shows, and what a real run then does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

from ..errors import UnsupportedModelError
from ..formats.gguf_constants import GGUF_DEFAULT_ALIGNMENT
from ..formats.layout import FILE_TYPE, FORK, MAX_NAME_BYTES, SPLIT, Format, StoredTensor, padded
from ..formats.tensor_names import ATTN_V_LIKE, is_tied, layer_of, processing_order, role_of
from ..formats.types import Q4_HIFI, TYPES, TensorType
from ..wording import counted, some
from .keep_rules import keep_rules
from .model_shape import ModelShape
from .options import TypeOptions
from .recipes import RECIPES
from .size_classes import SizeClass
from .tensor_rules import SourceTensor, TensorRules
from .type_rules import Choice, choose_types, name_rules_out_hifi


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """What one tensor becomes; ``shape`` has the row length first.

    ``fallback_from`` is the type that the recipe gives, if the tensor cannot take it: because of its row
    length, or for Q4_HIFI also because of its name.
    """

    name: str
    role: str
    layer: int | None
    shape: tuple[int, ...]
    source: Format
    target: Format
    fallback_from: TensorType | None = None

    @property
    def format(self) -> Format:
        """How its rows are stored in the source."""
        return self.source

    @property
    def source_type(self) -> TensorType:
        """The type in the source."""
        return self.source.type

    @property
    def type(self) -> TensorType:
        """The type that it takes."""
        return self.target.type

    @property
    def outliers(self) -> int:
        """Outliers per block; 0 except for Q4_HIFI."""
        return self.target.outliers

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        """The entries of the file's tensor table for it, in the order of writing."""
        return self.target.stored(self.name, self.shape)

    @property
    def n_elements(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of data in the file, with companions and without padding."""
        return sum(part.nbytes for part in self.stored)

    @property
    def has_long_name(self) -> bool:
        """Whether it fell back because of its name, and not because of its row length."""
        return self.fallback_from == Q4_HIFI and Q4_HIFI.divides(self.shape[0])

    @property
    def copied(self) -> bool:
        """Whether its bytes are copied unchanged."""
        return self.target == self.source

    @property
    def requantized(self) -> bool:
        """Whether an already quantized tensor changes its type, which loses quality."""
        return self.source_type.quantized and not self.copied

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        return {
            "name": self.name,
            "role": self.role,
            "layer": self.layer,
            "shape": list(self.shape),
            "source_type": self.source_type.name,
            "type": self.type.name,
            "outliers": self.outliers,
            "fallback_from": self.fallback_from and self.fallback_from.name,
            "bytes": self.nbytes,
        }


@dataclass(frozen=True, slots=True)
class TypeTotal:
    """The numbers of tensors, weights and bytes of one type in a plan."""

    tensors: int = 0
    weights: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """The budget and the prediction of a plan that measured errors decided.

    ``budget`` and ``used`` are bytes. ``predicted_kld`` is the KL divergence from the source in nats per
    token. It is an estimate: the sum, over all tensors, of the error in a sample of the rows times the
    sensitivity. ``gap`` is the share of it that another choice within the budget could save at most.
    ``sensitivities`` says where the sensitivities are from.
    """

    budget: int
    used: int
    predicted_kld: float
    gap: float
    sensitivities: str
    stock: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What a model file becomes; ``tensors`` are in the order of writing.

    ``recipe`` is the plan's title (:attr:`TypeOptions.title <q4hifi.plan.options.TypeOptions.title>`).
    ``file_type`` is the ``general.file_type`` to write, None to keep the source's. ``size_class`` is None if
    no tensor becomes Q4_HIFI, or all are copied. ``file_bytes`` is None if the header is not known.
    ``measured`` is None if a recipe decided, and not measured errors. ``warnings`` are sentences about what
    the user may not expect, and about rules without effect.
    """

    recipe: str
    layout: str
    file_type: int | None
    size_class: SizeClass | None
    tensors: tuple[PlannedTensor, ...]
    file_bytes: int | None = None
    measured: Measured | None = None
    warnings: tuple[str, ...] = ()

    @property
    def n_params(self) -> int:
        """Number of weights of all tensors."""
        return sum(t.n_elements for t in self.tensors)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of tensor data, without the header and without padding."""
        return sum(t.nbytes for t in self.tensors)

    def data_bytes(self, alignment: int = GGUF_DEFAULT_ALIGNMENT) -> int:
        """Return the bytes of the file's data section: every stored tensor padded to ``alignment``."""
        return sum(padded(part.nbytes, alignment) for t in self.tensors for part in t.stored)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data per weight, over the whole model."""
        return 8 * self.tensor_bytes / max(1, self.n_params)

    @property
    def token_bytes(self) -> int:
        """Bytes of weights that a dense model reads for every token, which limits its decoding speed.

        These are all tensors except the embeddings, of which a token needs one row. Tied embeddings are the
        output matrix as well, so they count.
        """
        tied = is_tied({t.name for t in self.tensors})
        return sum(t.nbytes for t in self.tensors if tied or t.role != "token_embd")

    @property
    def by_type(self) -> dict[str, TypeTotal]:
        """Type name -> totals, the type with the most bytes first."""
        totals: dict[str, TypeTotal] = {}
        for t in self.tensors:
            old = totals.get(t.type.name, TypeTotal())
            totals[t.type.name] = TypeTotal(old.tensors + 1, old.weights + t.n_elements, old.bytes + t.nbytes)
        return dict(sorted(totals.items(), key=lambda item: -item[1].bytes))

    @property
    def by_role(self) -> dict[str, dict[str, int]]:
        """Role -> name of a quantized type, with its outliers -> number of tensors."""
        roles: dict[str, dict[str, int]] = {}
        for t in self.tensors:
            if t.type.quantized:
                kind = f"{t.type} N={t.outliers}" if t.outliers else t.type.name
                kinds = roles.setdefault(t.role, {})
                kinds[kind] = kinds.get(kind, 0) + 1
        return roles

    @property
    def fallbacks(self) -> tuple[PlannedTensor, ...]:
        """The tensors that could not take the type that the recipe gives."""
        return tuple(t for t in self.tensors if t.fallback_from is not None)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON types."""
        return {
            "recipe": self.recipe,
            "layout": self.layout,
            "file_type": self.file_type,
            "size_class": self.size_class and asdict(self.size_class),
            "n_params": self.n_params,
            "tensor_bytes": self.tensor_bytes,
            "file_bytes": self.file_bytes,
            "bits_per_weight": self.bits_per_weight,
            "token_bytes": self.token_bytes,
            "fallbacks": len(self.fallbacks),
            "warnings": list(self.warnings),
            "measured": self.measured and asdict(self.measured),
            "by_type": {name: asdict(total) for name, total in self.by_type.items()},
            "tensors": [t.as_dict() for t in self.tensors],
        }


def make_plan(
    tensors: Iterable[SourceTensor],
    model: ModelShape,
    options: TypeOptions,
    *,
    has_imatrix: bool = False,
    keep_order: bool = False,
    chosen: Mapping[str, Choice] | None = None,
) -> Plan:
    """Plan what ``tensors`` become.

    The plan has llama-quantize's order of tensors, or with ``keep_order`` the given one. ``chosen`` maps the
    names of tensors to the choices of measured coverage, which replace those of the recipe.

    Raises :class:`UnsupportedModelError` if a tensor has a type that cannot be decoded and would change it,
    :class:`BadOptionError` if ``options.minimal`` does not fit the model, and the errors of
    :func:`~q4hifi.plan.type_rules.choose_types`.
    """
    sources = list(tensors) if keep_order else sorted(tensors, key=lambda t: processing_order(t.name))
    choices = choose_types(sources, model, options, has_imatrix=has_imatrix)
    if chosen is not None:
        choices = [
            replace(chosen[t.name], fallback_from=_ruled_out(t, choice, options))
            if t.name in chosen
            else choice
            for t, choice in zip(sources, choices, strict=True)
        ]
    planned = tuple(
        PlannedTensor(
            name=source.name,
            role=role_of(source.name),
            layer=layer_of(source.name),
            shape=source.shape,
            source=source.format,
            target=_target(source.format, choice, options.layout),
            fallback_from=choice.fallback_from,
        )
        for source, choice in zip(sources, choices, strict=True)
    )
    for tensor in planned:
        if not tensor.copied and not tensor.source_type.decodable:
            rules = keep_rules((t for t in planned if t.source_type == tensor.source_type), planned)
            raise UnsupportedModelError(
                f"tensor {tensor.name} is stored as {tensor.source_type}, which q4hifi cannot decode; "
                "start from the F32, F16 or BF16 model" + (f", or keep it with {rules}" if rules else "")
            )
    hifi = any(t.type == Q4_HIFI for t in planned)
    recipe = options.recipe
    file_type = None if model.adapter else recipe.file_type
    # programs recognize the fork layout by the file type, so one such tensor is enough
    if (recipe.default == Q4_HIFI and not model.adapter) or (hifi and options.layout == FORK):
        file_type = FILE_TYPE[options.layout]
    n_params = sum(t.n_elements for t in planned)
    idle = TensorRules(options, model.architecture).idle(sources)
    plan = Plan(
        options.title,
        options.layout,
        file_type,
        options.size_class(n_params) if hifi and recipe.default else None,
        planned,
        warnings=(*_warnings(planned, model, options), *map(str, idle)),
    )
    if chosen is None:
        return plan
    if hifi:
        return replace(plan, size_class=_spent(planned))
    return replace(plan, file_type=_file_type(plan))


def _ruled_out(tensor: SourceTensor, choice: Choice, options: TypeOptions) -> TensorType | None:
    """The type that a tensor of a measured plan cannot take because of its row length or its name."""
    if not Q4_HIFI.divides(tensor.shape[0]):
        return choice.fallback_from
    return Q4_HIFI if not options.stock and name_rules_out_hifi(tensor.name, options.layout) else None


def _warnings(tensors: Sequence[PlannedTensor], model: ModelShape, options: TypeOptions) -> Iterator[str]:
    if model.adapter and options.recipe.default is not None:
        yield (
            "this is an adapter, whose matrices no recipe changes:"
            f" all tensors are copied, and none becomes {options.recipe.name}"
        )
    long = [t for t in tensors if t.has_long_name]
    if long:
        kinds = ", ".join(sorted({t.type.name for t in long}))
        yield (
            f"{len(long)} of {counted(len(tensors), 'tensor')} cannot be Q4_HIFI, as the names of their"
            " companions"
            f" would have more than {MAX_NAME_BYTES} bytes, and took another type ({kinds}):"
            f" {some(t.name for t in long)}"
        )


def _spent(tensors: Sequence[PlannedTensor]) -> SizeClass:
    """What a measured plan spends, as a size class: the most outliers, and shares of the tensors."""

    def share(roles: Collection[str]) -> float:
        types = [t.type for t in tensors if t.role in roles]
        return types.count(Q4_HIFI) / max(1, len(types))

    return SizeClass(max(t.outliers for t in tensors), share(("ffn_down",)), share(ATTN_V_LIKE))


def _file_type(plan: Plan) -> int | None:
    """The file type of the first recipe whose main type is the type with the most bytes in the plan."""
    main = next((name for name in plan.by_type if TYPES[name].quantized), None)
    recipes = (r for r in RECIPES.values() if r.default is not None and r.default.name == main)
    return next((r.file_type for r in recipes), plan.file_type)


def _target(source: Format, choice: Choice, layout: str) -> Format:
    if (choice.type, choice.outliers) == (source.type, source.outliers):
        return source
    return Format(choice.type, choice.outliers, layout if choice.type == Q4_HIFI else SPLIT)
