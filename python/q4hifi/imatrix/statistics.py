"""Statistics of an importance matrix: the figures that llama-imatrix --show-statistics prints."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..formats.tensor_names import layer_of, split_at_layer
from .entries import Floats
from .sums import ColumnSums, ImportanceSums

ACTIVE = 1e-5
"""A column counts as active if its mean square is above this."""


@dataclass(frozen=True, slots=True)
class ExpertTokens:
    """How many tokens the experts of a tensor received: of ``n_experts``, ``n_idle`` received none.

    ``fewest``, ``median`` and ``most`` are the tokens of single experts.
    """

    n_experts: int
    n_idle: int
    fewest: int
    median: int
    most: int

    @classmethod
    def of(cls, counts: Floats) -> ExpertTokens | None:
        """Return the figures of token counts, one for each expert; None for a single count."""
        if counts.size == 1:
            return None
        n_idle = int((counts == 0).sum())
        return cls(counts.size, n_idle, *(int(f(counts)) for f in (np.min, np.median, np.max)))

    def as_dict(self) -> dict[str, int]:
        """Return the figures as plain JSON types."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class TensorStatistics:
    """Statistics of the mean squares of one tensor's input columns.

    ``part`` is the tensor's name without layer and ``.weight``; ``layer`` is None outside the layers. Columns
    of experts that received no token are left out. Of the remaining mean squares, ``total`` is the sum,
    ``mean``, ``minimum``, ``maximum`` and ``deviation`` (standard) are the usual figures. ``active`` is the
    share of columns above :data:`ACTIVE`, 0 to 1. ``entropy`` is the entropy, in bits, of the columns'
    shares of the total. ``outlying`` is the share of columns more than one standard deviation above the mean,
    0 to 1. ``similarity`` is the cosine similarity with the same tensor of the layer before, 0 if there is
    none. ``experts`` has the tokens of experts, None if the tensor has a single count.
    """

    name: str
    layer: int | None
    part: str
    n_columns: int
    total: float
    minimum: float
    maximum: float
    mean: float
    deviation: float
    active: float
    entropy: float
    outlying: float
    similarity: float
    experts: ExpertTokens | None

    @property
    def relative_entropy(self) -> float:
        """The entropy divided by its largest possible value, that of equal columns: 0 to 1."""
        return self.entropy / float(np.log2(self.n_columns)) if self.n_columns > 1 else 0.0

    @classmethod
    def of(cls, name: str, sums: ColumnSums, before: ColumnSums | None) -> TensorStatistics:
        """Compute the statistics of tensor ``name``. ``before`` is the same tensor of the layer before.

        At least one of the counts must be above 0.
        """
        x = sums.means[sums.counts > 0].reshape(-1).astype(np.float64)
        total, mean, deviation = float(x.sum()), float(x.mean()), float(x.std())
        shares = x[x > 0] / total if total > 0 else x[:0]
        return cls(
            name=name,
            layer=layer_of(name),
            part=name.removesuffix(".weight").rsplit(".", 1)[-1],
            n_columns=int(x.size),
            total=total,
            minimum=float(x.min()),
            maximum=float(x.max()),
            mean=mean,
            deviation=deviation,
            active=float((x > ACTIVE).mean()),
            entropy=float(-(shares * np.log2(shares)).sum()),
            outlying=float((x > mean + deviation).mean()) if deviation > 0 else 0.0,
            similarity=0.0 if before is None else _cosine(sums, before),
            experts=ExpertTokens.of(sums.counts),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the statistics as plain JSON types."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        return plain | {"experts": None if self.experts is None else self.experts.as_dict()}


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """Means over the tensors of one layer, weighted by their numbers of columns."""

    layer: int
    total: float
    outlying: float
    similarity: float


def tensor_statistics(sums: ImportanceSums) -> list[TensorStatistics]:
    """Return the statistics of all tensors with a count above 0, ordered by part, largest total first."""
    statistics = [
        TensorStatistics.of(name, s, sums.tensors.get(_name_before(name)))
        for name, s in sums.tensors.items()
        if s.counts.any()
    ]
    return sorted(statistics, key=lambda t: (t.part, -t.total))


def layer_statistics(tensors: Iterable[TensorStatistics]) -> list[LayerStatistics]:
    """Return the means of each layer, in the order of the layers."""
    layers: dict[int, list[TensorStatistics]] = {}
    for tensor in tensors:
        if tensor.layer is not None:
            layers.setdefault(tensor.layer, []).append(tensor)
    statistics = []
    for layer, members in sorted(layers.items()):
        weights = [t.n_columns for t in members]
        means = (
            float(np.average([getattr(t, name) for t in members], weights=weights))
            for name in ("total", "outlying", "similarity")
        )
        statistics.append(LayerStatistics(layer, *means))
    return statistics


def _name_before(name: str) -> str:
    """Return the name of the same tensor in the layer before; "" for a tensor outside the layers."""
    prefix, layer, rest = split_at_layer(name)
    return "" if layer is None else f"{prefix}blk.{layer - 1}{rest}"


def _cosine(a: ColumnSums, b: ColumnSums) -> float:
    x, y = (s.squares.reshape(-1).astype(np.float64) for s in (a, b))
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / norm if x.size == y.size and norm else 0.0
