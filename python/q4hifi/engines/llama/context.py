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
from .library import Batch, EvalCallback, begin_work, logged_errors
from .tensors import TensorReader

BATCH = 512
"""Tokens that are evaluated at once."""

MOST_GPUS = 128
"""Shares of a model that llama.cpp may read, one for each GPU."""


class Context:
    """A model and its context, which holds one text at a time. Its memory is freed by :meth:`close`.

    Attributes: ``path``, the model's file in messages; ``observer``, which sees the inputs of matrices;
    ``vocabulary``, llama.cpp's pointer; ``n_vocab``, tokens in it; ``n_ctx``, the longest text in tokens;
    ``batch``, tokens that are evaluated at once; ``reader``, the sequence that reads the text.
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
    ) -> None:
        """Load the model ``path``, or the file with the same name in the folder ``copy``.

        ``tensors`` are the names of the tensors whose inputs can be seen. The folder is removed in the end.
        Raises :class:`UnsupportedModelError` if llama.cpp refuses the model.
        """
        self.path, self.n_ctx, self.batch = path, n_ctx, min(BATCH, n_ctx)
        self._lib: Any = lib
        file = path if copy is None else Path(copy.name) / path.name
        split = (c_float * MOST_GPUS)(*tensor_split) if tensor_split else None
        begin_work(lib, str(path))
        model = lib.llama_model_load_from_file(os.fsencode(file), model_params(lib, gpu_layers, split))
        if not model:
            raise UnsupportedModelError(f"{path}: llama.cpp does not load it: {logged_errors()}")
        self._close = weakref.finalize(self, lib.llama_model_free, model)
        self.observer = Observer(TensorReader(lib, offsets), offsets, tensors)
        self._callback = EvalCallback(self.observer.callback)  # kept, because the context calls it
        params = context_params(lib, offsets, n_ctx, self.batch, self._callback)
        self._context = lib.llama_init_from_model(model, params)
        if not self._context:
            raise UnsupportedModelError(
                f"{path}: llama.cpp makes no context of {n_ctx} tokens: {logged_errors()}"
            )
        self._close.detach()
        self._close = weakref.finalize(self, _free, lib, self._context, model, copy)
        # a model without attention to earlier tokens has none
        self._memory = lib.llama_get_memory(self._context)
        lib.llama_set_n_threads(self._context, threads, threads)
        self.vocabulary: int = lib.llama_model_get_vocab(model)
        self.n_vocab: int = lib.llama_vocab_n_tokens(self.vocabulary)
        self.reader: object = None

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
        status = self._lib.llama_decode(self._context, batch)
        self.observer.end()
        if status:
            raise UnsupportedModelError(
                f"{self.path}: llama.cpp cannot evaluate it (status {status}): {logged_errors()}"
            )

    def logits(self, n: int) -> Logits:
        """Return the ``n`` logits that :meth:`decode` was asked for, float32 [n, n_vocab]: no copy."""
        return np.ctypeslib.as_array(self._lib.llama_get_logits(self._context), (n, self.n_vocab))


def _free(lib: Any, context: int, model: int, copy: TemporaryDirectory[str] | None) -> None:
    lib.llama_free(context)
    lib.llama_model_free(model)
    if copy is not None:
        copy.cleanup()
