"""A text that our own runtime reads: :class:`Sequence`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from .. import _core
from ..codec.core_errors import core_errors
from ..codec.model_file import ErrorsAt
from ..errors import BadOptionError, NotFiniteError
from ..wording import counted
from .loading import MappedFiles
from .model_input_sums import ModelInputSums

Floats = npt.NDArray[np.float32]
TokensLike = npt.ArrayLike
"""Token ids: a list, or a one-dimensional array of integers."""

Wanted = Literal["last", "all", "none"] | range


class Sequence:
    """Tokens that a model has read, with their keys and values (the KV cache)."""

    def __init__(
        self, core: _core.Sequence, weights: MappedFiles, *, path: Path, n_vocab: int, n_ctx: int
    ) -> None:
        """Use :meth:`Model.sequence`."""
        self._core, self._weights = core, weights
        self._path, self._n_vocab, self._n_ctx = path, n_vocab, n_ctx

    @property
    def length(self) -> int:
        """Number of tokens that were evaluated."""
        return self._core.length

    def reset(self) -> None:
        """Remove all tokens."""
        self._core.reset()

    def truncate(self, length: int) -> None:
        """Remove all but the first ``length`` tokens.

        Raises :class:`BadOptionError` if there are fewer. Layers with a sliding window, as Gemma's, drop
        the keys and values that the window has left, in blocks of 64 tokens. If the token after ``length``
        would need some of these, this is an error as well, and nothing changes. Then :meth:`reset` the
        sequence and evaluate the text again.
        """
        there = self.length
        if not 0 <= length <= there:
            raise BadOptionError(f"a text of {counted(there, 'token')} cannot be cut to {length}")
        if not self._core.truncate(length):
            raise BadOptionError(
                f"a text of {counted(there, 'token')} cannot be cut to {length}: this model's sliding"
                " window has dropped"
                " the tokens before; call reset() and evaluate the text again"
            )

    def evaluate(
        self, tokens: TokensLike, logits: Wanted = "last", *, sums: ModelInputSums | None = None
    ) -> Floats | None:
        """Append ``tokens`` to the sequence, and return the logits that ``logits`` asks for.

        "last": float32 [n_vocab], after the last token. "all": [n_tokens, n_vocab]. "none": None. A range of
        indices into ``tokens``, with step 1: [length of the range, n_vocab]. The inputs of all matrices are
        added to ``sums``.

        Raises :class:`BadOptionError` for ids that are not in the vocabulary, and for more tokens than the
        context holds. Ctrl-C interrupts it after the current layer; whole batches of 512 tokens stay in the
        sequence.
        """
        array = token_array(tokens, self._n_vocab)
        n = len(array)
        if self.length + n > self._n_ctx:
            raise BadOptionError(
                f"{counted(self.length, 'token')} and {n} more are too many for a context of {self._n_ctx}"
            )
        wanted = _range_of(logits, n)
        core = None if sums is None else sums.core
        with (
            ErrorsAt(f"{self._path}: "),
            core_errors(BadOptionError, bad_model=damaged),
            self._weights.intact(),
        ):
            out = self._core.evaluate(array, wanted.start, wanted.stop, core)
        if logits == "none":
            return None
        return out[0] if logits == "last" else out


def damaged(message: str, *_: object) -> NotFiniteError:
    """Return the error for a model whose logits are not finite: the core's only fault after loading."""
    return NotFiniteError(f"{message}; its weights may be damaged")


def token_array(tokens: TokensLike, n_vocab: int) -> npt.NDArray[np.uint32]:
    """Return token ids, uint32 [n_tokens]. Raises :class:`BadOptionError` for all that are none."""
    array = np.asarray(tokens)
    if array.ndim != 1 or not array.size:
        raise BadOptionError(f"tokens must be a list of ids, at least one; this has the shape {array.shape}")
    if array.dtype.kind not in "iu":
        raise BadOptionError(f"tokens must be integers, not {array.dtype}")
    if array.min() < 0 or array.max() >= n_vocab:
        wrong = array[(array < 0) | (array >= n_vocab)][0]
        raise BadOptionError(f"token {wrong} is not in the vocabulary, which has {counted(n_vocab, 'token')}")
    return np.ascontiguousarray(array, np.uint32)


def _range_of(wanted: Wanted, n: int) -> range:
    if isinstance(wanted, range):
        if wanted.step != 1 or not 0 <= wanted.start <= wanted.stop <= n:
            raise BadOptionError(f"logits of {wanted}, but the text has {counted(n, 'token')}")
        return wanted
    ranges = {"last": range(n - 1, n), "all": range(n), "none": range(n, n)}
    if wanted not in ranges:
        raise BadOptionError(f"logits is {wanted!r}; choose one of {', '.join(ranges)}, or a range")
    return ranges[wanted]
