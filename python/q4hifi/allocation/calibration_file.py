"""Files of sensitivities, which ``q4hifi calibrate`` writes and ``--sensitivities`` reads.

JSON, one object::

    {"version": 1,
     "model": "...", "text": "...", "importance": "...", "n_ctx": 256, "group": 1,
     "matrices": {"blk.0.attn_v.weight": {"probe": "Q4_K", "error": 0.0049, "divergences": [[m, r], ...]}},
     "sensitivities": {"blk.0.attn_v.weight": 0.0172}}

``model``, ``text`` and ``importance`` are fingerprints. ``probe`` is the type that the matrix was quantized
to, and ``error`` its relative squared error then. ``m`` is the mean KL divergence from the reference model
over the second half of one chunk of ``n_ctx`` tokens, and ``r`` the mean of its square roots. If ``group``
neighbouring layers were measured together, each matrix has its share of the divergence. ``sensitivities``
(divergence divided by error) is written once every matrix was measured on one chunk.

A file for ``--sensitivities`` may be written by hand. Then ``sensitivities`` is enough.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

from ..errors import BadFileError, BadOptionError
from ..evaluate.estimates import Estimate, mean_per_squared_root
from ..evaluate.scored_tokens import n_predictions
from ..files.file_kinds import SENSITIVITIES_NAME, Purpose
from ..files.json_file import read_json
from ..files.output_file import new_file
from ..formats.tensor_names import kind_of
from .sensitivities import Sensitivities

VERSION = 1

_ANOTHER = "name another file, or remove this one"
SENSITIVITIES = Purpose(
    SENSITIVITIES_NAME, "name a file that 'q4hifi calibrate' made", "make it again with 'q4hifi calibrate'"
)
CALIBRATION = Purpose(SENSITIVITIES_NAME, _ANOTHER, _ANOTHER)
"""A file in which a calibration goes on. Its name may be the default one."""

Divergences = tuple[tuple[float, float], ...]
"""For each chunk the mean divergence, and the mean of its square roots."""


LARGEST = 1e30
"""No sensitivity, error or divergence is larger. Squares of larger values would overflow."""


@dataclass(frozen=True, slots=True)
class Setting:
    """All that a measurement depends on; see the module."""

    model: str
    text: str
    importance: str | None
    n_ctx: int
    group: int

    def differences(self, other: Setting) -> Iterator[str]:
        """Yield in words what is different in ``other``."""
        if self.model != other.model:
            yield "another model"
        if self.text != other.text:
            yield "another text"
        if self.importance != other.importance:
            article = "no" if self.importance is None else "an" if other.importance is None else "another"
            yield f"{article} importance matrix" + " or part of it" * (article == "another")
        if self.n_ctx != other.n_ctx:
            yield f"{self.n_ctx} tokens per chunk, not {other.n_ctx}"
        if self.group != other.group:
            yield f"groups of {self.group} layers, not {other.group}"


@dataclass(frozen=True, slots=True)
class Measurement:
    """The ``divergences`` of a model in which one matrix has the type ``probe``, with this ``error``."""

    probe: str
    error: float
    divergences: Divergences = ()

    def means(self, n_chunks: int) -> tuple[float, float]:
        """Return the mean divergence over the first chunks, and the mean of its square roots."""
        means, roots = zip(*self.divergences[:n_chunks], strict=True)
        return sum(means) / n_chunks, sum(roots) / n_chunks


@dataclass(slots=True)
class Calibration:
    """The measurements that were made so far: name of a matrix -> :class:`Measurement`."""

    setting: Setting
    matrices: dict[str, Measurement] = field(default_factory=dict)

    def n_chunks(self, names: Sequence[str]) -> int:
        """Return the number of chunks that every one of these matrices was measured on."""
        known = [self.matrices.get(name) for name in names]
        return min((len(m.divergences) if m else 0 for m in known), default=0)

    @property
    def probes(self) -> dict[str, tuple[str, float]]:
        """Name of a matrix -> its probe type, and its relative squared error in it."""
        return _probes(self.matrices)

    def klds(self, names: Sequence[str]) -> dict[str, Estimate]:
        """Return the divergence of each matrix in its probe type; empty until all were measured on one chunk.

        It is estimated from the square roots (:func:`~q4hifi.evaluate.estimates.mean_per_squared_root`).
        """
        n_chunks = self.n_chunks(names)
        if not n_chunks:
            return {}
        means = {name: self.matrices[name].means(n_chunks) for name in names}
        factor = mean_per_squared_root(means.values())
        tokens = n_predictions(self.setting.n_ctx) * n_chunks

        def estimate(mean: float, root: float) -> Estimate:
            error = sqrt(max(0.0, mean - root**2) / max(1, tokens - 1))
            return Estimate(factor * root**2, 2 * factor * root * error)

        return {name: estimate(*pair) for name, pair in means.items()}

    def sensitivities(self, names: Sequence[str]) -> dict[str, Estimate]:
        """Return each matrix's divergence per unit of error; 0 if its probe type has no error."""
        errors = {name: matrix.error for name, matrix in self.matrices.items()}
        return {
            name: kld.scaled(1 / errors[name] if errors[name] else 0.0)
            for name, kld in self.klds(names).items()
        }

    def typical(self, names: Sequence[str], unused: Sequence[str]) -> dict[str, Estimate]:
        """Return sensitivities for matrices that the model does not use, as if they were like the others.

        They are the median of the measured matrices ``names`` of the same kind, or of all if there is none.
        The result is empty until all of these were measured on one chunk.
        """
        kinds: dict[str, list[Estimate]] = {}
        measured = self.sensitivities(names)
        for name, value in measured.items():
            kinds.setdefault(kind_of(name), []).append(value)
        return {
            name: sorted(alike, key=lambda estimate: estimate.value)[len(alike) // 2]
            for name in (unused if measured else ())
            for alike in [kinds.get(kind_of(name), [*measured.values()])]
        }

    def add(self, name: str, probe: str, error: float, mean: float, mean_root: float) -> None:
        """Add the divergence that a matrix caused on the next chunk."""
        before = self.matrices[name].divergences if name in self.matrices else ()
        self.matrices[name] = Measurement(probe, error, (*before, (mean, mean_root)))

    def save(self, path: str | os.PathLike[str], names: Sequence[str], unused: Sequence[str] = ()) -> None:
        """Write the file, in place of an older one.

        ``names`` are all matrices that the model uses, ``unused`` the others.
        """
        found = {
            "version": VERSION,
            **asdict(self.setting),
            "matrices": {name: asdict(matrix) for name, matrix in self.matrices.items()},
        }
        if sensitivities := {**self.sensitivities(names), **self.typical(names, unused)}:
            found["sensitivities"] = {name: value.value for name, value in sensitivities.items()}
        with new_file(path, overwrite=True) as file:
            file.write(json.dumps(found).encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read a file of measurements. Raises :class:`BadFileError` for any other file."""
        fault = f"is no calibration, or a damaged one; {_ANOTHER}"
        found = _read(path, CALIBRATION, fault, {"version", "matrices", *Setting.__dataclass_fields__})
        assert found.setting is not None  # its keys are required
        return cls(found.setting, found.matrices)

    @classmethod
    def resumed(cls, path: str | os.PathLike[str] | None, setting: Setting) -> Calibration:
        """Read the file if there is one, or begin without measurements.

        Raises :class:`BadOptionError` for a file of another setting.
        """
        if path is None or not Path(path).exists():
            return cls(setting)
        found = cls.load(path)
        if differences := list(found.setting.differences(setting)):
            usable = found.setting.model == setting.model
            raise BadOptionError(
                f"{path}: was measured with {', '.join(differences)}; remove or rename it to measure again"
                + ", or use it as it is, with 'q4hifi quantize --sensitivities'" * usable
            )
        return found


def load_sensitivities(path: str | os.PathLike[str]) -> Sensitivities:
    """Read the sensitivities in a file. Raises :class:`BadFileError` where it has none."""
    fault = 'holds no sensitivities, {"sensitivities": {"tensor name": number}} in JSON'
    found = _read(path, SENSITIVITIES, fault, {"sensitivities"})
    for name, value in found.sensitivities.items():
        if not 0 <= value <= LARGEST:
            raise BadFileError(
                f"{path}: the sensitivity of {name} is {value:g};"
                f" it must be at least 0 and at most {LARGEST:g}"
            )
    return Sensitivities(found.sensitivities, str(path), _probes(found.matrices))


@dataclass(frozen=True, slots=True)
class _Contents:
    """What a file has; all parts may be missing."""

    setting: Setting | None
    matrices: dict[str, Measurement]
    sensitivities: dict[str, float]


def _read(path: str | os.PathLike[str], purpose: Purpose, fault: str, required: set[str]) -> _Contents:
    """Read a file that has the ``required`` keys; ``fault`` is the message for another one."""

    def parse(found: Any) -> _Contents:
        if found.get("version", VERSION) != VERSION:
            raise BadFileError(
                f"{path}: a calibration of version {found['version']!r:.80}, and this q4hifi knows"
                f" {VERSION}; update it, or calibrate again into another file"
            )
        if missing := required - set(found):
            raise KeyError(missing)
        return _Contents(
            _setting(found) if "model" in found else None,
            {str(name): _measurement(value) for name, value in found.get("matrices", {}).items()},
            {str(name): float(value) for name, value in found.get("sensitivities", {}).items()},
        )

    return read_json(path, purpose, fault, parse)


def _probes(matrices: Mapping[str, Measurement]) -> dict[str, tuple[str, float]]:
    return {name: (matrix.probe, matrix.error) for name, matrix in matrices.items()}


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
    divergences = tuple((_figure(mean), _figure(root)) for mean, root in value.get("divergences", ()))
    return Measurement(str(value["probe"]), _figure(value["error"]), divergences)


def _figure(value: Any) -> float:
    """An error or a divergence. Measured ones have squares that a float can hold; others are damage."""
    number = float(value)
    if number != 0 and not 1 / LARGEST <= number <= LARGEST:
        raise ValueError(f"{number} was not measured")
    return number
