"""Names x shapes x recipe -> Plan: what every tensor becomes, with sizes exact to the byte.

A plan reads no weights; it is what ``--dry-run`` shows and what a real run then does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

from ..errors import UnsupportedModelError
from ..formats.layout import FILE_TYPE, FORK, MAX_NAME_BYTES, SPLIT, Format, StoredTensor, padded
from ..formats.tensor_names import ATTN_V_LIKE, is_tied, layer_of, processing_order, role_of
from ..formats.types import Q4_HIFI, TYPES, TensorType
from .keep_rules import keep_rules
from .model_shape import ModelShape
from .options import Options
from .recipes import RECIPES
from .size_classes import Scale
from .tensor_rules import IdleRule, TensorRules
from .type_rules import Choice, SourceTensor, choose_types, name_rules_out_hifi


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """What one tensor becomes; ``shape`` has the row length first.

    ``fallback_from`` is the type that was wanted where the row length ruled it out, or Q4_HIFI the name.
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
        """The type it has."""
        return self.source.type

    @property
    def type(self) -> TensorType:
        """The type it takes."""
        return self.target.type

    @property
    def outliers(self) -> int:
        """Outliers a block; 0 except for Q4_HIFI."""
        return self.target.outliers

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        """What the file's table lists for it, in the order of writing."""
        return self.target.stored(self.name, self.shape)

    @property
    def n_elements(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of data in the file, companions included, padding not."""
        return sum(part.nbytes for part in self.stored)

    @property
    def has_long_name(self) -> bool:
        """Whether its name, and not its row length, ruled out the type that was wanted."""
        return self.fallback_from == Q4_HIFI and self.shape[0] % Q4_HIFI.block_size == 0

    @property
    def copied(self) -> bool:
        """Whether its bytes are carried over as they are."""
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
    """How many tensors, weights and bytes one type has in a plan."""

    tensors: int = 0
    weights: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """How measured coverage came to its plan.

    ``budget`` and ``used`` are bytes; ``predicted_kld`` is in nats, by the ``sensitivities`` named, and
    ``gap`` the share of it that another choice within the budget could save at most.
    """

    budget: int
    used: int
    predicted_kld: float
    gap: float
    sensitivities: str
    stock: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What a file becomes; ``tensors`` stand in the order of writing.

    ``recipe`` is its title: the name of a recipe, or where measured errors choose among stock types
    :attr:`Options.title <q4hifi.options.Options.title>`.

    ``file_type`` is the ``general.file_type`` to write, None to keep the source's. ``scale`` is
    None where no tensor becomes Q4_HIFI, or all are copied. ``file_bytes`` is known once the header is.
    ``measured`` is None where a recipe decided, not measured errors. ``idle_rules`` are the user's rules
    that decided nothing, ``warnings`` sentences about what the user may not expect.
    """

    recipe: str
    layout: str
    file_type: int | None
    scale: Scale | None
    tensors: tuple[PlannedTensor, ...]
    file_bytes: int | None = None
    measured: Measured | None = None
    idle_rules: tuple[IdleRule, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def n_params(self) -> int:
        """Number of weights of all tensors."""
        return sum(t.n_elements for t in self.tensors)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of tensor data, without header and padding."""
        return sum(t.nbytes for t in self.tensors)

    def data_bytes(self, alignment: int = 32) -> int:
        """Return the bytes of the file's data section: every stored tensor padded to ``alignment``."""
        return sum(padded(part.nbytes, alignment) for t in self.tensors for part in t.stored)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data a weight, over the whole model."""
        return 8 * self.tensor_bytes / max(1, self.n_params)

    @property
    def token_bytes(self) -> int:
        """Bytes of weights that are read for every token of a dense model: what bounds its decoding speed.

        All matrices but the embeddings, of which a token needs one row, unless they serve as output too.
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
        """Role -> name of a quantized type, with its outliers -> how many tensors."""
        roles: dict[str, dict[str, int]] = {}
        for t in self.tensors:
            if t.type.quantized:
                kind = f"{t.type} N={t.outliers}" if t.outliers else t.type.name
                kinds = roles.setdefault(t.role, {})
                kinds[kind] = kinds.get(kind, 0) + 1
        return roles

    @property
    def fallbacks(self) -> tuple[PlannedTensor, ...]:
        """The tensors that took another type than the recipe wanted, for their row length or their name."""
        return tuple(t for t in self.tensors if t.fallback_from is not None)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON types."""
        return {
            "recipe": self.recipe,
            "layout": self.layout,
            "file_type": self.file_type,
            "scale": self.scale and asdict(self.scale),
            "n_params": self.n_params,
            "tensor_bytes": self.tensor_bytes,
            "file_bytes": self.file_bytes,
            "bits_per_weight": self.bits_per_weight,
            "token_bytes": self.token_bytes,
            "fallbacks": len(self.fallbacks),
            "warnings": list(self.warnings),
            "measured": self.measured and asdict(self.measured),
            "idle_rules": [asdict(rule) for rule in self.idle_rules],
            "by_type": {name: asdict(total) for name, total in self.by_type.items()},
            "tensors": [t.as_dict() for t in self.tensors],
        }


def make_plan(
    tensors: Iterable[SourceTensor],
    model: ModelShape,
    options: Options,
    *,
    has_imatrix: bool = False,
    keep_order: bool = False,
    chosen: Mapping[str, Choice] | None = None,
) -> Plan:
    """Plan what ``tensors`` become, in llama-quantize's order, or in theirs with ``keep_order``.

    ``chosen`` has what measured coverage decided: tensor name -> choice, in place of the recipe's.

    Raises :class:`UnsupportedModelError` where a tensor would have to change from a type that
    cannot be decoded, and what :func:`~q4hifi.plan.type_rules.choose_types` raises; :class:`BadOptionError`
    where ``options.minimal`` does not fit the model.
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
    # the fork layout is known by its file type, so one such tensor is enough to need it
    if (recipe.default == Q4_HIFI and not model.adapter) or (hifi and options.layout == FORK):
        file_type = FILE_TYPE[options.layout]
    scale = options.scale(sum(t.n_elements for t in planned)) if hifi and recipe.default else None
    plan = Plan(
        options.title,
        options.layout,
        file_type,
        scale,
        planned,
        idle_rules=TensorRules(options, model.architecture).idle(sources),
        warnings=tuple(_warnings(planned, model, options)),
    )
    if chosen is None:
        return plan
    return replace(plan, scale=_scale(planned)) if hifi else replace(plan, file_type=_file_type(plan))


def _ruled_out(tensor: SourceTensor, choice: Choice, options: Options) -> TensorType | None:
    """The type that a tensor with measured errors could not take for its row length or its name."""
    if tensor.shape[0] % Q4_HIFI.block_size:
        return choice.fallback_from
    return Q4_HIFI if not options.stock and name_rules_out_hifi(tensor.name, options.layout) else None


def _warnings(tensors: Sequence[PlannedTensor], model: ModelShape, options: Options) -> Iterator[str]:
    if model.adapter and options.recipe.default is not None:
        yield (
            "this is an adapter, whose matrices no recipe changes:"
            f" all is copied, and nothing becomes {options.recipe.name}"
        )
    long = [t for t in tensors if t.has_long_name]
    if long:
        more = f" and {len(long) - 3} more" if len(long) > 3 else ""
        kinds = ", ".join(sorted({t.type.name for t in long}))
        yield (
            f"{len(long)} of {len(tensors)} tensors cannot be Q4_HIFI, as the names of their companions"
            f" would have more than {MAX_NAME_BYTES} bytes, and took another type ({kinds}):"
            f" {', '.join(t.name for t in long[:3])}{more}"
        )


def _scale(tensors: Sequence[PlannedTensor]) -> Scale:
    """What measured coverage spent, in the scale's terms: the most outliers, and shares of the layers."""

    def share(roles: Collection[str]) -> float:
        types = [t.type for t in tensors if t.role in roles]
        return types.count(Q4_HIFI) / max(1, len(types))

    return Scale(max(t.outliers for t in tensors), share(("ffn_down",)), share(ATTN_V_LIKE))


def _file_type(plan: Plan) -> int | None:
    """The file type of the first recipe that is mainly of the type that most bytes are of."""
    main = next((name for name in plan.by_type if TYPES[name].quantized), None)
    recipes = (r for r in RECIPES.values() if r.default is not None and r.default.name == main)
    return next((r.file_type for r in recipes), plan.file_type)


def _target(source: Format, choice: Choice, layout: str) -> Format:
    if (choice.type, choice.outliers) == (source.type, source.outliers):
        return source
    return Format(choice.type, choice.outliers, layout if choice.type == Q4_HIFI else SPLIT)
