"""Base files of llama-perplexity: the tokens of a text and a model's log-probabilities for it.

The format, little-endian:

- ``_logits_``, i32 n_ctx, i32 n_vocab, i32 n_chunks
- i32 tokens [n_chunks, n_ctx], as they are in the text (BOS does not replace the first of a chunk)
- for each chunk its scored predictions (:mod:`q4hifi.evaluate.chunks`). A prediction takes
  ``codes_per_row(n_vocab)`` uint16: two f32 (step and minimum), one code per token of the vocabulary, and one
  zero if the vocabulary is odd. The log-probability is ``step * code + minimum``. Values more than 16 below a
  row's maximum are stored as 16 below it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from ..engines.protocol import Tokens
from ..errors import BadFileError, BadOptionError
from ..files.file_kinds import HEAD_BYTES, Purpose, mistaken
from ..files.partial_file import PartialFile
from ..files.positioned_file import byte_view, os_errors
from ..files.regular_file import check_regular_file
from ..wording import counted
from .chunks import Chunks
from .limits import MIN_CONTEXT
from .logits import Codes, Doubles, are_possible, codes_per_row
from .resuming import START_AGAIN, TOKENS, check_same
from .scored_tokens import n_scored

MAGIC = b"_logits_"
"""First bytes of a base file."""

PARTIAL = b"part"
HEAD = struct.Struct("<8siii")
U32 = struct.Struct("<I")
REMEDY = "make it again with `save_log_probs=...`, or with llama-perplexity"
PURPOSE = Purpose("a file of log-probabilities", "make one with `save_log_probs=...`", REMEDY)


class LogProbsWriter:
    """Writes a base file chunk by chunk. It is a context manager.

    Until the file is complete, its name is ``PATH.partial`` and a run that was interrupted or killed can be
    resumed from it. The header of a partial file begins with :data:`PARTIAL` and the number of complete
    chunks. After the predictions it has -log of the probability of each scored token, float64. ``n_done`` is
    the number of complete chunks.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        chunks: Chunks,
        *,
        overwrite: bool = False,
        resume: bool = False,
        sources: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        """Check the destination ``path``, without writing anything.

        ``resume`` continues from a partial file if there is one. ``overwrite`` allows an existing file to be
        replaced, but never one of ``sources``. Raises :class:`BadOptionError` if ``path`` cannot be used.
        """
        self._new = PartialFile(
            path, begins=(PARTIAL, MAGIC), overwrite=overwrite, resume=resume, sources=sources
        )
        self._chunks = chunks
        self._codes = chunks.n_scored * codes_per_row(chunks.n_vocab)
        self._written = 0  # codes of the incomplete chunk
        self.n_done = 0

    @property
    def partial(self) -> Path:
        """Path of the file until it is complete."""
        return self._new.partial

    def __enter__(self) -> LogProbsWriter:
        """Reserve the space of the file, or read how far the partial file is.

        Raises :class:`BadOptionError` if the partial file was begun with another text or options, and
        :class:`Q4HifiError` if writing fails.
        """
        tokens = self._chunks.tokens.astype("<i4")
        size = self._nll_offset(len(self._chunks))
        with os_errors(self._new.path, f"be written, which takes {counted(size, 'byte')}"):
            file = self._new.__enter__().file
            try:
                if self._new.resumed:
                    self._resume(tokens.tobytes())
                else:
                    file.write(
                        0, memoryview(self._head())
                    )  # first, so that a resumed run recognises the file
                    file.write(HEAD.size, byte_view(tokens))
                    file.reserve(size)
            except BaseException:
                self.__exit__(None, None, None)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._new.keep = self._new.resumed or self.n_done > 0
        self._new.__exit__(kind, error, trace)

    def write(self, codes: Codes) -> None:
        """Append predictions of the incomplete chunk, uint16 [rows * codes_per_row].

        Raises :class:`Q4HifiError` if writing fails.
        """
        with os_errors(self._new.path, "be written"):
            data = codes.astype("<u2", copy=False)
            self._new.file.write(self._offset(self.n_done) + 2 * self._written, byte_view(data))
        self._written += codes.size

    def end_chunk(self, nll: Doubles) -> None:
        """Complete the chunk whose predictions were written.

        ``nll`` is -log of the probability of its scored tokens, float64 [n_scored]. Raises
        :class:`Q4HifiError` if writing fails.
        """
        with os_errors(self._new.path, "be written"):
            self._new.file.write(self._nll_offset(self.n_done), byte_view(nll.astype("<f8", copy=False)))
            self.n_done, self._written = self.n_done + 1, 0
            self._new.file.write(0, memoryview(self._head()))

    def nll(self) -> Doubles:
        """Read -log of the probability of each scored token of the complete chunks, float64.

        Raises :class:`Q4HifiError` if reading fails, and :class:`BadFileError` if values are impossible.
        """
        nll = np.zeros(self.n_done * self._chunks.n_scored, "<f8")
        with os_errors(self._new.path, "be read"):
            self._new.file.read_into(self._nll_offset(0), byte_view(nll))
        if not are_possible(nll):
            raise BadFileError(
                f"{self.partial}: its values are damaged, so it cannot be resumed; {START_AGAIN}"
            )
        return nll.astype(np.float64, copy=False)

    def read(self, chunk: int) -> Codes:
        """Read the predictions of a complete chunk. Raises :class:`Q4HifiError` if reading fails."""
        codes = np.empty(self._codes, "<u2")
        with os_errors(self._new.path, "be read"):
            self._new.file.read_into(self._offset(chunk), byte_view(codes))
        return codes.astype(np.uint16, copy=False)

    def publish(self) -> None:
        """Give the complete file its final name. Raises :class:`Q4HifiError` if that fails."""
        self._new.check()  # while the file can still be resumed
        with os_errors(self._new.path, "be completed"):
            self._new.file.write(0, memoryview(_head(MAGIC, self._chunks)))
            self._new.file.truncate(self._nll_offset(0))
            self._new.publish()

    def _offset(self, chunk: int) -> int:
        """Return the offset of a chunk's predictions in the file."""
        return HEAD.size + 4 * self._chunks.tokens.size + 2 * self._codes * chunk

    def _nll_offset(self, chunk: int) -> int:
        """Return the offset of a chunk's -log probabilities in the partial file."""
        return self._offset(len(self._chunks)) + 8 * self._chunks.n_scored * chunk

    def _head(self) -> bytes:
        return _head(PARTIAL + U32.pack(self.n_done), self._chunks)

    def _resume(self, tokens: bytes) -> None:
        start = bytearray(self._offset(0))
        size = self._new.file.read_into(0, memoryview(start))
        if size < HEAD.size or not start.startswith(PARTIAL):
            raise BadOptionError(f"{self.partial}: is damaged, so it cannot be resumed; {START_AGAIN}")
        _, n_ctx, n_vocab, n_chunks = HEAD.unpack_from(start)
        begun = {"n_ctx": n_ctx, "n_chunks": n_chunks, "vocabulary": str(n_vocab)}
        chunks = self._chunks
        this = {"n_ctx": chunks.n_ctx, "n_chunks": len(chunks), "vocabulary": str(chunks.n_vocab)}
        check_same(self.partial, {**begun, TOKENS: start[HEAD.size :]}, {**this, TOKENS: tokens})
        (n_done,) = U32.unpack_from(start, len(PARTIAL))
        if n_done > n_chunks or self._new.file.size() < self._nll_offset(n_chunks):
            raise BadOptionError(f"{self.partial}: is cut off, so it cannot be resumed; {START_AGAIN}")
        self.n_done = n_done


