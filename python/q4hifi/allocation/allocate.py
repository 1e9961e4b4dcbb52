"""Measured coverage: every open tensor takes the format with which the whole is best within a budget.

Loss is predicted divergence: each candidate's relative error, measured on some rows, times the tensor's
sensitivity. :mod:`q4hifi.allocation.knapsack` minimises its sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from types import MappingProxyType

from ..codec.model_file import ModelFile
from ..errors import BadOptionError, NotFiniteError
from ..formats.layout import Format, padded
from ..formats.tensor_names import role_of
from ..imatrix.file import Floats, Importance
from ..plan.plan import Measured, Plan
from ..plan.type_rules import Choice, name_rules_out_hifi
from ..progress import Progress
from .candidates import candidates
from .knapsack import allocate
from .sampled_errors import SampledTensor, sampled_rows
from .sensitivities import Energy, Sensitivities

REFINED: Mapping[str, float] = {"IQ4_XS": 0.945, "Q4_K": 0.96, "Q5_K": 0.895, "Q6_K": 0.89, "Q4_HIFI": 0.905}
"""What refinement leaves of a plain encoder's error, by type: nearly the same for every tensor
(``benches/refine.py``), so that the plain encoder's need be measured only."""

CANCELED = 0.77
"""What cancelling leaves of errors as they are felt, eᵀ H e, on another text, where inputs' correlations are
known: alike for all types of blocks and most matrices of a model of 1.5 B (``benches/cancel.py``)."""


@dataclass(frozen=True, slots=True)
class TensorErrors:
    """What a tensor could become, and the relative squared error of each.

    ``energy`` and ``fisher`` are what :func:`~q4hifi.allocation.sensitivities.default_sensitivities` asks
    for; ``cancels`` says whether the errors of types of blocks will be made to cancel.
    """

    formats: tuple[Format, ...]
    errors: tuple[float, ...]
    energy: Energy | None
    fisher: float | None = None
    cancels: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a tensor could become: its bytes in the file, padding included, and the divergence it adds."""

    choice: Choice
    nbytes: int
    loss: float


Menu = Mapping[str, Sequence[Candidate]]
"""Name of an open tensor -> its candidates."""


def measure_errors(
    model: ModelFile,
    names: Sequence[str],
    importance: Importance | None,
    *,
    fisher: Mapping[str, Floats] = MappingProxyType({}),
    stock: bool,
    layout: str,
    threads: int = 0,
    progress: Progress | None = None,
) -> dict[str, TensorErrors]:
    """Measure the candidates of the tensors ``names``; raises what reading and encoding raise."""
    tensors = [model.tensors[name] for name in names]
    weights = [sampled_rows(t.n_rows, t.row_length).size * t.row_length for t in tensors]
    done, found = 0, dict[str, TensorErrors]()
    for tensor, size in zip(tensors, weights, strict=True):
        plain = stock or name_rules_out_hifi(tensor.name, layout)
        formats = candidates(tensor.row_length, stock=plain, layout=layout)
        with model.errors_at(tensor.name):
            sampled = SampledTensor(model, tensor, importance, threads=threads)
            errors = sampled.relative_errors(formats)
            columns = fisher.get(tensor.name)
            felt = None if columns is None else sampled.fisher_sensitivity(columns)
            is_embeddings = role_of(tensor.name) == "token_embd"
            energy = sampled.row_energy() if is_embeddings else sampled.output_energy()
        cancels = importance is not None and importance.is_correlated(tensor.name)
        found[tensor.name] = TensorErrors(formats, tuple(errors), energy, felt, cancels)
        done += size
        if progress is not None:
            progress(done, sum(weights), f"error of {tensor.name}")
    return found


def make_menu(
    model: ModelFile,
    found: Mapping[str, TensorErrors],
    sensitivities: Sensitivities,
    *,
    refine: bool = False,
) -> Menu:
    """Price the candidates in bytes and predicted divergence; ``refine`` if they will be refined.

    Raises :class:`BadOptionError` where the sensitivities leave a tensor out, and
    :class:`NotFiniteError` where no candidate can hold a tensor's weights.
    """
    unknown = [name for name in found if name not in sensitivities.values]
    if unknown:
        raise BadOptionError(
            f"{sensitivities.source}: says nothing of {len(unknown)} tensors, such as {unknown[0]};"
            f" use sensitivities of {model.paths[0]}"
        )
    menu = {}
    for name, measured in found.items():
        shape = model.tensors[name].shape
        sensitivity = sensitivities.values[name] * _scale(measured, sensitivities.probes.get(name))
        menu[name] = [
            Candidate(
                Choice(form.type, form.outliers),
                _padded_bytes(form, shape, model.gguf.alignment),
                sensitivity * error * (_refined(form, measured.cancels) if refine else 1.0),
            )
            for form, error in zip(measured.formats, measured.errors, strict=True)
            if isfinite(error)
        ]
        if not menu[name]:
            with model.errors_at(name):
                raise NotFiniteError(
                    "its weights are too large for every type; keep it with `tensor_types=...`"
                )
    return menu


def _refined(form: Format, cancels: bool) -> float:
    """What refinement leaves of the plain encoder's error, as it is felt."""
    can_cancel = form.type.block_size > 1 and not form.is_fork
    return REFINED.get(form.type.name, 1.0) * (CANCELED if cancels and can_cancel else 1.0)


def _scale(measured: TensorErrors, probe: tuple[str, float] | None) -> float:
    """How much larger the whole tensor's error is than the sample's, by the type that was probed.

    A few rows may hold most of a tensor's magnitude, and so of what its errors are relative to.
    """
    if probe is None:
        return 1.0
    kind, whole = probe
    errors = {
        f.type.name: e for f, e in zip(measured.formats, measured.errors, strict=True) if not f.outliers
    }
    error = errors.get(kind, 0.0)
    return whole / error if 0 < error < inf else 1.0


def measured_plan(
    menu: Menu,
    budget: int,
    plan_of: Callable[[Mapping[str, Choice]], Plan],
    size_of: Callable[[Plan], int],
    *,
    sensitivities: str,
    stock: bool,
) -> Plan:
    """Return the plan with the least predicted divergence whose ``size_of`` is within ``budget``, in bytes.

    ``plan_of`` makes a plan of choices by tensor name. Raises :class:`BadOptionError` where even the
    cheapest candidates are too large, and says how large they are.
    """
    items = [[(c.nbytes, c.loss) for c in options] for options in menu.values()]
    cheapest = [min(range(len(item)), key=item.__getitem__) for item in items]

    def planned(chosen: Sequence[int]) -> Plan:
        taken = zip(menu.items(), chosen, strict=True)
        return plan_of({name: options[number].choice for (name, options), number in taken})

    plan = planned(cheapest)
    if size_of(plan) > budget:
        raise BadOptionError(
            f"the budget is {budget} bytes, and the smallest that the types allow is {size_of(plan)};"
            " give more, or choose a smaller type for what you named"
        )
    least = sum(item[number][0] for item, number in zip(items, cheapest, strict=True))
    room = least + budget - size_of(plan)
    while True:
        found = allocate(items, max(least, room))
        assert found is not None  # there is always room for the cheapest
        plan = planned(found.chosen)
        if size_of(plan) <= budget:
            break
        room -= size_of(plan) - budget  # the header has grown, by the companions of outliers
    return replace(
        plan, measured=Measured(budget, size_of(plan), found.loss, found.gap, sensitivities, stock)
    )


def _padded_bytes(form: Format, shape: tuple[int, ...], alignment: int) -> int:
    return sum(padded(part.nbytes, alignment) for part in form.stored("", shape))
