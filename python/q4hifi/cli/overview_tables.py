"""The tables of ``q4hifi inspect``: metadata and tensors of a model file."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..codec.overview import Overview, shown_value
from ..plan.mix_name import mix_name
from ..wording import counted, human_bytes, printable
from .tables import new_table, paragraphs, unbroken

SHOWN = 60
"""Longest part of a metadata value in the table, in characters."""


def overview_tables(overview: Overview, *, tensors: bool = False) -> RenderableType:
    """Return the tables that the command prints: metadata, and every tensor or the totals by type."""
    return paragraphs(
        [_metadata_table(overview)] if overview.metadata else [],
        [_tensor_table(overview) if tensors else _type_table(overview)],
        [
            *(unbroken(printable(path)) for path in overview.paths),
            Text(
                f"{mix_name(overview)}, {counted(overview.n_params, 'parameter', form=',')} in"
                f" {counted(len(overview.tensors), 'tensor')},"
                f" {human_bytes(overview.file_bytes)}, {overview.bits_per_weight:.3f} bits per weight"
            ),
        ],
    )


def _metadata_table(overview: Overview) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("key", no_wrap=True)
    table.add_column("value")
    for key in overview.metadata:
        text = printable(" ".join(str(shown_value(overview.metadata, key)).split()))
        shown = text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
        table.add_row(Text(printable(key)), Text(shown, no_wrap=True, overflow="ellipsis"))
    return table


def _tensor_table(overview: Overview) -> Table:
    table = new_table("tensor", "shape", "type", "outliers", "bytes", *["problem"] * bool(overview.problems))
    for t in overview.tensors:
        shape = " x ".join(map(str, t.shape)) or "single number"
        nbytes = "?" if t.nbytes is None else f"{t.nbytes:,}"
        problem = [Text(printable(t.problem))] * bool(overview.problems)
        table.add_row(Text(printable(t.name)), shape, t.type, str(t.outliers or ""), nbytes, *problem)
    return table


def _type_table(overview: Overview) -> Table:
    table = new_table("type", "tensors", "weights", "bytes")
    for kind in sorted({t.type for t in overview.tensors}):
        mine = [t for t in overview.tensors if t.type == kind]
        weights = sum(t.n_elements for t in mine)
        sizes = [t.nbytes for t in mine if t.nbytes is not None]
        table.add_row(kind, f"{len(mine)}", f"{weights:,}", human_bytes(sum(sizes)) if sizes else "?")
    return table
