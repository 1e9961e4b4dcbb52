"""Plans as tables and notes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from ..formats.types import Q4_HIFI, STORED_TYPES
from ..pipeline.quantize_options import GUESSED
from ..plan.plan import Measured, Plan, PlannedTensor, TypeTotal
from ..wording import counted, human_bytes, human_count, printable, some
from .tables import new_table, warning

MOST_WARNINGS = 20
"""The number of a plan's warnings that are printed."""

LEAST_GAP = 0.00005
"""A smaller distance from the best choice is not mentioned: two decimals of a percent would show 0."""


def type_table(plan: Plan) -> Table:
    """Return a plan's totals by type."""
    table = new_table("type", "tensors", "weights", "bytes", "bits per weight", title=plan.recipe)
    whole = TypeTotal(len(plan.tensors), plan.n_params, plan.tensor_bytes)
    for name, total in {**plan.by_type, "all": whole}.items():
        bits = 8 * total.bytes / max(1, total.weights)
        table.add_row(name, f"{total.tensors}", f"{total.weights:,}", human_bytes(total.bytes), f"{bits:.3f}")
    return table


def tensor_table(plan: Plan) -> Table:
    """Return a plan's tensors, one per row."""
    table = new_table("tensor", "shape", "from", "to", "outliers", "bytes")
    for t in plan.tensors:
        shape = " x ".join(map(str, t.shape)) or "single number"
        name, outliers = Text(printable(t.name)), str(t.outliers or "")
        table.add_row(name, shape, t.source_type.name, t.type.name, outliers, f"{t.nbytes:,}")
    return table


def role_table(plan: Plan) -> Table:
    """Return how many tensors of each role took which type."""
    table = new_table("role", "types")
    table.columns[1].justify = "left"
    for role, kinds in plan.by_role.items():
        ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
        table.add_row(role, ", ".join(f"{count} {kind}" for kind, count in ordered))
    return table


def notes(plan: Plan) -> Iterable[Text]:
    """Yield lines about a plan: how types were chosen, which programs load the file, and warnings."""
    if plan.measured is not None:
        yield from map(Text, _estimate(plan.measured))
    elif plan.size_class is not None:
        yield Text(
            f"Q4_HIFI at {human_count(plan.n_params)} parameters:"
            f" {counted(plan.size_class.outliers, 'outlier')} per block,"
            f" attn_v of {plan.size_class.attn_v_coverage:.0%} and"
            f" ffn_down of {plan.size_class.ffn_down_coverage:.0%} of the layers"
        )
    n_hifi = sum(t.type == Q4_HIFI for t in plan.tensors)
    if n_hifi == 0 and plan.recipe == Q4_HIFI.name:
        yield Text("no tensor became Q4_HIFI: the file loads in llama.cpp as it is")
    if n_hifi and not any(t.target.is_fork for t in plan.tensors):
        yield Text(
            f"{counted(n_hifi, 'tensor is', 'tensors are')} Q4_HIFI: 'q4hifi export' makes a file that"
            " llama.cpp loads"
        )
    if any(t.target.is_fork for t in plan.tensors):
        yield warning(
            f"the fork layout is only for the llama.cpp branch where Q4_HIFI began: its type id {Q4_HIFI.id}"
            f" means {STORED_TYPES[Q4_HIFI.id]} to all other programs"
        )
    if misfits := [t for t in plan.fallbacks if not t.has_long_name]:
        yield warning(_misfits(plan, misfits))
    texts = [text for text in plan.warnings if text != GUESSED]  # which was printed before the work began
    for text in texts[:MOST_WARNINGS]:
        yield warning(printable(text))
    if len(texts) > MOST_WARNINGS:
        yield warning(f"{counted(len(texts) - MOST_WARNINGS, 'more warning')}; --json lists them all")


def _estimate(measured: Measured) -> Iterable[str]:
    """Yield what a choice of types by measured errors came to."""
    used, budget = human_bytes(measured.used), human_bytes(measured.budget)
    yield f"budget {budget}, used {used} ({measured.used / measured.budget:.2%})"
    yield (
        f"estimated KL divergence {measured.predicted_kld:.5f} nats per token: errors in a sample of the"
        f" weights times sensitivities, which are from {printable(measured.sensitivities)};"
        " 'q4hifi compare' measures it"
    )
    if measured.gap >= LEAST_GAP:
        yield f"the best types within the budget could have an estimate that is {measured.gap:.2%} lower"


def _misfits(plan: Plan, tensors: Sequence[PlannedTensor]) -> str:
    """Return which tensors could not have a type because of their row length, and what they became."""
    kinds = sorted({str(t.type) if plan.measured else f"{t.fallback_from} -> {t.type}" for t in tensors})
    took = "types with smaller blocks" if plan.measured else "another type"
    blocks = f"whole blocks of {Q4_HIFI.block_size}" if plan.measured else "whole blocks"
    lengths = some(map(str, sorted({t.shape[0] for t in tensors})))
    return (
        f"{len(tensors)} of {counted(len(plan.tensors), 'tensor')} took {took} ({', '.join(kinds)}), because"
        f" their rows (of {lengths} weights) do not consist of {blocks}:"
        f" {some(printable(t.name) for t in tensors)}"
    )
