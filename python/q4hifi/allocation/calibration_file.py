"""What was measured of a model's matrices, in a file that the work goes on from: :class:`Calibration`.

JSON, one object::

    {"version": 1,
     "model": "...", "text": "...", "importance": "...", "n_ctx": 256, "group": 1,
     "matrices": {"blk.0.attn_v.weight": {"probe": "Q4_K", "error": 0.0049, "divergences": [[m, r], ...]}},
     "sensitivities": {"blk.0.attn_v.weight": 0.0172}}

``model``, ``text`` and ``importance`` are fingerprints. ``error`` is the relative squared error of the
matrix as ``probe``; with it and all else as it was, the divergence from the untouched model had the mean
``m``, and its square root the mean ``r``, over the second half of each chunk of ``n_ctx`` tokens. Of
matrices that were measured together, ``group`` neighbouring layers, each has its part of it.
``sensitivities``, divergence over error, is there once every matrix has met a chunk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import sqrt
from pathlib import Path
from statistics import median
from typing import Any

from ..errors import BadFileError, BadOptionError
from ..evaluate.estimates import Estimate
from ..files.json_file import read_json
from ..files.output_file import new_file

VERSION = 1

Divergences = tuple[tuple[float, float], ...]
"""Mean, and mean of the square roots, of each chunk."""


def n_scored(n_ctx: int) -> int:
    """Return how many tokens of a chunk count, its last ones."""
    return n_ctx - n_ctx // 2


@dataclass(frozen=True, slots=True)
class Setting:
    """All that a measurement depends on; see the module."""

    model: str
    text: str
    importance: str | None
    n_ctx: int
    group: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a matrix does to a model: ``divergences`` with an ``error`` in it, made by the type ``probe``."""

    probe: str
    error: float
    divergences: Divergences

    def means(self, n_chunks: int) -> tuple[float, float]:
        """Mean divergence over the first chunks, and the mean of its roots."""
        means, roots = zip(*self.divergences[:n_chunks], strict=True)
        return sum(means) / n_chunks, sum(roots) / n_chunks


@dataclass(slots=True)
class Calibration:
    """Measurements of a model's matrices by name, as far as they have come."""

    setting: Setting
    matrices: dict[str, Measurement] = field(default_factory=dict)

    def n_chunks(self, names: Sequence[str]) -> int:
        """Chunks that all of these matrices have met: only they compare them fairly."""
        known = [self.matrices.get(name) for name in names]
        return min((len(m.divergences) if m else 0 for m in known), default=0)

    def klds(self, names: Sequence[str]) -> dict[str, Estimate]:
        """Return the divergence of each matrix as its probe; empty before all have met a chunk.

        Divergences have a long tail: at one token in a hundred a matrix may do more than at all others,
        and a mean over some hundred tokens is ruled by whether such a one was met. The mean of their
        roots is not. Its square is brought to a mean's size by a factor common to all matrices, the
        median of what it is for each.
        """
        n_chunks = self.n_chunks(names)
        if not n_chunks:
            return {}
        means = {name: self.matrices[name].means(n_chunks) for name in names}
        spread = median([mean / root**2 for mean, root in means.values() if root] or [1.0])
        tokens = n_scored(self.setting.n_ctx) * n_chunks

        def estimate(mean: float, root: float) -> Estimate:
            error = sqrt(max(0.0, mean - root**2) / max(1, tokens - 1))
            return Estimate(spread * root**2, 2 * spread * root * error)

        return {name: estimate(*pair) for name, pair in means.items()}

    def sensitivities(self, names: Sequence[str]) -> dict[str, Estimate]:
        """Return divergence per unit of error of each matrix, 0 for one that the probe holds exactly."""
        errors = {name: matrix.error for name, matrix in self.matrices.items()}
        return {
            name: kld.scaled(1 / errors[name] if errors[name] else 0.0)
            for name, kld in self.klds(names).items()
        }

    def add(self, name: str, probe: str, error: float, mean: float, mean_root: float) -> None:
        """Note what a matrix did to the next chunk."""
        before = self.matrices[name].divergences if name in self.matrices else ()
        self.matrices[name] = Measurement(probe, error, (*before, (mean, mean_root)))

    def save(self, path: str | os.PathLike[str], names: Sequence[str]) -> None:
        """Write the file, or let it take the place of the one before, of a model of these matrices."""
        found = {
            "version": VERSION,
            **asdict(self.setting),
            "matrices": {name: asdict(matrix) for name, matrix in self.matrices.items()},
        }
        if sensitivities := self.sensitivities(names):
            found["sensitivities"] = {name: value.value for name, value in sensitivities.items()}
        with new_file(path, overwrite=True) as file:
            file.write(json.dumps(found).encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read a file. Raises :class:`BadFileError` where it is something else."""

        def parse(found: Any) -> Calibration:
            if found["version"] != VERSION:
                raise BadFileError(
                    f"{path}: a calibration of version {found['version']!r:.80}, and this q4hifi knows"
                    f" {VERSION}; update it, or calibrate again into another file"
                )
            setting = _setting(found)
            return cls(setting, {str(name): _measurement(value) for name, value in found["matrices"].items()})

        return read_json(
            path, "the calibration", "is no calibration, or a damaged one; calibrate again", parse
        )

    @classmethod
    def resumed(cls, path: str | os.PathLike[str] | None, setting: Setting) -> Calibration:
        """Read the file if it is there, or begin.

        Raises :class:`BadOptionError` where it is of another setting.
        """
        if path is None or not Path(path).exists():
            return cls(setting)
        found = cls.load(path)
        old, new = asdict(found.setting), asdict(setting)
        if different := [key for key in new if old[key] != new[key]]:
            raise BadOptionError(
                f"{path}: measured with another {', '.join(different)}; name another file, or remove it"
            )
        return found


def _setting(found: Mapping[str, Any]) -> Setting:
    setting = Setting(**{key: found[key] for key in Setting.__dataclass_fields__})
    texts = (setting.model, setting.text, setting.importance or "")
    counts = (setting.n_ctx, setting.group)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a fingerprint is a text")
    if not all(isinstance(count, int) and 1 <= count < 1 << 31 for count in counts):
        raise ValueError("not a number of tokens, or of layers")
    return setting


def _measurement(value: Mapping[str, Any]) -> Measurement:
    divergences = tuple((_figure(mean), _figure(root)) for mean, root in value["divergences"])
    return Measurement(str(value["probe"]), _figure(value["error"]), divergences)


def _figure(value: Any) -> float:
    """An error or a divergence. None that was measured is so small or large that its square is lost."""
    number = float(value)
    if number != 0 and not 1e-30 <= number <= 1e30:
        raise ValueError(f"{number} was not measured")
    return number
