"""The file in which a comparison keeps its measurements, so that it can be resumed.

It is a GGUF file without weights. The key ``q4hifi.comparison.run`` has the settings of the run
(:mod:`q4hifi.evaluate.resuming`): reference model, text, and chunks. ``q4hifi.comparison.models`` has the
fingerprint of each model, or :data:`REFERENCE`. ``q4hifi.comparison.chunks`` has the number of measured
chunks of each.

The model with index I has these tensors (:class:`q4hifi.evaluate.logits.Divergence`), with one value per
scored token: ``I.nll`` (F64) and, except for the reference, ``I.nll_base``, ``I.kld``, ``I.delta_p`` (F64)
and ``I.same_top`` (I8). ``I.rates`` (F64) has the reading speed in each chunk, in tokens per second, followed
by the seconds of all chunks together.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BadFileError
from ..files.file_kinds import Purpose
from ..formats.gguf_constants import GGUFValueType
from ..formats.layout import StoredTensor
from ..formats.types import TYPES
from ..gguf_io.contents import COMPARISON_KEYS, COMPARISON_NAME, contents_of
from ..gguf_io.metadata import Metadata
from ..gguf_io.reader import GgufFile
from ..gguf_io.writer import GgufWriter
from .logits import Divergence, Doubles, are_possible
from .resuming import ANOTHER_FILE, START_AGAIN, Settings, check_same, decode_settings, encode_settings

KEY_RUN, KEY_MODELS, KEY_CHUNKS = (f"{COMPARISON_KEYS}{name}" for name in ("run", "models", "chunks"))

PURPOSE = Purpose(COMPARISON_NAME, ANOTHER_FILE, START_AGAIN)

REFERENCE = "reference"

BYTES_PER_TOKEN = 33
"""File size per scored token: four float64 and a byte."""

_TYPES = {"same_top": TYPES["I8"]}
_F64 = TYPES["F64"]


@dataclass(slots=True)
class Figures:
    """The measurements of one model, chunk by chunk.

    ``nll`` has -log of the probability of the scored tokens of each chunk, ``divergences`` how their
    predictions differ from the reference's (empty for the reference itself). ``prompt_rates`` has the reading
    speed in each chunk, in tokens per second. ``seconds`` is the time of all chunks together.
    """

    nll: list[Doubles] = field(default_factory=list)
    divergences: list[Divergence] = field(default_factory=list)
    prompt_rates: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def n_chunks(self) -> int:
        """Number of measured chunks."""
        return len(self.nll)

    def copy(self) -> Figures:
        """Return a copy. Chunks that are added to it do not change the original."""
        return Figures([*self.nll], [*self.divergences], [*self.prompt_rates], self.seconds)


def write_comparison(
    path: str | os.PathLike[str],
    settings: Settings,
    figures: Mapping[str, Figures],
    *,
    overwrite: bool = False,
    sources: Sequence[Path] = (),
) -> None:
    """Write the measurements of all models to a file.

    ``figures`` maps the models' fingerprints, or :data:`REFERENCE`, to their measurements. ``settings``
    are those of the run. ``overwrite`` allows an existing file to be replaced, but never
    one of ``sources``. Raises :class:`BadOptionError` if ``path`` cannot be used.
    """
    pairs = Metadata().with_value(KEY_RUN, encode_settings(settings), GGUFValueType.STRING)
    pairs = pairs.with_value(KEY_MODELS, list(figures), GGUFValueType.STRING)
    chunks = [measured.n_chunks for measured in figures.values()]
    pairs = pairs.with_value(KEY_CHUNKS, chunks, GGUFValueType.UINT32)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for i, measured in enumerate(figures.values()):
        if measured.n_chunks:
            arrays[f"{i}.rates"] = np.array([*measured.prompt_rates, measured.seconds])
            arrays[f"{i}.nll"] = np.concatenate(measured.nll)
        if parts := measured.divergences[: measured.n_chunks]:
            columns = Divergence.joined(parts)._asdict()
            arrays |= {f"{i}.{name}": values for name, values in columns.items()}
    stored = [
        StoredTensor(name, (values.size,), _TYPES.get(name.partition(".")[2], _F64))
        for name, values in arrays.items()
    ]
    with GgufWriter(path, pairs, stored, overwrite=overwrite, sources=sources) as writer:
        for name, values in arrays.items():
            writer.write_at(name, 0, values.astype("|i1" if values.dtype == np.bool_ else "<f8"))
        writer.commit()


def read_comparison(path: str | os.PathLike[str], settings: Settings, n_scored: int) -> dict[str, Figures]:
    """Read the measurements of a file: the model's fingerprint, or :data:`REFERENCE` -> measurements.

    ``settings`` are those of this run. ``n_scored`` is the number of scored tokens per chunk. Raises
    :class:`BadFileError` if the file is damaged or is no comparison, and :class:`BadOptionError` if it was
    begun with other settings.
    """
    with GgufFile.open(path, PURPOSE) as file:
        models, chunks = file.metadata.get(KEY_MODELS), file.metadata.get(KEY_CHUNKS)
        if not isinstance(models, list) or not isinstance(chunks, list) or len(models) != len(chunks):
            what = contents_of(file.metadata)
            if what == PURPOSE.name:
                raise BadFileError(f"{path}: is damaged; {START_AGAIN}")
            raise BadFileError(f"{path}: this is {what}, not {PURPOSE.name}; {ANOTHER_FILE}")
        check_same(path, decode_settings(file.metadata.get(KEY_RUN)), settings)
        figures = {}
        for i, (model, n_chunks) in enumerate(zip(models, chunks, strict=True)):
            if not isinstance(n_chunks, int) or n_chunks < 0:
                raise BadFileError(
                    f"{path}: {KEY_CHUNKS} has {n_chunks!r:.80}, which is not a chunk count; {START_AGAIN}"
                )
            if n_chunks:
                figures[str(model)] = _figures(file, i, n_chunks, n_scored, model == REFERENCE)
        return figures


def _figures(file: GgufFile, index: int, n_chunks: int, n_scored: int, is_reference: bool) -> Figures:
    """Read the measurements of one model."""

    def values(name: str, size: int | None) -> npt.NDArray[Any]:
        tensor, kind = file.tensors.get(f"{index}.{name}"), _TYPES.get(name, _F64)
        fits = tensor is not None and (tensor.shape == (size,) if size is not None else tensor.n_elements)
        if tensor is None or tensor.type != kind or not fits:
            raise BadFileError(
                f"{file.paths[0]}: {index}.{name} is missing or has a wrong type or size, so the file is"
                f" damaged; {START_AGAIN}"
            )
        array = file.read(tensor).reshape(-1).view("|i1" if name in _TYPES else "<f8")
        if not are_possible(array):
            raise BadFileError(
                f"{file.paths[0]}: {index}.{name} has impossible values, so the file is damaged;"
                f" {START_AGAIN}"
            )
        return array

    size = n_chunks * n_scored
    rates = values("rates", None)  # may be longer: the reference reads a chunk again for each new model
    figures = Figures(np.split(values("nll", size), n_chunks), [], rates[:-1].tolist(), float(rates[-1]))
    if not is_reference:
        columns = [np.split(values(name, size), n_chunks) for name in Divergence._fields]
        figures.divergences = [
            Divergence(nll, base, kld, delta, same.astype(np.bool_))
            for nll, base, kld, delta, same in zip(*columns, strict=True)
        ]
    return figures
