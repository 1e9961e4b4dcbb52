"""What an error in each matrix of a model costs, measured by running it: :func:`calibrate`.

One matrix at a time is quantized, all others left as they are, and the KL divergence from the untouched
model is taken over the second half of a few chunks of text, as for perplexity: a text's first tokens are
where models put their massive activations, and errors there say nothing of the text. For errors as small
as those of 4 bits the divergence is proportional to the error, and those of several matrices add up: so
divergence over error, the matrix' *sensitivity*, tells what any other type would cost there.

The untouched model's states before every layer are kept for the chunk at hand, so that a run begins at
the layer of its matrix: that halves the work. Memory is bounded by one chunk. All matrices meet a chunk
before the next begins: what makes a text hard is common to them all, so there is an answer after the
first, and each further one sharpens it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..codec.fingerprint import fingerprint, model_fingerprint
from ..codec.model_file import ModelFile
from ..codec.quantized_tensor import QuantizedTensor
from ..codec.rows import ErrorSums, encode
from ..errors import BadOptionError
from ..evaluate.chunks import bos_of
from ..evaluate.estimates import Estimate
from ..evaluate.limits import LONGEST_CHUNK
from ..evaluate.logits import Doubles, Logits, Tokens, divergence
from ..files.output_file import check_writable
from ..formats.layout import Format
from ..formats.tensor_names import is_quantizable, layer_of, processing_order, role_of
from ..formats.types import TensorType
from ..gguf_io.split import files_of
from ..imatrix.file import Floats as Weights
from ..imatrix.file import Importance, load_importance
from ..progress import Progress
from ..runtime.model import Model, Trace
from ..threads import thread_count
from .calibration_file import Calibration, Setting, n_scored
from .calibration_path import part_of_imatrix
from .candidates import probe_of

WRITERS = frozenset({"attn_output", "ffn_down"})
"""Roles that write to the residual stream. There an error counts by its size beside the stream, which
grows slowly, while what a layer writes may be a thousand times as much in one as in the next (the massive
activations of a text's first token). Errors in other roles count by their size beside what they are in."""

SPREAD = (5**0.5 - 1) / 2
"""Chunk i begins at the share i·SPREAD, modulo 1, of the text: any number of them is spread over it."""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What was found: the sensitivity of each matrix, and the divergence that the probe had there.

    Sensitivities are nats of KL divergence per unit of relative squared error, weighted by importance
    where there is any. ``n_chunks`` is how many all matrices met, ``file`` where it is kept.
    """

    sensitivities: dict[str, Estimate]
    klds: dict[str, Estimate]
    n_chunks: int
    n_ctx: int
    file: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        return {
            "file": self.file,
            "n_ctx": self.n_ctx,
            "n_chunks": self.n_chunks,
            "matrices": {
                name: {"sensitivity": value.as_dict(), "kld": self.klds[name].as_dict()}
                for name, value in self.sensitivities.items()
            },
        }


def calibrate(
    model: str | os.PathLike[str],
    text: str,
    file: str | os.PathLike[str] | None = None,
    *,
    imatrix: str | os.PathLike[str] | None = None,
    include_weights: Sequence[str] = (),
    exclude_weights: Sequence[str] = (),
    n_ctx: int = 256,
    n_chunks: int = 4,
    group: int = 1,
    seconds: float | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Calibrated:
    """Measure the sensitivity of each matrix of ``model``, a file, on a text.

    Parameters
    ----------
    model
        The model as it is before it is quantized, 16 bits.
    text
        A text like those that the model is for; some thousand words of it are read.
    file
        Where measurements are noted, after every matrix; what is there already is not measured again.
        None keeps nothing.
    imatrix
        The importance matrix that the model will be quantized with.
    include_weights, exclude_weights
        Parts of names of the tensors that use the imatrix, or do not.
    n_ctx, n_chunks
        ``n_chunks`` pieces of ``n_ctx`` tokens (512 at most), spread over the text. The standard error
        of a sensitivity is about 2 / sqrt(n_ctx / 2 · n_chunks) of it.
    group
        Matrices of the same role in so many neighbouring layers are measured together, and their
        errors taken as equally harmful; the first and the last layer stay alone. Divides the time.
    seconds
        Begin no chunk but the first after so long.
    threads
        None or 0 is one per core; there are never more.
    progress
        Called with the work done, the work in all (weights multiplied by), and the matrix.

    Raises
    ------
    BadOptionError
        The text is too short, or ``file`` is of another model, text or setting. Loading and running the
        model raise their own errors.
    """
    if not 2 <= n_ctx <= LONGEST_CHUNK or n_chunks < 1 or group < 1:
        raise BadOptionError(
            f"`n_ctx` is {n_ctx}, `n_chunks` {n_chunks}, `group` {group}; choose 2 to {LONGEST_CHUNK},"
            " 1 or more, 1 or more"
        )
    if file is not None:
        sources = [shard for path in (model, imatrix) if path is not None for shard in files_of(Path(path))]
        check_writable(file, overwrite=True, sources=sources)  # before any work
    importance = None if imatrix is None else load_importance(imatrix, include_weights, exclude_weights)
    lm = Model(model, n_ctx=n_ctx, threads=threads)
    tokens = lm.tokenizer.encode_array(text)
    if tokens.size < n_ctx * n_chunks:
        raise BadOptionError(
            f"the text has {tokens.size} tokens, and {n_chunks} chunks of {n_ctx} need {n_ctx * n_chunks};"
            " give a longer text, or fewer or shorter chunks"
        )
    with ExitStack() as stack:
        source = stack.enter_context(ModelFile.open(model))
        groups = _groups(source, lm.n_layer, group)
        part = part_of_imatrix(include_weights, exclude_weights)
        setting = Setting(
            model=model_fingerprint(source),
            text=fingerprint(tokens.tobytes()),
            importance=None if imatrix is None else fingerprint(Path(imatrix).read_bytes(), part),
            n_ctx=n_ctx,
            group=group,
        )
        found = Calibration.resumed(file, setting)
        run = _Run(lm, source, importance, groups, found, file, thread_count(threads))
        run.chunks([_chunk(tokens, i, n_ctx, bos_of(lm)) for i in range(n_chunks)], seconds, progress)
        names = run.names
        done = found.n_chunks(names)
        return Calibrated(
            found.sensitivities(names),
            found.klds(names),
            done,
            n_ctx,
            None if file is None else os.fspath(file),
        )


@dataclass(frozen=True, slots=True)
class _Run:
    """A calibration at work."""

    model: Model
    source: ModelFile
    importance: Importance | None
    groups: Sequence[Sequence[str]]
    found: Calibration
    file: str | os.PathLike[str] | None
    threads: int

    @property
    def names(self) -> list[str]:
        return [name for group in self.groups for name in group]

    def chunks(self, chunks: Sequence[Tokens], seconds: float | None, progress: Progress | None) -> None:
        """Measure what is not measured yet, chunk by chunk."""
        todo = [
            [group for group in self.groups if self.found.n_chunks(group) <= i] for i in range(len(chunks))
        ]
        work = _Work(self._cost, sum(self._cost(group) for groups in todo for group in groups), progress)
        started = time.monotonic()
        for i, (chunk, groups) in enumerate(zip(chunks, todo, strict=True)):
            if i and seconds is not None and time.monotonic() - started > seconds:
                return
            if not groups:
                continue
            trace = self.model.trace(chunk)
            reference = self.model.resume(trace, self.model.n_layer)
            for group in groups:
                work.begin(group, f"chunk {i + 1}: {group[0]}")
                self._measure(group, chunk, trace, reference)

    def _measure(self, group: Sequence[str], chunk: Tokens, trace: Trace, reference: Logits) -> None:
        model, errors = self.model, list[ErrorSums]()
        for name in group:
            tensor, sums = self._probed(name)
            model = model.replaced(name, tensor)
            errors.append(sums)
        first = self.model.first_layer(group[0])
        logits = model.logits(chunk) if first is None else model.resume(trace, first)
        scored = slice(len(chunk) - n_scored(len(chunk)), None)
        targets = np.zeros_like(chunk[scored])  # which divergences do not depend on
        kld: Doubles = divergence(logits[scored], reference[scored], targets, threads=self.threads).kld
        for name, sums, share in zip(group, errors, _shares(role_of(group[0]), errors), strict=True):
            part = kld * share
            probe = self._probe(name).name
            self.found.add(name, probe, sums.relative, float(part.mean()), float(np.sqrt(part).mean()))
        if self.file is not None:
            self.found.save(self.file, self.names)

    def _probe(self, name: str) -> TensorType:
        probe = probe_of(self.source.tensors[name].row_length)
        assert probe is not None  # others are in no group
        return probe

    def _probed(self, name: str) -> tuple[QuantizedTensor, ErrorSums]:
        """The matrix as the probe has it, and its error."""
        tensor = self.source[name]
        weights: Weights | None = None
        if self.importance is not None:
            weights = self.importance.weights(name, tensor.shape[-1], 1)
        target = Format(self._probe(name))
        row = None if weights is None else weights[0]
        with self.source.errors_at(name):
            parts, sums = encode(
                tensor.parts, tensor.format, target, tensor.shape[-1], row, threads=self.threads
            )
        return QuantizedTensor.from_parts(parts, target, tensor.shape), sums

    def _cost(self, group: Sequence[str]) -> int:
        """Weights that a token is multiplied by."""
        first = self.model.first_layer(group[0]) or 0
        return sum(
            tensor.n_elements
            for name, tensor in self.source.tensors.items()
            if (layer := layer_of(name)) is None or layer >= first
        )


@dataclass(slots=True)
class _Work:
    """Tells how far it has come."""

    cost: Callable[[Sequence[str]], int]
    total: int
    progress: Progress | None
    done: int = 0

    def begin(self, group: Sequence[str], what: str) -> None:
        if self.progress is not None:
            self.progress(self.done, self.total, what)
        self.done += self.cost(group)


def _groups(source: ModelFile, n_layer: int, size: int) -> list[list[str]]:
    """The matrices that are measured together, each of which some probe fits."""
    architecture = str(source.metadata.get("general.architecture"))
    groups: dict[tuple[str, int], list[str]] = {}
    for name in sorted(source.tensors, key=processing_order):
        tensor = source.tensors[name]
        if not is_quantizable(name, tensor.shape, architecture):
            continue
        if probe_of(tensor.row_length) is None:
            continue
        layer = layer_of(name)
        if layer is None:
            part = -1
        elif layer in (0, n_layer - 1):
            part = layer
        else:
            part = 1 + (layer - 1) // size * size
        groups.setdefault((name if layer is None else role_of(name), part), []).append(name)
    return list(groups.values())


def _shares(role: str, errors: Sequence[ErrorSums]) -> list[float]:
    """What part each of the matrices of a group is taken to have in their divergence."""
    sizes = [sums.error if role in WRITERS else sums.relative for sums in errors]
    total = sum(sizes)
    return [size / total if total else 1 / len(sizes) for size in sizes]


def _chunk(tokens: Tokens, i: int, n_ctx: int, bos: int | None) -> Tokens:
    first = round(i * SPREAD % 1 * (tokens.size - n_ctx))
    chunk: Tokens = tokens[first : first + n_ctx].copy()
    if bos is not None:
        chunk[0] = bos
    return chunk
