"""Checking every weight of a model file: :func:`verify_file`."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..codec.model_file import ModelFile, RowRange, row_ranges
from ..codec.rows import check_finite
from ..errors import BadOptionError, Q4HifiError
from ..progress import Progress
from ..threads import thread_count


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault of a file: the tensor (None: the structure of the file), and a message."""

    tensor: str | None
    message: str


def verify_file(
    path: str | os.PathLike[str], *, threads: int | None = None, progress: Progress | None = None
) -> list[Finding]:
    """Check a GGUF model: structure, sizes, finite weights and scales, order of Q4_HIFI's outliers.

    Returns at most one finding per tensor, and none for a sound file. For types that q4hifi cannot decode,
    only the sizes are checked.
    """
    try:
        model = ModelFile.open(path)
    except Q4HifiError as error:
        return [Finding(None, str(error))]
    with model:
        total = sum(t.n_elements for t in model.tensors.values())
        done = 0
        findings = []
        for tensor in model.tensors.values():
            if progress is not None:
                progress(done, total, tensor.name)
            for rows in row_ranges(tensor):
                found = _check(model, rows, thread_count(threads))
                if found is not None:
                    findings.append(found)
                    break
                done += rows.count * tensor.row_length
                if progress is not None:
                    progress(done, total, tensor.name)
        if progress is not None:
            progress(total, total, "")
        return findings


def _check(model: ModelFile, rows: RowRange, threads: int) -> Finding | None:
    tensor = rows.tensor
    try:
        parts = model.read_rows(rows)
        check_finite(parts, tensor.format, tensor.row_length, threads=threads, first_row=rows.first)
    except BadOptionError:
        raise  # not a fault of the file
    except Q4HifiError as error:
        return Finding(tensor.name, str(error))
    return None
