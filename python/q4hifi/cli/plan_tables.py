"""Plans as tables and notes."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from ..formats.types import Q4_HIFI, STORED_TYPES
from ..plan.plan import Plan, TypeTotal
from ..wording import counted, human_bytes, human_count, printable
from .tables import new_table, some, warning

MOST_WARNINGS = 20
"""The number of a plan's warnings that are printed."""


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
        measured = plan.measured
        yield Text(
            f"measured coverage: {measured.used / measured.budget:.2%} of {human_bytes(measured.budget)} "
            f"used, predicted KL divergence {measured.predicted_kld:.5f} nats, at most {measured.gap:.2%} "
            f"above the best choice; sensitivities from {printable(measured.sensitivities)}"
        )
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
    misfits = [t for t in plan.fallbacks if not t.has_long_name]
    if misfits:
        kinds = sorted({f"{t.fallback_from} -> {t.type}" for t in misfits})
        names = some(t.name for t in misfits)
        yield warning(
            f"{len(misfits)} of {counted(len(plan.tensors), 'tensor')} have rows that do not fit their type"
            f" and took another ({', '.join(kinds)}): {names}"
        )
    for text in plan.warnings[:MOST_WARNINGS]:
        yield warning(printable(text))
    if len(plan.warnings) > MOST_WARNINGS:
        yield warning(f"{counted(len(plan.warnings) - MOST_WARNINGS, 'more warning')}; --json lists them all")
