"""The base files of llama-perplexity: a text's tokens and a model's log-probabilities over it.

Little-endian: ``_logits_``, i32 n_ctx, i32 n_vocab, i32 n_chunks; i32 tokens [n_chunks, n_ctx], as
they are in the text (without BOS in place of the first); then for each chunk its scored answers
(see :mod:`q4hifi.chunks`), each ``codes_per_row(n_vocab)`` uint16: two f32 (step and least value),
one code a token, ``log_prob = step * code + least``, and one zero if the vocabulary is odd. What
is more than 16 below a row's largest is stored as that.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .chunks import MIN_CONTEXT, Chunks
from .errors import BadFileError, BadOptionError
from .gguf_io import os_errors
from .logits import Codes, Tokens, codes_per_row
from .output_file import new_file

MAGIC = b"_logits_"
HEAD = struct.Struct("<8siii")
REMEDY = "make it again with --kl-divergence-base, or with llama-perplexity"


@dataclass(frozen=True, slots=True)
class LogProbsWriter:
    """Writes the answers of one chunk after another; see :func:`write_log_probs`."""

    file: BinaryIO

    def write(self, codes: Codes) -> None:
        """Add the next answers, uint16 [rows * codes_per_row]."""
        self.file.write(codes.astype("<u2", copy=False).data)


@contextmanager
def write_log_probs(
    path: str | os.PathLike[str], chunks: Chunks, n_vocab: int, *, overwrite: bool = False
) -> Iterator[LogProbsWriter]:
    """Begin a base file for a text; it appears when the block ends well, complete."""
    with new_file(path, overwrite=overwrite) as file:
        file.write(HEAD.pack(MAGIC, chunks.n_ctx, n_vocab, len(chunks)))
        file.write(chunks.tokens.astype("<i4").data)
        yield LogProbsWriter(file)


@dataclass(frozen=True, slots=True, eq=False)
class LogProbsFile:
    """A base file whose header and size were checked; ``tokens`` is uint32 [n_chunks, n_ctx]."""

    path: Path
    n_vocab: int
    tokens: Tokens

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> LogProbsFile:
        """Read the header and the tokens. Raises :class:`BadFileError`."""
        path = Path(path)
        if not path.is_file():  # opening a pipe would wait for its writer
            raise BadFileError(f"{path}: there is no such file")
        with os_errors(path, "be read", BadFileError), path.open("rb") as file:
            head = file.read(HEAD.size)
            if len(head) < HEAD.size or not head.startswith(MAGIC):
                raise BadFileError(f"{path}: is not a file of log-probabilities; {REMEDY}")
            _, n_ctx, n_vocab, n_chunks = HEAD.unpack(head)
            if n_ctx < MIN_CONTEXT or n_vocab < 1 or n_chunks < 1:
                raise BadFileError(
                    f"{path}: its header says a context of {n_ctx}, {n_vocab} tokens in the vocabulary and"
                    f" {n_chunks} chunks, which cannot be; {REMEDY}"
                )
            rows = n_chunks * (n_ctx - 1 - n_ctx // 2)
            expected = HEAD.size + 4 * n_chunks * n_ctx + 2 * rows * codes_per_row(n_vocab)
            size = os.fstat(file.fileno()).st_size
            if size != expected:
                raise BadFileError(
                    f"{path}: has {size} bytes, but {n_chunks} chunks of {n_ctx} tokens with a vocabulary of"
                    f" {n_vocab} take {expected}; {REMEDY}"
                )
            tokens = np.fromfile(file, "<i4", n_chunks * n_ctx)
        if tokens.size != n_chunks * n_ctx:
            raise BadFileError(f"{path}: ends early; it has become shorter while it was read")
        tokens = tokens.reshape(n_chunks, n_ctx)
        if not 0 <= tokens.min() <= tokens.max() < n_vocab:
            raise BadFileError(f"{path}: holds tokens beyond its vocabulary of {n_vocab}; {REMEDY}")
        return cls(path, n_vocab, tokens.astype(np.uint32))

    def chunks(self, n_vocab: int, bos: int | None, n_chunks: int | None = None) -> Chunks:
        """Return its text, cut as it was, for a model of ``n_vocab`` tokens; the first chunks, if asked.

        Raises :class:`BadOptionError` where the file is of another vocabulary.
        """
        if n_vocab != self.n_vocab:
            raise BadOptionError(
                f"{self.path}: was made by a model with {self.n_vocab} tokens in its vocabulary, and this one"
                f" has {n_vocab}; compare models of one family only"
            )
        return Chunks(self.tokens[:n_chunks], bos, n_vocab)

    def codes(self, chunk: int) -> Codes:
        """Read the scored answers of a chunk: uint16 [n_scored * codes_per_row]."""
        n_chunks, n_ctx = self.tokens.shape
        count = (n_ctx - 1 - n_ctx // 2) * codes_per_row(self.n_vocab)
        offset = HEAD.size + 4 * n_chunks * n_ctx + 2 * count * chunk
        with os_errors(self.path, "be read", BadFileError):
            codes = np.fromfile(self.path, "<u2", count, offset=offset)
        if codes.size != count:
            raise BadFileError(
                f"{self.path}: ends within chunk {chunk + 1}; it has become shorter while it was in use"
            )
        heads = codes.reshape(-1, codes_per_row(self.n_vocab))[:, :4].copy().view("<f4")
        if not np.isfinite(heads).all() or (heads[:, 0] < 0).any():
            raise BadFileError(f"{self.path}: the answers of chunk {chunk + 1} are damaged; {REMEDY}")
        return codes.astype(np.uint16, copy=False)
