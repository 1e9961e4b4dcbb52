"""Fingerprints of models, texts and files. Work is resumed only if its inputs are still the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import numpy as np

from .model_file import ModelFile

SAMPLE = 4096
"""Bytes at the start of each tensor that a model's fingerprint includes."""


def fingerprint(*pieces: bytes) -> str:
    """Return the SHA-256 of all pieces joined, as hexadecimal digits."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def model_fingerprint(model: ModelFile) -> str:
    """Return a fingerprint of a model's tensors: names, shapes, types, and the start of their data.

    Raises :class:`BadFileError` where the file cannot be read.
    """

    def pieces() -> Iterator[bytes]:
        for info in model.gguf.tensors.values():
            yield f"{info.name} {info.shape} {info.type.name};".encode("utf-8", "surrogateescape")
            sample = np.empty(min(info.nbytes, SAMPLE), np.uint8)
            model.gguf.read_into(info, 0, sample)
            yield sample.tobytes()

    return fingerprint(*pieces())


def path_fingerprint(path: str | os.PathLike[str]) -> str:
    """Return the fingerprint of the model file ``path``. Raises as :meth:`ModelFile.open` does."""
    with ModelFile.open(path) as model:
        return model_fingerprint(model)
