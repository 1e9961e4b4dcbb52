"""Results of measurements as text and tables. Labels and digits are llama.cpp's where it prints the same."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..allocation.calibrate import Calibrated
from ..evaluate.bench import Speed
from ..evaluate.comparison import ComparedModel, Comparison
from ..evaluate.estimates import Estimate
from ..evaluate.kl_divergence import KlDivergence
from ..evaluate.perplexity import Perplexity
from ..files.gguf_name import gguf_stem
from ..formats.tensor_names import role_of
from ..imatrix.statistics import TensorStatistics, layer_statistics
from ..wording import counted, human_bytes, printable
from .tables import paragraphs

NAME_WIDTH = 20
"""Width of the model names in the table of a comparison. Longer names continue on the next line."""

DIGITS = 5
"""Largest number of digits of a value above 1 in a table."""

COMPARISON_WIDTH = 100
"""Width of a terminal, in columns, in which a comparison fits in one table."""

COLUMN_WIDTH = 8
"""Width of a value in the table of a comparison, with the space before it, at most."""

_COMPARISON_HEADS = (
    *("size", "BPW", "PPL", "PPL\nratio", "mean\nKLD", "median\nKLD", "99.9 %\nKLD"),
    *("same\ntop %", "RMS\nΔp %", "read\nt/s", "write\nt/s"),
)

KLD_HEADER = (
    "chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence"
    "              Δp RMS            Same top p"
)


def running_perplexity(result: Perplexity) -> str:
    """Return the perplexity so far as llama-perplexity prints it: ``[3]35.9935,``."""
    return f"[{result.n_chunks}]{result.ppl.value:.4f},"


def final_perplexity(result: Perplexity) -> str:
    """Return the last line of llama-perplexity's output."""
    return f"Final estimate: PPL = {result.ppl.value:.4f} +/- {result.ppl.error:.5f}"


def running_divergence(result: KlDivergence) -> str:
    """Return the figures so far, as a row under :data:`KLD_HEADER`."""
    rms, top = result.rms_delta_p.scaled(100), result.same_top.scaled(100)
    cells = [
        f"{result.n_chunks:4}",
        f"{result.ppl.value:9.4f} ± {result.ppl.error:9.4f}",
        f"{result.ln_ppl_ratio.value:10.5f} ± {result.ln_ppl_ratio.error:10.5f}",
        f"{result.mean_kld.value:10.5f} ± {result.mean_kld.error:10.5f}",
        f"{rms.value:6.3f} ± {rms.error:6.3f} %",
        f"{top.value:6.3f} ± {top.error:6.3f} %",
    ]
    return "    ".join(cells)


def final_divergence(result: KlDivergence) -> str:
    """Return the statistics that llama-perplexity --kl-divergence prints at its end."""

    def ppl(label: str, e: Estimate) -> str:
        return f"{label:<30}: {e.value:10.6f} ± {e.error:10.6f}"

    def percent(label: str, e: Estimate) -> str:
        e = e.scaled(100)
        return f"{label:<10}: {e.value:6.3f} ± {e.error:5.3f} %"

    kld, delta = result.tokens.kld, result.tokens.delta_p
    lines = [
        "====== Perplexity statistics ======",
        ppl("Mean PPL(Q)", result.ppl),
        ppl("Mean PPL(base)", result.ppl_base),
        f"Cor(ln(PPL(Q)), ln(PPL(base))): {100 * result.correlation:6.2f}%",
        ppl("Mean ln(PPL(Q)/PPL(base))", result.ln_ppl_ratio),
        ppl("Mean PPL(Q)/PPL(base)", result.ppl_ratio),
        ppl("Mean PPL(Q)-PPL(base)", result.ppl_difference),
        "",
        "====== KL divergence statistics ======",
        f"Mean    KLD: {result.mean_kld.value:10.6f} ± {result.mean_kld.error:10.6f}",
        f"Maximum KLD: {kld.max():10.6f}",
        *(_kld_line(result, q) for q in (0.999, 0.99, 0.95, 0.9, 0.5, 0.1, 0.05, 0.01, 0.001)),
        f"Minimum KLD: {kld.min():10.6f}",
        "",
        "====== Token probability statistics ======",
        f"Mean    Δp: {100 * result.mean_delta_p.value:6.3f} ± {100 * result.mean_delta_p.error:5.3f} %",
        f"Maximum Δp: {100 * delta.max():6.3f}%",
        *(_delta_line(result, q) for q in (0.999, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 0.001)),
        f"Minimum Δp: {100 * delta.min():6.3f}%",
        percent("RMS Δp", result.rms_delta_p),
        percent("Same top p", result.same_top),
    ]
    return "\n".join(lines)


