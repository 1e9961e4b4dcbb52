"""Fingerprints of models, texts and files: work is only resumed with what it was begun with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import numpy as np

from .model_file import ModelFile

SAMPLE = 4096
"""Bytes at the beginning of each tensor that enter a model's fingerprint."""


def fingerprint(*pieces: bytes) -> str:
    """Return the SHA-256 of the pieces, one after the other, as hexadecimal digits."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def model_fingerprint(model: ModelFile) -> str:
    """Return a fingerprint of a model's tensors: names, shapes, types, and the beginning of their data."""

    def pieces() -> Iterator[bytes]:
        for info in model.gguf.tensors.values():
            yield f"{info.name} {info.shape} {info.type.name};".encode("utf-8", "surrogateescape")
            sample = np.empty(min(info.nbytes, SAMPLE), np.uint8)
            model.gguf.read_into(info, 0, sample)
            yield sample.tobytes()

    return fingerprint(*pieces())


def path_fingerprint(path: str | os.PathLike[str]) -> str:
    """Return the fingerprint of the model at ``path``."""
    with ModelFile.open(path) as model:
        return model_fingerprint(model)
