"""Importance matrix files ("imatrix"): reading and checking them.

An importance matrix says how much each input column of a weight matrix matters. For each tensor it holds the
sum of the squared activations of every input column, and the number of tokens that were summed. The encoder
weighs errors by the means, sum / tokens. A file has one of two forms. Its first bytes decide which; its name
does not matter.

GGUF (llama.cpp's form today)
    For each tensor ``NAME``: ``NAME.in_sum2``, F32 [n_in, n_mat], and ``NAME.counts``, F32 [1, n_mat], with
    one count for each matrix (expert). The keys ``imatrix.*`` describe the text. An expert that received no
    token has the count 0, and all its weights are 1.

    q4hifi adds tensors that llama.cpp ignores:

    - ``NAME.fisher``, F32 [n_in], and ``NAME.fisher_counts``, F32 [1]: the Fisher information of the matrix,
      one value for each column (:meth:`q4hifi.Model.fisher`), summed over that number of tokens.
    - ``NAME.in_corr``, I8 [pairs, n]: the correlations between pairs of its input columns
      (:mod:`q4hifi.codec.input_correlations`). n is 1, for the inputs of all its matrices together, or the
      number of its matrices. Tensors with the same inputs have one entry: the key
      ``q4hifi.imatrix.same_inputs`` lists them as ``NAME=NAME_OF_THE_ENTRY``.
    - ``NAME.refine_sum2`` and ``NAME.refine_counts``: as in_sum2 and counts, for the matrix that makes the
      logits. llama-imatrix leaves that matrix out. Only refined encodings use these values. A recipe of
      llama-quantize without refinement therefore still gives llama-quantize's bytes.
binary (llama.cpp's older form, .dat)
    Little-endian: i32 number of entries; for each entry: i32 length, name, i32 calls, i32 number of values,
    f32 values. Two optional parts follow: i32 number of chunks; then i32 length and the name of the data set.
    An entry has one count for all experts of a tensor. If it is 0, the values are already the weights.

Means are computed in float32 as llama-quantize computes them, so that quantized bytes are the same. Only the
table of entries is kept in memory. The values of a tensor are read when they are needed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import BadFileError
from ..files.file_kinds import HEAD_BYTES, IMATRIX_NAME, Purpose, mistaken
from ..files.positioned_file import os_errors
from ..files.regular_file import check_regular_file
from .dat_form import read_dat
from .entries import WeightsFilter
from .gguf_form import read_gguf
from .importance import Importance, checked

IMATRIX = Purpose(
    IMATRIX_NAME, "name a file that 'q4hifi imatrix' or llama-imatrix made", "make or download it again"
)


def load_importance(
    path: str | os.PathLike[str], include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Importance:
    """Open an importance matrix file of either form and check every value of the entries in use.

    ``include`` and ``exclude`` are those of :class:`WeightsFilter`. A bad entry of a tensor that is not
    selected is no error. Fisher information and correlations are kept for all tensors, because other tensors
    may depend on them; those of a tensor that is not selected are dropped if they are bad.

    Raises :class:`BadFileError` if the file is damaged or is no importance matrix, and
    :class:`NotFiniteError` if it contains NaN or infinity.
    """
    return read_importance(path, WeightsFilter(include, exclude), IMATRIX)


def read_importance(path: str | os.PathLike[str], chosen: WeightsFilter, purpose: Purpose) -> Importance:
    """Do the work of :func:`load_importance`. ``purpose`` has the remedies in messages about a bad file."""
    file = os.fspath(path)
    check_regular_file(file, purpose)
    with os_errors(Path(file), "read the importance matrix", BadFileError), open(file, "rb") as stream:
        head = stream.read(HEAD_BYTES)
        stream.seek(0)
        if head.startswith(b"GGUF"):
            importance = read_gguf(file, chosen, purpose)
        else:
            try:
                importance = read_dat(file, stream, chosen, purpose)
            except BadFileError as error:  # a file of this form has no magic number
                if other := mistaken(head, purpose):
                    raise BadFileError(f"{file}: {other}") from error
                raise
    return checked(importance, chosen)