def _kld_line(result: KlDivergence, q: float) -> str:
    return f"{_quantile_label(q)} KLD: {result.kld_quantile(q).value:10.6f}"


def _delta_line(result: KlDivergence, q: float) -> str:
    return f"{_quantile_label(q)} Δp: {100 * result.delta_p_quantile(q).value:6.3f}%"


def _quantile_label(q: float) -> str:
    return "Median " if q == 0.5 else f"{100 * q:4.1f}%  "


def comparison_table(result: Comparison, width: int = COMPARISON_WIDTH) -> RenderableType:
    """Return the table of a comparison: one row per model, each value above its standard error.

    In a terminal narrower than :data:`COMPARISON_WIDTH`, there are several tables. In a wider one, names get
    the rest of the width.
    """
    everything = (result.reference, *result.models)
    names = short_names([m.model for m in everything])
    rows = [list(_comparison_row(model)) for model in everything]
    count = len(_COMPARISON_HEADS)
    at_once = count if width >= COMPARISON_WIDTH else max(1, min(6, (width - NAME_WIDTH) // COLUMN_WIDTH))
    parts = [slice(first, first + at_once) for first in range(0, count, at_once)]
    name_width = NAME_WIDTH + max(0, min(width - COMPARISON_WIDTH, max(map(len, names)) - NAME_WIDTH))
    tables: list[list[RenderableType]] = []
    for part in parts:
        table = Table(box=None, pad_edge=False, collapse_padding=True)
        table.add_column("model", width=name_width, overflow="fold")
        for head in _COMPARISON_HEADS[part]:
            table.add_column(head, justify="right", no_wrap=True)
        for name, row in zip(names, rows, strict=True):
            table.add_row(Text(printable(name)), *row[part])
        tables.append([table])
    chunks = counted(result.n_chunks, "chunk")
    if result.n_chunks < result.total_chunks:
        chunks = f"not complete: {result.n_chunks} of {counted(result.total_chunks, 'chunk')}"
    text = f"{chunks} of {result.n_ctx} tokens of {printable(result.dataset)}"
    legend = (
        "below each value its standard error; BPW: bits per weight;"
        " KLD: KL divergence from the first model, the reference, in nats"
    )
    return paragraphs(*tables, [Text(f"{text}; {legend}", style="italic")])


def _comparison_row(model: ComparedModel) -> Iterable[RenderableType]:
    quality = model.quality
    yield human_bytes(model.facts.file_bytes).replace(" ", "\n")
    yield f"{model.facts.bits_per_weight:.2f}"
    yield _cell(model.perplexity.ppl, 3)
    if quality is None:
        yield from [""] * 6
    else:
        yield _cell(quality.ppl_ratio, 4)
        yield _cell(quality.mean_kld, 5)
        yield _cell(quality.kld_quantile(0.5), 5)
        yield _cell(quality.kld_quantile(0.999), 4)
        yield _cell(quality.same_top.scaled(100), 2)
        yield _cell(quality.rms_delta_p.scaled(100), 2)
    yield _cell(model.prompt_speed, 1)
    yield _cell(model.decode_speed, 1)


def _cell(e: Estimate | None, digits: int) -> Text:
    """Return a value above its error, with at most ``digits`` digits after the point."""
    if e is None:
        return Text()
    digits = _digits(e.value, digits)
    return Text.assemble(f"{e.value:.{digits}f}\n", (f"±{e.error:.{digits}f}", "dim"))


def _digits(value: float, most: int) -> int:
    """Return the number of digits after the point: ``most``, but above 1 at most :data:`DIGITS` in total."""
    return most if abs(value) < 1 else min(most, max(0, DIGITS - len(f"{abs(value):.0f}")))


def short_names(paths: Sequence[str]) -> list[str]:
    """Return short, distinct names of models: without folder and ending if they differ without them."""
    names = [gguf_stem(Path(path).name) for path in paths]
    if len(set(names)) == len(names) or len(set(paths)) < len(paths):
        return names
    shared = os.path.commonpath([os.path.abspath(path) for path in paths])
    return [os.path.relpath(path, shared) for path in paths]


def speed_table(speeds: Iterable[Speed]) -> str:
    """Return the Markdown table that llama-bench prints."""
    columns = (
        *(("model", -30), ("size", 10), ("params", 10), ("backend", -10)),
        *(("threads", 7), ("test", 15), ("t/s", 20)),
    )

    def row(cells: Iterable[str]) -> str:
        padded = (
            cell.ljust(-width) if width < 0 else cell.rjust(width)
            for cell, (_, width) in zip(cells, columns, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    lines = [row(name for name, _ in columns)]
    lines.append(row((abs(width) - 1) * "-" + ("-" if width < 0 else ":") for _, width in columns))
    for s in speeds:
        rate = s.tokens_per_second
        params = f"{s.n_params / 1e6:.2f} M" if s.n_params < 1e9 else f"{s.n_params / 1e9:.2f} B"
        size = f"{s.n_bytes / 2**20:.2f} MiB" if s.n_bytes < 2**30 else f"{s.n_bytes / 2**30:.2f} GiB"
        cells = (printable(s.description), size, params, s.backend, str(s.n_threads), s.test)
        lines.append(row((*cells, f"{rate.value:.2f} ± {rate.error:.2f}")))
    return "\n".join(lines)


def importance_table(tensors: Sequence[TensorStatistics]) -> RenderableType:
    """Return the tables of llama-imatrix --show-statistics: tensors, layers; then the tokens of experts."""
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    heads = ("Σ(Act²)", "Min", "Max", "μ", "σ", "%\nActive", "N", "Entropy", "E\n(norm)", "ZD", "CosSim")
    for head in ("Layer", "Tensor", *heads):
        table.add_column(head, justify="left" if head == "Tensor" else "right", no_wrap=True)
    for t in tensors:
        table.add_row(
            "-" if t.layer is None else str(t.layer),
            Text(printable(t.part)),
            *(f"{x:.{_digits(x, most)}f}" for x, most in ((t.total, 2), (t.minimum, 4), (t.maximum, 4))),
            *(f"{x:.{_digits(x, 2)}f}" for x in (t.mean, t.deviation)),
            *(f"{100 * t.active:.2f}%", str(t.n_columns), f"{t.entropy:.4f}"),
            *(f"{100 * t.relative_entropy:.2f}%", f"{100 * t.outlying:.2f}%", f"{t.similarity:.4f}"),
        )
    layers = Table(box=None, pad_edge=False)
    for head in ("Layer", "μΣ(Act²)", "μZD", "μCosSim"):
        layers.add_column(head, justify="right")
    for layer in layer_statistics(tensors):
        cells = (f"{layer.total:.2f}", f"{100 * layer.outlying:.4f}%", f"{layer.similarity:.4f}")
        layers.add_row(str(layer.layer), *cells)
    experts = Table(box=None, pad_edge=False)
    for head in ("Layer", "Tensor", "Experts", "without tokens", "fewest tokens", "median", "most"):
        experts.add_column(head, justify="left" if head == "Tensor" else "right")
    for t in tensors:
        if (e := t.experts) is not None:
            figures = map(str, (e.n_experts, e.n_idle, e.fewest, e.median, e.most))
            experts.add_row("-" if t.layer is None else str(t.layer), Text(printable(t.part)), *figures)
    return paragraphs([table], [layers], [experts] if experts.row_count else [])


def calibration_table(result: Calibrated) -> RenderableType:
    """Return the results of ``q4hifi calibrate`` by tensor role.

    Each matrix was quantized to about 4 bits by itself. KLD is the sum of the KL divergences that this
    caused: an estimate of the divergence if all were. A sensitivity is divergence per relative squared error:
    the mean over the role's matrices, the lowest and the highest.
    """
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for head in ("role", "matrices", "KLD", "share", "sensitivity", "lowest", "highest"):
        table.add_column(head, justify="left" if head == "role" else "right", no_wrap=True)
    roles: dict[str, list[str]] = {}
    for name in result.sensitivities:
        roles.setdefault(role_of(name), []).append(name)
    total = sum(kld.value for kld in result.klds.values())
    for role, names in roles.items():
        kld = sum(result.klds[name].value for name in names)
        values = [result.sensitivities[name].value for name in names]
        table.add_row(
            *(role, str(len(names)), f"{kld:.5f}", f"{100 * kld / total if total else 0:.1f}%"),
            *(f"{sum(values) / len(values):.4f}", f"{min(values):.4f}", f"{max(values):.4f}"),
        )
    n = result.n_chunks
    read = f"{counted(n, 'chunk')} of {result.n_ctx} tokens"
    summary = f"estimated for all matrices at about 4 bits: KLD {total:.5f} nats per token; {read}"
    return paragraphs([table], [summary])
