"""A model that llama.cpp has loaded, with the context in which it evaluates tokens: :class:`Context`."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Sequence
from ctypes import c_float, c_int8, c_int32
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import BadOptionError, UnsupportedModelError
from ..protocol import Logits
from .abi import StructOffsets, context_params, model_params
from .inputs import LlamaInputSums, Observer
from .library import Batch, EvalCallback, begin_work, is_causal, logged_errors
from .tensors import TensorReader

BATCH = 512
"""Tokens that are evaluated at once."""

MOST_GPUS = 128
"""Shares of a model that llama.cpp may read, one for each GPU."""


class NoLogitsError(UnsupportedModelError):
    """The model computes no logits, as encoders."""


class Context:
    """A model and its context, which holds one text at a time. Its memory is freed by :meth:`close`.

    Attributes: ``path``, the model's file in messages; ``observer``, which sees the inputs of matrices;
    ``vocabulary``, llama.cpp's pointer; ``n_vocab``, tokens in it; ``n_ctx``, the longest text in tokens;
    ``batch``, tokens that are evaluated at once; ``reads_whole_texts``, whether a text must be evaluated at
    once, because its tokens see later ones or earlier ones are not kept; ``reader``, the sequence that reads
    the text.
    """

    def __init__(
        self,
        lib: ctypes.CDLL,
        offsets: StructOffsets,
        path: Path,
        *,
        copy: TemporaryDirectory[str] | None,
        tensors: frozenset[str],
        n_ctx: int,
        threads: int,
        gpu_layers: int | None,
        tensor_split: Sequence[float],
        causal: bool,
    ) -> None:
        """Load the model ``path``, or the file with the same name in the folder ``copy``.

        ``tensors`` are the names of the tensors whose inputs can be seen. ``causal`` is what the file says of
        whether tokens see no later ones. The folder is removed in the end. Raises
        :class:`UnsupportedModelError` if llama.cpp refuses the model, or if it has an encoder and a decoder.
        """
        self.path, self.n_ctx, self.batch = path, n_ctx, min(BATCH, n_ctx)
        self._lib: Any = lib
        file = path if copy is None else Path(copy.name) / path.name
        split = (c_float * MOST_GPUS)(*tensor_split) if tensor_split else None
        begin_work(lib, str(path))
        params = model_params(lib, gpu_layers, split)
        model = self._model = lib.llama_model_load_from_file(os.fsencode(file), params)
        if not model:
            raise UnsupportedModelError(f"{path}: llama.cpp does not load it: {logged_errors()}")
        self._close = weakref.finalize(self, lib.llama_model_free, model)
        self.observer = Observer(TensorReader(lib, offsets), offsets, tensors)
        self._callback = EvalCallback(self.observer.callback)  # kept, because the context calls it
        is_encoder: bool = lib.llama_model_has_encoder(model)
        if is_encoder and lib.llama_model_has_decoder(model):
            raise UnsupportedModelError(
                f"{path}: the model has an encoder and a decoder, which q4hifi does not run;"
                " quantize it without an importance matrix"
            )
        self._evaluate = lib.llama_encode if is_encoder else lib.llama_decode
        self._begin(offsets)
        self.reads_whole_texts: bool = is_encoder or not (
            self._memory and is_causal(lib, model, self._context, stored=causal)
        )
        if self.reads_whole_texts and self.batch < n_ctx:
            lib.llama_free(self._context)
            self.batch = n_ctx
            self._begin(offsets)
        self._close.detach()
        self._close = weakref.finalize(self, _free, os.getpid(), lib, self._context, model, copy)
        lib.llama_set_n_threads(self._context, threads, threads)
        self.vocabulary: int = lib.llama_model_get_vocab(model)
        self.n_vocab: int = lib.llama_vocab_n_tokens(self.vocabulary)
        self.reader: object = None

    def _begin(self, offsets: StructOffsets) -> None:
        """Make the context, with room for ``batch`` tokens at once."""
        params = context_params(self._lib, offsets, self.n_ctx, self.batch, self._callback)
        self._context: int = self._lib.llama_init_from_model(self._model, params)
        if not self._context:
            errors = logged_errors()
            draft = "; it is a draft model: quantize it without an importance matrix"
            raise UnsupportedModelError(
                f"{self.path}: llama.cpp makes no context of {self.n_ctx} tokens: {errors}"
                + draft * ("ctx_other" in errors)
            )
        # a model without attention to earlier tokens has none
        self._memory: int | None = self._lib.llama_get_memory(self._context)

    def close(self) -> None:
        """Free model and context, which cannot be used afterwards."""
        self._close()

    def check_open(self) -> None:
        """Raise :class:`BadOptionError` if it is closed."""
        if not self._close.alive:
            raise BadOptionError(f"{self.path}: the model is closed; open it again")

    def clear(self) -> None:
        """Remove all tokens."""
        if self._memory:
            self._lib.llama_memory_clear(self._memory, True)

    def cut(self, length: int) -> bool:
        """Remove all but the first ``length`` tokens. Return False if the model's memory cannot be cut."""
        return not self._memory or bool(self._lib.llama_memory_seq_rm(self._memory, 0, length, -1))

    def decode(
        self, tokens: npt.NDArray[np.int32], wanted: npt.NDArray[np.int8], sums: LlamaInputSums | None
    ) -> None:
        """Evaluate at most ``batch`` tokens, and those logits that are ``wanted`` (1), not others (0).

        Raises :class:`UnsupportedModelError` if llama.cpp fails.
        """
        n = len(tokens)
        array = (c_int32 * n)(*tokens.tolist())
        batch = Batch(n, array, None, None, None, None, (c_int8 * n)(*wanted.tolist()))
        begin_work(self._lib, str(self.path))
        self.observer.begin(sums)
        status = self._evaluate(self._context, batch)
        self.observer.end()
        if status:
            raise UnsupportedModelError(
                f"{self.path}: llama.cpp cannot evaluate it (status {status}): {logged_errors()}"
            )

    def logits(self, n: int) -> Logits:
        """Return the ``n`` logits that :meth:`decode` was asked for, float32 [n, n_vocab]: no copy.

        Raises :class:`NoLogitsError` if the model computes none.
        """
        if values := self._lib.llama_get_logits(self._context):
            rows = np.ctypeslib.as_array(values, (n, self.n_vocab))
            if rows.any():  # for models that compute none, all are 0
                return rows
        raise NoLogitsError(
            f"{self.path}: the model is an encoder, which predicts no tokens; 'q4hifi imatrix' and"
            " 'q4hifi quantize' can be used with it"
        )


def _free(process: int, lib: Any, context: int, model: int, copy: TemporaryDirectory[str] | None) -> None:
    if os.getpid() != process:
        return  # a forked process has no threads of the library, and the copy is its parent's
    lib.llama_free(context)
    lib.llama_model_free(model)
    if copy is not None:
        copy.cleanup()
