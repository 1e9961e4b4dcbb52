"""How a text is cut into chunks and scored: as in llama-perplexity, so that results can be compared.

The whole text is tokenized, with special tokens as at the start of a prompt, and cut into chunks of
``n_ctx`` tokens. A shorter rest is dropped. The model reads each chunk by itself. BOS replaces the first
token of a chunk if the vocabulary has ``add_bos``. The first half of a chunk only gives context. In the
second half, the model predicts every next token, and these predictions are scored
(:mod:`q4hifi.evaluate.scored_tokens`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..codec.fingerprint import fingerprint
from ..codec.model_file import ErrorsAt
from ..engines.protocol import InputCollector, LanguageModel, Logits, ModelSequence, Tokens
from ..errors import BadOptionError
from ..files.text_file import read_text_bytes
from ..gguf_io.metadata import decode_text
from ..wording import counted
from .limits import MIN_CONTEXT
from .scored_tokens import first_counted, n_scored

_MIN_CHUNKS = 2  # llama-perplexity refuses shorter texts, too

PIECE_LOGITS = 1 << 25
"""Limit on the logits in memory at a time, per model: 2^25 float32 are 128 MiB."""


def read_text(file: str | os.PathLike[str]) -> str:
    """Read a UTF-8 text file as llama.cpp's tools read it. The name "-" reads standard input.

    One line end at the end of the text is removed. A byte order mark is kept. Bytes that are not UTF-8 become
    surrogates. Raises :class:`BadOptionError` for a file that cannot be read, is empty, or is not UTF-8 text
    (:func:`q4hifi.files.text_file.check_text`).
    """
    data = read_text_bytes(file).removesuffix(b"\n")
    if not data:
        raise BadOptionError(f"{os.fspath(file)}: the text is empty; name a file with a text")
    return decode_text(data)


Text = str | Sequence[int] | npt.NDArray[Any]
"""A text, or its token ids."""


class Predictions(NamedTuple):
    """Predictions in a part of a chunk, float32 [rows, n_vocab], and the next tokens, uint32 [rows]."""

    logits: Logits
    tokens: Tokens


@dataclass(frozen=True, slots=True, eq=False)
class Chunks:
    """A text cut into chunks, for a model with ``n_vocab`` tokens in its vocabulary.

    ``tokens`` is uint32 [n_chunks, n_ctx]. ``bos`` replaces the first token of each chunk unless it is None.
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
        from_chunk: int = 0,
        parse_special: bool = False,
        dataset: str = "the text",
    ) -> Chunks:
        """Cut ``text`` into chunks of ``n_ctx`` tokens, but at most ``n_chunks``.

        The first ``from_chunk`` chunks are left out. ``parse_special`` makes text that spells a control token
        that token. ``dataset`` is the text's name in errors. Raises :class:`BadOptionError` if the text has
        fewer than two chunks (llama-perplexity refuses it, too), if it has tokens that are not in the
        vocabulary, or if ``n_ctx`` or ``n_chunks`` is too small.
        """
        if n_ctx < MIN_CONTEXT:
            raise BadOptionError(
                f"a context of {counted(n_ctx, 'token')} is too short; give at least {MIN_CONTEXT}"
            )
        if n_chunks is not None and n_chunks < 1:
            raise BadOptionError(f"{n_chunks} chunks cannot be evaluated; give at least 1")
        if isinstance(text, str):
            limit = None if n_chunks is None else n_ctx * (from_chunk + max(n_chunks, _MIN_CHUNKS))
            tokens = model.tokenizer.encode_array(text, limit=limit, parse_special=parse_special)
        else:
            tokens = np.asarray(text)
            if tokens.ndim != 1 or tokens.dtype.kind not in "iuf":
                raise BadOptionError(
                    f"{dataset} is {type(text).__name__}; give a str, or a sequence of token ids"
                )
        if tokens.size < _MIN_CHUNKS * n_ctx:
            raise BadOptionError(
                f"{dataset} has only {counted(tokens.size, 'token')}, and a context of {n_ctx} needs at"
                " least "
                f"{_MIN_CHUNKS * n_ctx}; give a longer text or a shorter context, `n_ctx`"
            )
        if tokens.size < (from_chunk + 1) * n_ctx:
            raise BadOptionError(
                f"{dataset} has only {tokens.size // n_ctx} chunks of {n_ctx} tokens, so none is left after"
                f" {from_chunk}; give a smaller `from_chunk`"
            )
        tokens = tokens[from_chunk * n_ctx :]
        most = tokens.size // n_ctx
        count = most if n_chunks is None else min(most, n_chunks)
        cut = tokens[: count * n_ctx].reshape(count, n_ctx)
        return cls(checked_tokens(cut, model.n_vocab, dataset), bos_of(model), model.n_vocab)

    def __len__(self) -> int:
        """Return the number of chunks."""
        return len(self.tokens)

    @property
    def n_ctx(self) -> int:
        """Tokens per chunk."""
        return int(self.tokens.shape[1])

    @property
    def first(self) -> int:
        """Index of the first token in a chunk after which the prediction is scored."""
        return first_counted(self.n_ctx)

    @property
    def n_scored(self) -> int:
        """Scored tokens per chunk."""
        return n_scored(self.n_ctx)

    @property
    def fingerprint(self) -> str:
        """A fingerprint of the tokens that the model reads."""
        return fingerprint(f"{self.n_ctx} {self.bos}".encode(), self.tokens.tobytes())

    def input(self, chunk: int) -> Tokens:
        """Return the tokens that the model reads, uint32 [n_ctx]: those of the chunk, with BOS in place."""
        tokens: Tokens = self.tokens[chunk].copy()
        if self.bos is not None:
            tokens[0] = self.bos
        return tokens

    def scored(self, chunk: int) -> Tokens:
        """Return the tokens that the scored predictions are compared with, uint32 [n_scored]."""
        tokens: Tokens = self.tokens[chunk, self.first + 1 :]
        return tokens

    def begin(self, model: LanguageModel, chunk: int, sums: InputCollector | None = None) -> ModelSequence:
        """Let a model read the first half of a chunk, which only gives context.

        A model that reads whole texts reads nothing yet.
        """
        sequence = model.sequence()
        if not model.reads_whole_texts:
            sequence.evaluate(self.input(chunk)[: self.first], logits="none", sums=sums)
        return sequence

    def predictions(
        self, sequence: ModelSequence, chunk: int, sums: InputCollector | None = None
    ) -> Iterator[Predictions]:
        """Read the second half of a chunk without its last token; yield the predictions in small pieces.

        The pieces are so small that their logits fit in memory (:data:`PIECE_LOGITS`). If nothing was read
        yet, read the whole chunk, and yield one piece.
        """
        if not sequence.length:
            logits = sequence.evaluate(self.input(chunk), logits="all", sums=sums)
            assert logits is not None
            yield Predictions(logits[self.first : -1], self.scored(chunk))
            return
        tokens, scored = self.input(chunk)[self.first :], self.scored(chunk)
        count = -(-self.n_scored * self.n_vocab // PIECE_LOGITS)
        for i in range(count):
            part = slice(self.n_scored * i // count, self.n_scored * (i + 1) // count)
            logits = sequence.evaluate(tokens[part], logits="all", sums=sums)
            assert logits is not None
            yield Predictions(logits, scored[part])


def checked_tokens(tokens: npt.NDArray[Any], n_vocab: int, where: str) -> Tokens:
    """Return tokens as uint32. Raises :class:`BadOptionError` if one is not in the vocabulary."""
    if tokens.dtype.kind not in "iu" or (tokens.size and not 0 <= tokens.min() <= tokens.max() < n_vocab):
        raise BadOptionError(f"{where}: not all tokens are whole numbers from 0 to {n_vocab - 1}")
    return np.ascontiguousarray(tokens, np.uint32)


def bos_of(model: LanguageModel) -> int | None:
    """Return the BOS token that replaces the first token of a chunk, or None if there is none."""
    return model.tokenizer.bos if model.tokenizer.add_bos else None


def errors_in(model: LanguageModel, chunk: int) -> ErrorsAt:
    """Return a context that puts the model's file and the chunk in front of q4hifi's errors.

    ``chunk`` is an index from 0; the message counts from 1.
    """
    return ErrorsAt(f"{model.path}: chunk {chunk + 1} of the text: ")
