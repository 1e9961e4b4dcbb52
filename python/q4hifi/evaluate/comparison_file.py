"""The figures of a comparison in a file, by which it can be resumed.

A GGUF file without weights. ``q4hifi.comparison.text`` is a fingerprint of the reference model, the text and
how it is cut. ``q4hifi.comparison.models`` has the fingerprints of the models, :data:`REFERENCE` for the
reference, and ``q4hifi.comparison.chunks`` the number of chunks of each.

Model number I has the tensors ``I.nll`` (F64), and but for the reference ``I.nll_base``, ``I.kld``,
``I.delta_p`` (F64) and ``I.same_top`` (I8), with a value for each scored token
(:class:`q4hifi.evaluate.logits.Divergence`). ``I.rates`` (F64) has tokens a second, and at its end the
seconds in all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BadFileError, BadOptionError
from ..formats.gguf_constants import GGUFValueType
from ..formats.layout import StoredTensor
from ..formats.types import TYPES
from ..gguf_io.metadata import Metadata
from ..gguf_io.reader import GgufFile
from ..gguf_io.writer import GgufWriter
from .logits import Divergence, Doubles, are_figures

KEY_TEXT, KEY_MODELS, KEY_CHUNKS = (f"q4hifi.comparison.{name}" for name in ("text", "models", "chunks"))

REFERENCE = "reference"

BYTES_A_TOKEN = 33
"""Four float64 and a byte."""

_TYPES = {"same_top": TYPES["I8"]}
_F64 = TYPES["F64"]


@dataclass(slots=True)
class Figures:
    """What was measured of a model: the values of each chunk's scored tokens.

    ``divergences`` is empty for the reference. ``prompt_rates`` are tokens a second, ``seconds`` what all
    chunks took.
    """

    nll: list[Doubles] = field(default_factory=list)
    divergences: list[Divergence] = field(default_factory=list)
    prompt_rates: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def n_chunks(self) -> int:
        """Chunks that were measured."""
        return len(self.nll)

    def copy(self) -> Figures:
        """Return figures to which chunks can be added without changing these."""
        return Figures([*self.nll], [*self.divergences], [*self.prompt_rates], self.seconds)


def write_comparison(
    path: str | os.PathLike[str],
    text: str,
    figures: Mapping[str, Figures],
    *,
    overwrite: bool = False,
    sources: Sequence[Path] = (),
) -> None:
    """Write the figures by the models' fingerprints, or :data:`REFERENCE`; ``text`` is that of the text.

    Raises :class:`BadOptionError` for a destination that cannot be used.
    """
    pairs = Metadata().with_value(KEY_TEXT, text, GGUFValueType.STRING)
    pairs = pairs.with_value(KEY_MODELS, list(figures), GGUFValueType.STRING)
    chunks = [of_model.n_chunks for of_model in figures.values()]
    pairs = pairs.with_value(KEY_CHUNKS, chunks, GGUFValueType.UINT32)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for i, of_model in enumerate(figures.values()):
        if of_model.n_chunks:
            arrays[f"{i}.rates"] = np.array([*of_model.prompt_rates, of_model.seconds])
            arrays[f"{i}.nll"] = np.concatenate(of_model.nll)
        if parts := of_model.divergences[: of_model.n_chunks]:
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


def read_comparison(path: str | os.PathLike[str], text: str, n_scored: int) -> dict[str, Figures]:
    """Read figures of a text, whose chunks have ``n_scored`` tokens, by the models' fingerprints, or
    :data:`REFERENCE`.

    Raises :class:`BadFileError` for a file that is something else or damaged, and :class:`BadOptionError`
    for one of another reference or text.
    """
    with GgufFile.open(path) as file:
        models, chunks = file.metadata.get(KEY_MODELS), file.metadata.get(KEY_CHUNKS)
        if not isinstance(models, list) or not isinstance(chunks, list) or len(models) != len(chunks):
            raise BadFileError(f"{path}: holds no comparison of models; choose another file")
        if file.metadata.get(KEY_TEXT) != text:
            raise BadOptionError(
                f"{path}: was made with another reference, text or context, so it cannot be resumed;"
                " give the same ones, or another file"
            )
        found = {}
        for i, (model, n_chunks) in enumerate(zip(models, chunks, strict=True)):
            if not isinstance(n_chunks, int) or n_chunks < 0:
                raise BadFileError(f"{path}: {KEY_CHUNKS} has {n_chunks!r:.80}, which is no number of chunks")
            if n_chunks:
                found[str(model)] = _figures(file, i, n_chunks, n_scored, model == REFERENCE)
        return found


def _figures(file: GgufFile, number: int, n_chunks: int, n_scored: int, is_reference: bool) -> Figures:
    def values(name: str, size: int | None) -> npt.NDArray[Any]:
        tensor, kind = file.tensors.get(f"{number}.{name}"), _TYPES.get(name, _F64)
        fits = tensor is not None and (tensor.shape == (size,) if size is not None else tensor.n_elements)
        if tensor is None or tensor.type != kind or not fits:
            raise BadFileError(
                f"{file.paths[0]}: {number}.{name} is not what it must be; the file is damaged"
            )
        found = file.read(tensor).reshape(-1).view("|i1" if name in _TYPES else "<f8")
        if not are_figures(found):
            raise BadFileError(f"{file.paths[0]}: {number}.{name} holds no figures; the file is damaged")
        return found

    size = n_chunks * n_scored
    rates = values("rates", None)  # the reference is measured again for a model that is new
    figures = Figures(np.split(values("nll", size), n_chunks), [], rates[:-1].tolist(), float(rates[-1]))
    if not is_reference:
        columns = [np.split(values(name, size), n_chunks) for name in Divergence._fields]
        figures.divergences = [
            Divergence(nll, base, kld, delta, same.astype(np.bool_))
            for nll, base, kld, delta, same in zip(*columns, strict=True)
        ]
    return figures
