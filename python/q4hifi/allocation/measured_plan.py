"""Measured coverage: mixed-precision allocation, for the least predicted divergence within a budget.

Every tensor whose type is open has candidates. The loss of a candidate is the divergence that it is predicted
to add: its relative error, measured on a sample of the rows, times the tensor's sensitivity
(:mod:`q4hifi.allocation.sensitivities`). :mod:`q4hifi.allocation.knapsack` chooses one candidate per tensor
so that the sum of the losses is least.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf, isfinite

from ..codec.model_file import ModelFile
from ..errors import BadOptionError, NotFiniteError
from ..formats.layout import Format, padded
from ..formats.tensor_names import role_of
from ..imatrix.importance import Importance
from ..plan.plan import Measured, Plan
from ..plan.type_rules import Choice, name_rules_out_hifi
from ..progress import Progress
from ..wording import counted, human_bytes
from . import knapsack
from .candidates import candidates
from .sampled_errors import SampledTensor, sampled_rows
from .sensitivities import Energy, Sensitivities

REFINED: Mapping[str, float] = {"IQ4_XS": 0.945, "Q4_K": 0.96, "Q5_K": 0.895, "Q6_K": 0.89, "Q4_HIFI": 0.905}
"""Refinable type -> error of refined blocks divided by that of ggml's encoder. It is nearly the same for
every tensor (``benches/refine.py``), so only ggml's encoder, which is faster, is measured."""

FED_BACK = 0.77
"""The weighted error eᵀ H e with error feedback, divided by that without. H is measured on another text than
the input correlations that the feedback uses. The figure is alike for all types of blocks and most matrices
of a model of 1.5 B (``benches/error_feedback.py``)."""


@dataclass(frozen=True, slots=True)
class TensorErrors:
    """The types that a tensor can take, and its relative squared error in each.

    ``energy`` and ``fisher`` are for :func:`~q4hifi.allocation.sensitivities.default_sensitivities`.
    ``has_feedback`` says whether error feedback will be used where the type allows it.
    """

    formats: tuple[Format, ...]
    errors: tuple[float, ...]
    energy: Energy | None
    fisher: float | None = None
    has_feedback: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """A type that a tensor can take: its bytes in the file with padding, and the divergence that it adds."""

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
    use_fisher: bool,
    stock: bool,
    layout: str,
    threads: int = 0,
    progress: Progress | None = None,
) -> dict[str, TensorErrors]:
    """Encode a sample of the rows of the tensors ``names`` in every type that they can take.

    With ``use_fisher`` the Fisher information is read as well, if the importance matrix has it. Raises the
    errors of reading and encoding.
    """
    tensors = [model.tensors[name] for name in names]
    weights = [sampled_rows(t.n_rows, t.row_length).size * t.row_length for t in tensors]
    done, found = 0, dict[str, TensorErrors]()
    for tensor, size in zip(tensors, weights, strict=True):
        plain = stock or name_rules_out_hifi(tensor.name, layout)
        formats = candidates(tensor.row_length, stock=plain, layout=layout)
        with model.errors_at(tensor.name):
            sampled = SampledTensor(model, tensor, importance, threads=threads)
            fisher = None
            if use_fisher and importance is not None:
                fisher = importance.fisher(tensor.name, tensor.row_length)
            found[tensor.name] = TensorErrors(
                formats,
                tuple(sampled.relative_errors(formats)),
                sampled.row_energy() if role_of(tensor.name) == "token_embd" else sampled.output_energy(),
                None if fisher is None else sampled.fisher_sensitivity(fisher),
                has_feedback=importance is not None and importance.is_correlated(tensor.name),
            )
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
    """Return the candidates of each tensor, with bytes and predicted divergence.

    ``refine`` says whether blocks will be refined. Raises :class:`BadOptionError` if a tensor has no
    sensitivity, and :class:`NotFiniteError` if no candidate can hold a tensor's weights.
    """
    unknown = [name for name in found if name not in sensitivities.values]
    if unknown:
        raise BadOptionError(
            f"{sensitivities.source}: has no sensitivity for {counted(len(unknown), 'tensor')}, such as"
            f" {unknown[0]};"
            f" use sensitivities of {model.paths[0]}"
        )
    menu = {}
    for name, measured in found.items():
        shape = model.tensors[name].shape
        sensitivity = sensitivities.values[name] * _sample_factor(measured, sensitivities.probes.get(name))
        menu[name] = [
            Candidate(
                Choice(form.type, form.outliers),
                _padded_bytes(form, shape, model.gguf.alignment),
                sensitivity * error * (_refined(form, measured.has_feedback) if refine else 1.0),
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


def _refined(form: Format, has_feedback: bool) -> float:
    """The error of refined blocks, with error feedback if possible, divided by that of ggml's encoder."""
    feedback = FED_BACK if has_feedback and form.takes_feedback else 1.0
    return REFINED.get(form.type.name, 1.0) * feedback


def _sample_factor(measured: TensorErrors, probe: tuple[str, float] | None) -> float:
    """The whole tensor's relative error in the probe type divided by the sample's; 1 without a probe.

    They differ if a few rows, which the sample may miss, have most of a tensor's magnitude.
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
    """Return the plan with the least predicted divergence whose ``size_of`` is at most ``budget`` bytes.

    ``plan_of`` makes a plan of choices by tensor name. Raises :class:`BadOptionError` if even the smallest
    candidates are too large, and says how large they are.
    """
    classes = [[(c.nbytes, c.loss) for c in options] for options in menu.values()]
    smallest = [min(range(len(item)), key=item.__getitem__) for item in classes]

    def planned(chosen: Sequence[int]) -> Plan:
        taken = zip(menu.items(), chosen, strict=True)
        return plan_of({name: options[number].choice for (name, options), number in taken})

    plan = planned(smallest)
    if size_of(plan) > budget:
        raise BadOptionError(_too_small(budget, size_of(plan), plan, menu))
    least = sum(item[number][0] for item, number in zip(classes, smallest, strict=True))
    room = least + budget - size_of(plan)
    while True:
        found = knapsack.solve(classes, max(least, room))
        assert found is not None  # there is always room for the smallest
        plan = planned(found.chosen)
        if size_of(plan) <= budget:
            break
        room -= size_of(plan) - budget  # outliers add tensors, and so bytes of the header
    return replace(
        plan, measured=Measured(budget, size_of(plan), found.loss, found.gap, sensitivities, stock)
    )


def _too_small(budget: int, smallest: int, plan: Plan, menu: Menu) -> str:
    """Return the message about a budget below the size of ``plan``, which has the smallest types."""
    bits = ceil(1000 * plan.bits_per_weight) / 1000
    remedy = "give at least that"
    if any(t.type.quantized and t.name not in menu for t in plan.tensors):
        remedy += ", or name smaller types in the options for single tensors"
    return (
        f"the budget is {budget} bytes, and the smallest that the types allow is {smallest}"
        f" ({human_bytes(smallest)}, {bits} bits per weight); {remedy}"
    )


def _padded_bytes(form: Format, shape: tuple[int, ...], alignment: int) -> int:
    return sum(padded(part.nbytes, alignment) for part in form.stored("", shape))
