"""The plot of a comparison: KL divergence against file size."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import BadOptionError
from ..evaluate.comparison import Comparison
from ..files.output_file import new_file
from ..wording import counted, printable
from .evaluation_tables import short_names

ENDINGS = (".png", ".svg", ".pdf")

LEAST_SPAN = 0.1
"""The horizontal axis spans at least this share of the largest file: files of one size appear as such."""

WIDE = 10
"""The scale is logarithmic if the largest divergence is more than this many times the smallest."""

FAR = 20
"""A label is connected to its dot by a line if it is more than this far above or below it, in points."""


def check_plot(path: str | os.PathLike[str]) -> None:
    """Check, before any work, that :func:`plot_comparison` can make the plot.

    Raises :class:`BadOptionError` if the ending of ``path`` is not supported or matplotlib is not installed.
    """
    if Path(path).suffix.lower() not in ENDINGS:
        raise BadOptionError(f"{path}: a plot's name must end in {', '.join(ENDINGS)}")
    _figure_class()


def plot_comparison(result: Comparison, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Draw the mean KL divergence of each model against its size, with standard errors.

    The format follows from the ending of ``path``: .png, .svg or .pdf. Raises :class:`BadOptionError` if
    matplotlib is not installed or the file cannot be written.
    """
    check_plot(path)
    figure = _figure_class()(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    largest = max((m.facts.file_bytes for m in result.models), default=1)
    unit, scale = ("GiB", 2**30) if largest >= 2**30 else ("MiB", 2**20)
    names = short_names([m.model for m in (result.reference, *result.models)])[1:]
    points = []
    for model, name in zip(result.models, names, strict=True):
        assert model.quality is not None  # only the reference has none
        kld = model.quality.mean_kld
        points.append((model.facts.file_bytes / scale, kld.value, printable(name)))
        axes.errorbar(*points[-1][:2], yerr=kld.error, fmt="o", color="#1f5fa8", ecolor="#9bb8d6", capsize=3)
    reference, dataset = (printable(Path(name).name) for name in (result.reference.model, result.dataset))
    axes.set_xlabel(f"file size, {unit}")
    axes.set_ylabel("mean KL divergence from the reference, nats")
    axes.set_title(
        f"{reference}: {counted(result.n_chunks, 'chunk')} of {result.n_ctx} tokens of {dataset}",
        fontsize=10,
        parse_math=False,
    )
    values = [kld for _, kld, _ in points]
    axes.margins(x=0.15, y=0.15)
    left, right = axes.get_xlim()
    if missing := max(0.0, LEAST_SPAN * right - (right - left)):
        axes.set_xlim(left - missing / 2, right + missing / 2)
    if max(values) > WIDE * min(values) > 0:
        axes.set_yscale("log", subs=(2, 5))
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which(lambda value, _: f"{value:g}")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    _label(figure, axes, points)
    models = [Path(model.model) for model in (result.reference, *result.models)]
    with new_file(path, overwrite=overwrite, sources=models) as file:
        figure.savefig(file, format=Path(path).suffix.lower().removeprefix("."))


def _label(figure: Any, axes: Any, points: list[tuple[float, float, str]]) -> None:
    """Write each model's name beside its dot, at the first position where it covers nothing else."""
    figure.draw_without_rendering()  # computes the layout
    renderer = figure.canvas.get_renderer()
    dots = axes.transData.transform([point[:2] for point in points])
    frame = axes.bbox
    taken: list[Any] = []
    sides = (
        *((9, 0, "left", "center"), (-9, 0, "right", "center")),
        *((0, 9, "center", "bottom"), (0, -9, "center", "top")),
        *((9, 12, "left", "bottom"), (-9, 12, "right", "bottom")),
        *((9, -12, "left", "top"), (-9, -12, "right", "top")),
        *((0, -24, "center", "top"), (0, 24, "center", "bottom")),
        *((9, -27, "left", "top"), (-9, -27, "right", "top")),
        *((9, 27, "left", "bottom"), (-9, 27, "right", "bottom")),
    )
    for x, y, name in points:
        for dx, dy, horizontal, vertical in sides:
            text = axes.annotate(
                name,
                (x, y),
                (dx, dy),
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                fontsize=9,
                parse_math=False,  # a $ in a name begins no formula
            )
            box = text.get_window_extent(renderer).padded(2)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not box.count_overlaps(taken) and not any(box.contains(*dot) for dot in dots):
                break
            if (dx, dy) != sides[-1][:2]:
                text.remove()
        if abs(dy) > FAR:
            line = {"arrowstyle": "-", "color": "#9bb8d6", "shrinkA": 0, "shrinkB": 4}
            axes.annotate("", (x, y), (dx, dy), textcoords="offset points", arrowprops=line)
        taken.append(box)


def _figure_class() -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as cause:
        raise BadOptionError(
            "plots need matplotlib, which is not installed: pip install matplotlib"
        ) from cause

    def figure(**options: Any) -> Any:
        return FigureCanvasAgg(Figure(**options)).figure

    return figure