def _head(magic: bytes, chunks: Chunks) -> bytes:
    return HEAD.pack(magic, chunks.n_ctx, chunks.n_vocab, len(chunks))


@dataclass(frozen=True, slots=True, eq=False)
class LogProbsFile:
    """An opened base file. Its header and size have been checked.

    ``tokens`` is uint32 [n_chunks, n_ctx]. ``n_vocab`` is the size of the vocabulary.
    """

    path: Path
    n_vocab: int
    tokens: Tokens

    @property
    def n_ctx(self) -> int:
        """Tokens per chunk."""
        return int(self.tokens.shape[1])

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> LogProbsFile:
        """Read the header and the tokens.

        Raises :class:`BadFileError` if the file is damaged or is no base file.
        """
        path = Path(path)
        check_regular_file(path, PURPOSE)
        with os_errors(path, "be read", BadFileError), path.open("rb") as file:
            begin = file.read(HEAD_BYTES)
            if len(begin) < HEAD.size or not begin.startswith(MAGIC):
                other = None if MAGIC.startswith(begin[: len(MAGIC)]) else mistaken(begin, PURPOSE)
                fault = other or f"is not {PURPOSE.name}; {REMEDY}"
                raise BadFileError(f"{path}: {fault}")
            head = begin[: HEAD.size]
            file.seek(HEAD.size)
            _, n_ctx, n_vocab, n_chunks = HEAD.unpack(head)
            if n_ctx < MIN_CONTEXT or n_vocab < 1 or n_chunks < 1:
                raise BadFileError(
                    f"{path}: its header has a context of {n_ctx}, {counted(n_vocab, 'token')} in the"
                    " vocabulary and"
                    f" {counted(n_chunks, 'chunk')}, which is impossible; {REMEDY}"
                )
            rows = n_chunks * n_scored(n_ctx)
            expected = HEAD.size + 4 * n_chunks * n_ctx + 2 * rows * codes_per_row(n_vocab)
            size = os.fstat(file.fileno()).st_size
            if size != expected:
                raise BadFileError(
                    f"{path}: has {counted(size, 'byte')}, but {counted(n_chunks, 'chunk')} of {n_ctx}"
                    " tokens with a vocabulary of"
                    f" {n_vocab} take {expected}; {REMEDY}"
                )
            tokens = np.fromfile(file, "<i4", n_chunks * n_ctx)
        if tokens.size != n_chunks * n_ctx:
            raise BadFileError(f"{path}: ends early; it has become shorter while it was read")
        tokens = tokens.reshape(n_chunks, n_ctx)
        if not 0 <= tokens.min() <= tokens.max() < n_vocab:
            raise BadFileError(f"{path}: has tokens outside its vocabulary of {n_vocab}; {REMEDY}")
        return cls(path, n_vocab, tokens.astype(np.uint32))

    def chunks(self, n_vocab: int, bos: int | None, n_chunks: int | None = None) -> Chunks:
        """Return the chunks of the file's text, at most ``n_chunks``, for a model to read.

        ``n_vocab`` and ``bos`` are the size of the model's vocabulary and its BOS token. Raises
        :class:`BadOptionError` if the file's vocabulary has another size.
        """
        if n_vocab != self.n_vocab:
            raise BadOptionError(
                f"{self.path}: was made by a model with {counted(self.n_vocab, 'token')} in its"
                " vocabulary, but this"
                f" model has {n_vocab}; compare models of one family only"
            )
        return Chunks(self.tokens[:n_chunks], bos, n_vocab)

    def codes(self, chunk: int) -> Codes:
        """Read the scored predictions of a chunk: uint16 [n_scored * codes_per_row].

        Raises :class:`BadFileError` if they are damaged.
        """
        n_chunks, n_ctx = self.tokens.shape
        count = n_scored(n_ctx) * codes_per_row(self.n_vocab)
        offset = HEAD.size + 4 * n_chunks * n_ctx + 2 * count * chunk
        with os_errors(self.path, "be read", BadFileError):
            codes = np.fromfile(self.path, "<u2", count, offset=offset)
        if codes.size != count:
            raise BadFileError(
                f"{self.path}: ends within chunk {chunk + 1}; it has become shorter while it was in use"
            )
        heads = codes.reshape(-1, codes_per_row(self.n_vocab))[:, :4].copy().view("<f4")
        if not np.isfinite(heads).all() or (heads[:, 0] < 0).any():
            raise BadFileError(f"{self.path}: the predictions of chunk {chunk + 1} are damaged; {REMEDY}")
        return codes.astype(np.uint16, copy=False)
