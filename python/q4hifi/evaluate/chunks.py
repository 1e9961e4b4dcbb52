"""A text cut and scored as llama-perplexity does it, so that figures can be laid side by side.

The tokens of the whole text, special ones added as at the start of a prompt, are cut into chunks of
``n_ctx``; what is left over is dropped. Each chunk is evaluated alone, its first token replaced by
BOS if the vocabulary asks for one. Its first half only gives context; then every token but the last
predicts the next: ``n_ctx - 1 - n_ctx // 2`` scored tokens a chunk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..codec.model_file import ErrorsAt
from ..errors import BadOptionError
from ..files.text_file import read_text_bytes
from ..gguf_io.metadata import decode_text
from .limits import MIN_CONTEXT
from .logits import Logits, Tokens

_LEAST = 2  # chunks that a text must have, as in llama-perplexity

PIECE_LOGITS = 1 << 25
"""Logits that are held at a time, of each model: 128 MiB."""


def read_text(file: str | os.PathLike[str]) -> str:
    """Read a UTF-8 text as llama.cpp's tools do: without one line end at its end, with a byte order mark.

    "-" is standard input.

    Bytes that are not UTF-8 become surrogates. Raises :class:`BadOptionError` for a file that cannot be
    read, is empty, or is no text in UTF-8 (:func:`q4hifi.files.text_file.check_text`).
    """
    data = read_text_bytes(file).removesuffix(b"\n")
    if not data:
        raise BadOptionError(f"{os.fspath(file)}: the text is empty; name a file with a text")
    return decode_text(data)


class TextTokenizer(Protocol):
    """What is needed of a model's tokenizer."""

    def encode_array(self, text: str, *, limit: int | None = ...) -> Tokens:
        """Tokens of a text, the first ``limit`` at most."""
        ...

    @property
    def add_bos(self) -> bool:
        """Whether a text begins with BOS."""
        ...

    @property
    def bos(self) -> int | None:
        """BOS, where there is one."""
        ...


class InputSums(Protocol):
    """Sums of the squares of what a model's matrices are multiplied by."""

    def take(self, other: Any) -> None:
        """Add the sums of another collector of the same model to these, and set those to zero."""
        ...

    def all(self) -> Mapping[str, tuple[npt.NDArray[np.float64], int]]:
        """Tensor name -> sums of each input column, float64 [n_in], and of how many rows."""
        ...

    def products(self) -> Mapping[str, tuple[npt.NDArray[np.float32], int]]:
        """Tensor name -> sums of the products of pairs of input columns, and of how many rows."""
        ...


class ModelSequence(Protocol):
    """One text that a model is reading."""

    def evaluate(
        self, tokens: Tokens, logits: Literal["all", "last", "none"] = ..., *, sums: Any = ...
    ) -> Logits | None:
        """Read on; ``logits`` is "all" (float32 [n_tokens, n_vocab]), "last" ([n_vocab]) or "none"."""
        ...


class LanguageModel(Protocol):
    """What is needed of a model."""

    @property
    def path(self) -> Path:
        """Its file."""
        ...

    @property
    def n_vocab(self) -> int:
        """Tokens in the vocabulary."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Key -> value."""
        ...

    @property
    def tokenizer(self) -> TextTokenizer:
        """Its tokenizer."""
        ...

    def sequence(self) -> ModelSequence:
        """Begin a text."""
        ...

    def input_sums(self) -> InputSums:
        """Begin to collect inputs."""
        ...

    def fisher(self, tokens: Tokens, *, first: int, seed: int) -> Mapping[str, npt.NDArray[np.float64]]:
        """Fisher information of the matrices in a text, by their columns."""
        ...


ModelOrPath = str | os.PathLike[str] | LanguageModel
Text = str | Sequence[int] | npt.NDArray[Any]
"""A text, or its tokens."""


class Piece(NamedTuple):
    """Some answers within a chunk, and the tokens that came."""

    logits: Logits
    tokens: Tokens


