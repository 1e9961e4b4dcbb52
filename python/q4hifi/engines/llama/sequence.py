"""A text that llama.cpp reads: :class:`LlamaSequence`."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from ...errors import BadOptionError, UnsupportedModelError
from ...wording import counted
from ..protocol import Logits
from .context import Context
from .inputs import LlamaInputSums


class LlamaSequence:
    """Tokens that a model has read, with llama.cpp's memory of them."""

    def __init__(self, context: Context) -> None:
        """Use :meth:`LlamaModel.sequence`."""
        self._context = context
        self.length = 0
        """Number of tokens that were evaluated."""

    def reset(self) -> None:
        """Remove all tokens."""
        self.truncate(0)

    def truncate(self, length: int) -> None:
        """Remove all but the first ``length`` tokens.

        Raises :class:`BadOptionError` if there are fewer, or if the model's memory cannot be cut, as that of
        recurrent models.
        """
        self._check()
        if not 0 <= length <= self.length:
            raise BadOptionError(f"a text of {counted(self.length, 'token')} cannot be cut to {length}")
        if length == 0:
            self._context.clear()
        elif length < self.length and not self._context.cut(length):
            raise BadOptionError(
                f"a text of {counted(self.length, 'token')} cannot be cut to {length}: this model's memory"
                " has no parts; call reset() and evaluate the text again"
            )
        self.length = length

    def evaluate(
        self,
        tokens: npt.ArrayLike,
        logits: Literal["last", "all", "none"] = "last",
        *,
        sums: LlamaInputSums | None = None,
    ) -> Logits | None:
        """Append ``tokens``, ids [n_tokens], and return the logits that ``logits`` asks for.

        "last": float32 [n_vocab], after the last token. "all": [n_tokens, n_vocab]. "none": None. The inputs
        of all matrices are added to ``sums``.

        Raises :class:`BadOptionError` for ids that are not in the vocabulary, for more tokens than the
        context holds, and if the model has begun another sequence. Raises :class:`UnsupportedModelError` for
        the logits of an encoder, and for a second part of a text that the model must read at once.
        """
        self._check()
        context = self._context
        ids = _checked(tokens, context.n_vocab)
        if self.length + len(ids) > context.n_ctx:
            raise BadOptionError(
                f"{counted(self.length, 'token')} and {len(ids)} more are too many for a context of"
                f" {context.n_ctx}"
            )
        if self.length and context.reads_whole_texts:
            raise UnsupportedModelError(
                f"{context.path}: the model reads texts in both directions, so it must get a text at once;"
                " nothing can be appended"
            )
        found: list[Logits] = []
        for first in range(0, len(ids), context.batch):
            part = ids[first : first + context.batch]
            is_last = first + len(part) == len(ids)
            # without a wanted output of a token, the last layer leaves it out, and its inputs are not seen
            wanted = np.full(len(part), logits == "all" or sums is not None, np.int8)
            wanted[-1] |= is_last and logits == "last"
            context.decode(part, wanted, sums)
            self.length += len(part)
            if logits == "all" or (logits == "last" and is_last):
                rows = context.logits(int(wanted.sum()))
                found.append((rows if logits == "all" else rows[-1:]).copy())
        if logits == "none":
            return None
        return found[-1][-1] if logits == "last" else np.concatenate(found)

    def _check(self) -> None:
        self._context.check_open()
        if self._context.reader is not self:
            raise BadOptionError(
                f"{self._context.path}: the model has begun another text since; it reads one at a time"
            )


def _checked(tokens: npt.ArrayLike, n_vocab: int) -> npt.NDArray[np.int32]:
    array = np.asarray(tokens)
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
        raise BadOptionError(f"tokens must be a list of ids, at least one; this has the shape {array.shape}")
    if array.min() < 0 or array.max() >= n_vocab:
        raise BadOptionError(f"not all tokens are in the vocabulary, which has {n_vocab}")
    return np.ascontiguousarray(array, np.int32)
