"""Measured coverage: every open tensor takes the format with which the whole is best within a budget.

Loss is predicted divergence: each candidate's relative error, measured on some rows, times the tensor's
sensitivity. :mod:`q4hifi.allocate` minimises its sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite

from .allocate import allocate
from .candidates import candidates
from .choice import Choice
from .errors import BadOptionError, NotFiniteError
from .importance import Importance
from .layout import Format
from .model_file import ModelFile
from .plan import Measured, Plan
from .rewrite import Progress
from .sensitivities import Sensitivities
from .tensor_errors import read_sample, relative_errors, sampled_rows


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a tensor could become: its bytes in the file, padding included, and the divergence it adds."""

    choice: Choice
    nbytes: int
    loss: float


Menu = Mapping[str, Sequence[Candidate]]
"""Name of an open tensor -> its candidates."""


def measure_menu(
    model: ModelFile,
    names: Sequence[str],
    sensitivities: Sensitivities,
    importance: Importance | None,
    *,
    stock: bool,
    layout: str,
    threads: int = 0,
    progress: Progress | None = None,
) -> Menu:
    """Measure the candidates of the tensors ``names``.

    Raises :class:`BadOptionError` where the sensitivities leave one out, and what reading and encoding
    raise.
    """
    unknown = [name for name in names if name not in sensitivities.values]
    if unknown:
        raise BadOptionError(
            f"{sensitivities.source}: says nothing of {len(unknown)} tensors, such as {unknown[0]};"
            f" use sensitivities of {model.paths[0]}"
        )
    tensors = [model.tensors[name] for name in names]
    weights = [sampled_rows(t.n_rows, t.row_length).size * t.row_length for t in tensors]
    done, menu = 0, dict[str, list[Candidate]]()
    for tensor, size in zip(tensors, weights, strict=True):
        formats = candidates(tensor.row_length, stock=stock, layout=layout)
        with model.errors_at(tensor.name):
            sample = read_sample(model, tensor)
            errors = relative_errors(tensor, sample, formats, importance, threads=threads)
        menu[tensor.name] = [
            Candidate(
                Choice(form.type, form.outliers),
                _padded_bytes(form, tensor.shape, model.gguf.alignment),
                sensitivities.values[tensor.name] * error,
            )
            for form, error in zip(formats, errors, strict=True)
            if isfinite(error)
        ]
        if not menu[tensor.name]:
            with model.errors_at(tensor.name):
                raise NotFiniteError("its weights are too large for every type; keep it with --tensor-type")
        done += size
        if progress is not None:
            progress(done, sum(weights), f"error of {tensor.name}")
    return menu


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
    return sum(-part.nbytes % alignment + part.nbytes for part in form.stored("", shape))