@dataclass(frozen=True, slots=True, eq=False)
class Chunks:
    """A text as a model of ``n_vocab`` tokens reads it.

    ``tokens`` is uint32 [n_chunks, n_ctx]; ``bos`` replaces the first of each chunk if not None.
    """

    tokens: Tokens
    bos: int | None
    n_vocab: int

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        text: Text,
        *,
        n_ctx: int,
        n_chunks: int | None = None,
        dataset: str = "the text",
    ) -> Chunks:
        """Cut ``text`` into chunks of ``n_ctx`` tokens, ``n_chunks`` at most; errors call it ``dataset``.

        Raises :class:`BadOptionError` where it has fewer than two chunks, as llama-perplexity does.
        """
        if n_ctx < MIN_CONTEXT:
            raise BadOptionError(f"a context of {n_ctx} tokens is too short; give at least {MIN_CONTEXT}")
        if n_chunks is not None and n_chunks < 1:
            raise BadOptionError(f"{n_chunks} chunks cannot be evaluated; give at least 1")
        if isinstance(text, str):
            limit = None if n_chunks is None else n_ctx * max(n_chunks, _LEAST)
            tokens = model.tokenizer.encode_array(text, limit=limit)
        else:
            tokens = np.asarray(text)
        if tokens.size < _LEAST * n_ctx:
            raise BadOptionError(
                f"{dataset} has only {tokens.size} tokens, and a context of {n_ctx} needs at least "
                f"{_LEAST * n_ctx}; give a longer text or a shorter context, `n_ctx`"
            )
        most = tokens.size // n_ctx
        count = most if n_chunks is None else min(most, n_chunks)
        cut = tokens[: count * n_ctx].reshape(count, n_ctx)
        return cls(checked_tokens(cut, model.n_vocab, dataset), bos_of(model), model.n_vocab)

    def __len__(self) -> int:
        """Return the number of chunks."""
        return len(self.tokens)

    @property
    def n_ctx(self) -> int:
        """Tokens of a chunk."""
        return int(self.tokens.shape[1])

    @property
    def first(self) -> int:
        """Number of the first token of a chunk whose answer is scored."""
        return self.n_ctx // 2

    @property
    def n_scored(self) -> int:
        """Scored tokens of a chunk."""
        return self.n_ctx - 1 - self.first

    def input(self, chunk: int) -> Tokens:
        """Return what the model reads: the chunk's tokens after BOS."""
        tokens: Tokens = self.tokens[chunk].copy()
        if self.bos is not None:
            tokens[0] = self.bos
        return tokens

    def scored(self, chunk: int) -> Tokens:
        """Return the tokens that come after the scored answers."""
        tokens: Tokens = self.tokens[chunk, self.first + 1 :]
        return tokens

    def begin(self, model: LanguageModel, chunk: int, sums: InputSums | None = None) -> ModelSequence:
        """Have a model read the half of a chunk that only gives context."""
        sequence = model.sequence()
        sequence.evaluate(self.input(chunk)[: self.first], logits="none", sums=sums)
        return sequence

    def answers(self, sequence: ModelSequence, chunk: int, sums: InputSums | None = None) -> Iterator[Piece]:
        """Read the other half but for the last token; yield the answers in pieces that fit in memory."""
        tokens, scored = self.input(chunk)[self.first :], self.scored(chunk)
        count = -(-self.n_scored * self.n_vocab // PIECE_LOGITS)
        for i in range(count):
            part = slice(self.n_scored * i // count, self.n_scored * (i + 1) // count)
            logits = sequence.evaluate(tokens[part], logits="all", sums=sums)
            assert logits is not None
            yield Piece(logits, scored[part])


def checked_tokens(tokens: npt.NDArray[Any], n_vocab: int, where: str) -> Tokens:
    """Return tokens as uint32. Raises :class:`BadOptionError` for what is not in the vocabulary."""
    if tokens.dtype.kind not in "iu" or (tokens.size and not 0 <= tokens.min() <= tokens.max() < n_vocab):
        raise BadOptionError(f"{where}: not all tokens are whole numbers from 0 to {n_vocab - 1}")
    return np.ascontiguousarray(tokens, np.uint32)


def bos_of(model: LanguageModel) -> int | None:
    """Return the token that a chunk begins with, None if the vocabulary asks for none."""
    return model.tokenizer.bos if model.tokenizer.add_bos else None


@contextmanager
def opened(model: ModelOrPath, *, n_ctx: int, threads: int | None) -> Iterator[LanguageModel]:
    """Give a model, opened from its path if need be."""
    if isinstance(model, (str, os.PathLike)):
        from ..runtime.model import Model

        yield Model(model, n_ctx=n_ctx, threads=threads)
    else:
        yield model


def errors_in(model: LanguageModel, chunk: int) -> ErrorsAt:
    """Context in which q4hifi's errors get the model's file and the chunk (from 0) in front."""
    return ErrorsAt(f"{model.path}: chunk {chunk + 1} of the text: ")
