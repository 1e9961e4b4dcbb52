"""The report of a quantization, as tables."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import RenderableType
from rich.text import Text

from ..pipeline.report import QuantizeReport
from ..wording import human_bytes, printable, some
from .plan_tables import notes, role_table, type_table
from .tables import new_table, paragraphs, unbroken, warning


def report_tables(report: QuantizeReport) -> RenderableType:
    """Return the tables that the command prints of a run."""
    return paragraphs(
        [type_table(report.plan)],
        [role_table(report.plan)] if report.plan.measured else [],
        _errors(report) if report.errors else [],
        [*notes(report.plan), *_importance_notes(report)],
        [
            Text(
                f"{human_bytes(report.source_bytes)} -> {human_bytes(report.file_bytes)}, "
                f"{report.plan.bits_per_weight:.3f} bits per weight, {report.seconds:.1f} s, "
                f"{report.weights_per_second / 1e6:.1f} million weights per second"
            ),
            *(unbroken(f"wrote {printable(path)}") for path in report.destination),
        ],
    )


def _errors(report: QuantizeReport) -> Iterable[RenderableType]:
    known, encoded = report.weighted_by_role
    every = known == encoded
    weighted = f", weighted by importance{'' if every else ' where it is known'}" if known else ""
    yield Text(f"squared error over squared weight{weighted}", style="italic")
    table = new_table("role", "relative error", *([] if every or not known else ["weighted"]))
    for role, sums in report.error_by_role.items():
        share = f"{known[role]} of {encoded[role]}"
        table.add_row(role, f"{sums.relative:.2e}", *([] if every or not known else [share]))
    yield table
    if any(t.requantized for t in report.plan.tensors):
        yield Text(
            "compared with the decoded weights of SRC; what was lost when SRC was quantized is not included"
        )


def _importance_notes(report: QuantizeReport) -> Iterable[Text]:
    if report.without_importance:
        yield warning(f"without importance: {some(map(printable, report.without_importance))}")
    if report.inactive_experts:
        count = sum(map(len, report.inactive_experts.values()))
        yield warning(
            f"experts that the imatrix's text never activated: {count},"
            f" of {some(map(printable, report.inactive_experts))}"
        )
