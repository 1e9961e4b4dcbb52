"""Models that llama.cpp runs: :class:`LlamaModel`."""

from __future__ import annotations

import os
import weakref
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from ctypes import c_float, c_int8, c_int32
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...codec.input_correlations import are_correlated
from ...codec.model_file import ModelFile
from ...codec.quantized_tensor import QuantizedTensor
from ...codec.rows import encode
from ...errors import BadOptionError, UnsupportedModelError
from ...files.closing import Closing
from ...formats.layout import Format
from ...formats.tensor_names import is_quantizable
from ...formats.types import F32
from ...plan.model_shape import ModelShape, check_context, trained_context
from ...threads import thread_count, used_threads
from ...wording import counted
from ..protocol import Logits, Tokens
from .abi import StructOffsets, context_params, model_params
from .graph import GraphNotes
from .inputs import Correlating, LlamaInputSums, Observer
from .library import (
    Batch,
    EvalCallback,
    add_rpc_servers,
    begin_work,
    library_path,
    load_library,
    logged_errors,
)
from .readable import has_q4_hifi, write_readable
from .self_test import checked_offsets
from .tensors import TensorReader
from .tokenizer import LlamaTokenizer

BATCH = 512
"""Tokens that are evaluated at once."""

MOST_GPUS = 128
"""Shares of a model that llama.cpp may read, one for each GPU."""

NOT_MULTIPLIED = frozenset({"I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"})
"""Types without a product of matrices in ggml, which would end the process."""

DEFAULT_CONTEXT = 4096
"""The longest context that is reserved if the caller does not say how long it must be."""


class LlamaModel(Closing):
    """A language model of any architecture, run by llama.cpp. It is used like :class:`q4hifi.Model`.

    A model with Q4_HIFI tensors, which llama.cpp does not know, is run from a temporary copy with these
    tensors in F16.

    Attributes: ``path`` of its file, or of its first shard; ``metadata`` of the file; ``n_vocab``, tokens in
    the vocabulary; ``n_ctx``, the longest text in tokens; ``tokenizer``, which is llama.cpp's; ``library``,
    the file of llama.cpp. Only one thread may use a model at a time, and it reads one text at a time: a new
    :meth:`sequence` ends the one before. :meth:`close` frees the memory, also at the end of a ``with`` block.
    """

    engine = backend = "llama.cpp"
    """The name of the engine."""

    has_fisher = False
    """:meth:`fisher` cannot be called, because llama.cpp has no backward pass for it."""

    def __init__(
        self,
        path: str | os.PathLike[str] | ModelFile,
        *,
        threads: int | None = None,
        n_ctx: int | None = None,
        library: str | os.PathLike[str] | None = None,
        gpu_layers: int | None = None,
        tensor_split: Sequence[float] = (),
        rpc: Sequence[str] = (),
        expert_correlations: bool = False,
        _offsets: StructOffsets | None = None,
    ) -> None:
        """Load a GGUF model, or a split model from any of its shards. The path, or the open file, names it.

        ``threads``: number of threads; None or 0 means one per core, and there are never more than that.
        ``n_ctx``: the longest text in tokens; None means the context length of the training, but at most
        4096. ``library``: the file of llama.cpp; None means that of the variable LLAMA_LIBRARY, or of the
        package xllamacpp. ``gpu_layers`` and ``tensor_split``: layers on a GPU, and the share of each GPU, as
        llama.cpp's options ``-ngl`` and ``-ts``; they have no effect in a library without GPU. ``rpc``:
        RPC servers to compute on, each "HOST:PORT".
        ``expert_correlations``: let :meth:`input_sums` sum products also for experts that have inputs of
        their own; that takes n_in² / 2 floats for each expert.

        Raises :class:`UnavailableError` if there is no usable llama.cpp, :class:`BadFileError` for a damaged
        file, and :class:`UnsupportedModelError` if llama.cpp refuses the model.
        """
        check_context(n_ctx)
        if len(tensor_split) > MOST_GPUS:
            raise BadOptionError(f"`tensor_split` has {len(tensor_split)} shares; give at most {MOST_GPUS}")
        self.library: Path = library_path(library)
        lib = self._lib = load_library(self.library)
        offsets = _offsets or checked_offsets(self.library)
        add_rpc_servers(lib, self.library, rpc)
        with nullcontext(path) if isinstance(path, ModelFile) else ModelFile.open(path) as file:
            self.path: Path = file.paths[0]
            self.metadata: Mapping[str, Any] = file.metadata
            shape = ModelShape.from_metadata(file.metadata)
            shapes = {t.name: t.shape for t in file.tensors.values() if len(t.shape) > 1}
            self._shapes = shapes
            self._formats = {name: file.tensors[name].format for name in shapes}
            self.n_layer: int = shape.n_layer or 0
            loaded, folder = self.path, None
            if has_q4_hifi(file):
                folder = TemporaryDirectory(prefix="q4hifi-")
                loaded = Path(folder.name) / self.path.name
                write_readable(file, loaded, threads=thread_count(threads))
        self.n_ctx: int = n_ctx or min(DEFAULT_CONTEXT, trained_context(self.metadata) or DEFAULT_CONTEXT)
        self.matrices: Collection[str] = frozenset(
            name for name, dims in shapes.items() if is_quantizable(name, dims, shape.architecture)
        )
        """The names of the tensors that recipes quantize: matrices, and stacks of matrices (experts)."""
        for name in self.matrices:
            if (kind := self._formats[name].type).name in NOT_MULTIPLIED:
                raise UnsupportedModelError(
                    f"{self.path}: {name} is a matrix of {kind}, which llama.cpp does not multiply by;"
                    " convert the model to F16, BF16 or F32"
                )
        self._correlating = Correlating(
            frozenset(name for name in self.matrices if are_correlated(name, shapes[name][0])),
            expert_correlations,
        )
        self._threads = used_threads(threads)
        split = (c_float * MOST_GPUS)(*tensor_split) if tensor_split else None
        begin_work(lib, str(self.path))
        model = lib.llama_model_load_from_file(os.fsencode(loaded), model_params(lib, gpu_layers, split))
        if not model:
            raise UnsupportedModelError(f"{self.path}: llama.cpp does not load it: {logged_errors()}")
        self._close = weakref.finalize(self, lib.llama_model_free, model)
        reader = TensorReader(lib, offsets)
        self._observer = Observer(reader, offsets, frozenset(shapes))
        self._callback = EvalCallback(self._observer.callback)  # kept, because the context calls it
        self._batch = min(BATCH, self.n_ctx)
        params = context_params(lib, offsets, self.n_ctx, self._batch, self._callback)
        context = lib.llama_init_from_model(model, params)
        if not context:
            raise UnsupportedModelError(
                f"{self.path}: llama.cpp makes no context of {self.n_ctx} tokens: {logged_errors()}"
            )
        self._close.detach()
        self._close = weakref.finalize(self, _free, lib, context, model, folder)
        self._context, self._model = context, model
        self._memory = lib.llama_get_memory(context)
        lib.llama_set_n_threads(context, self._threads, self._threads)
        self.n_vocab: int = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        self._current: LlamaSequence | None = None

    @cached_property
    def tokenizer(self) -> LlamaTokenizer:
        """llama.cpp's tokenizer for this model."""
        return LlamaTokenizer(self._lib, self._lib.llama_model_get_vocab(self._model), str(self.path))

    def sequence(self) -> LlamaSequence:
        """Return an empty sequence. Sequences that were returned before can no longer be used."""
        self._check_open()
        if self._memory:  # a model without attention to earlier tokens has none
            self._lib.llama_memory_clear(self._memory, True)
        self._current = LlamaSequence(self)
        return self._current

    def logits(self, tokens: npt.ArrayLike) -> Logits:
        """Return the logits after each token of a text, float32 [n_tokens, n_vocab]."""
        logits = self.sequence().evaluate(tokens, "all")
        assert logits is not None
        return logits

    def first_layer(self, name: str) -> int | None:
        """Return None: llama.cpp always evaluates the whole model."""
        return None

    def trial(self, tokens: Tokens) -> LlamaTrial:
        """Begin a trial of replaced weights on a text."""
        return LlamaTrial(self, tokens)

    def input_sums(self) -> LlamaInputSums:
        """Return empty sums over the matrices' inputs; :meth:`LlamaSequence.evaluate` adds to them."""
        shapes = {name: self._shapes[name] for name in self.matrices}
        return LlamaInputSums(self._correlating, self._correlating.expected_bytes(shapes), self._threads)

    def fisher(self, tokens: Tokens, *, first: int = 0, seed: int = 0) -> Mapping[str, Any]:
        """Raise :class:`UnsupportedModelError`: llama.cpp has no backward pass for this."""
        raise UnsupportedModelError(
            f"{self.path}: llama.cpp measures no Fisher information; use `fisher_chunks=0`"
        )

    def close(self) -> None:
        """Free the model. It cannot be used afterwards."""
        self._close()

    def _check_open(self) -> None:
        if not self._close.alive:
            raise BadOptionError(f"{self.path}: the model is closed; open it again")

    def _decode(
        self, tokens: npt.NDArray[np.int32], wanted: npt.NDArray[np.int8], sums: LlamaInputSums | None
    ) -> None:
        n = len(tokens)
        array = (c_int32 * n)(*tokens.tolist())
        batch = Batch(n, array, None, None, None, None, (c_int8 * n)(*wanted.tolist()))
        begin_work(self._lib, str(self.path))
        self._observer.begin(sums)
        status = self._lib.llama_decode(self._context, batch)
        self._observer.end()
        if status:
            raise UnsupportedModelError(
                f"{self.path}: llama.cpp cannot evaluate it (status {status}): {logged_errors()}"
            )


def _free(lib: Any, context: int, model: int, folder: TemporaryDirectory[str] | None) -> None:
    lib.llama_free(context)
    lib.llama_model_free(model)
    if folder is not None:
        folder.cleanup()


class LlamaTrial:
    """A text that a model reads with some matrices replaced: the result of :meth:`LlamaModel.trial`."""

    def __init__(self, model: LlamaModel, tokens: Tokens) -> None:
        """Use :meth:`LlamaModel.trial`."""
        self._model, self._tokens = model, tokens
        self._notes = GraphNotes(model._observer.reader, model._observer.names)
        model._observer.notes = self._notes
        try:
            self.reference: Logits = model.logits(tokens)
        finally:
            model._observer.notes = None
        """The logits of the model itself, float32 [n_tokens, n_vocab]."""

    @property
    def used(self) -> Collection[str]:
        """The tensors that this text is multiplied with, which can be replaced."""
        return self._notes.addresses.keys()

    @property
    def writers(self) -> Collection[str]:
        """The matrices whose outputs are added to the residual stream, as far as the graph shows them."""
        return self._notes.writers & frozenset(self._model.matrices)

    def logits(self, replaced: Mapping[str, QuantizedTensor]) -> Logits:
        """Return the logits with the tensors ``replaced``, by name.

        Raises :class:`UnsupportedModelError` for a tensor that llama.cpp did not use for this text, or keeps
        in another type than the file.
        """
        model = self._model
        with ExitStack() as stack:
            for name, tensor in replaced.items():
                address = self._notes.addresses.get(name)
                if address is None:
                    raise UnsupportedModelError(f"{model.path}: llama.cpp does not multiply with {name}")
                data = _as_stored(tensor, model._formats[name])
                stack.enter_context(model._observer.reader.data_replaced(address, data))
            return model.logits(self._tokens)


def _as_stored(tensor: QuantizedTensor, form: Format) -> npt.NDArray[np.uint8]:
    """Return weights in the type in which the model's file has them."""
    if tensor.format == form and not form.is_split:
        return np.ascontiguousarray(tensor.data).reshape(-1)
    values = np.ascontiguousarray(tensor.dequantize().reshape(-1, tensor.shape[-1]))
    parts, _ = encode((values.reshape(-1).view(np.uint8),), Format(F32), form, tensor.shape[-1])
    return parts[0]


class LlamaSequence:
    """Tokens that a model has read, with llama.cpp's memory of them."""

    def __init__(self, model: LlamaModel) -> None:
        """Use :meth:`LlamaModel.sequence`."""
        self._model = model
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
        lib, memory = self._model._lib, self._model._memory
        if length == 0 and memory:
            lib.llama_memory_clear(memory, True)
        elif length < self.length and memory and not lib.llama_memory_seq_rm(memory, 0, length, -1):
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
        context holds, and if the model has begun another sequence.
        """
        self._check()
        model = self._model
        ids = _checked(tokens, model.n_vocab)
        if self.length + len(ids) > model.n_ctx:
            raise BadOptionError(
                f"{counted(self.length, 'token')} and {len(ids)} more are too many for a context of"
                f" {model.n_ctx}"
            )
        found: list[Logits] = []
        for first in range(0, len(ids), model._batch):
            part = ids[first : first + model._batch]
            is_last = first + len(part) == len(ids)
            # without a wanted output of a token, the last layer leaves it out, and its inputs are not seen
            wanted = np.full(len(part), logits == "all" or sums is not None, np.int8)
            wanted[-1] |= is_last and logits == "last"
            model._decode(part, wanted, sums)
            self.length += len(part)
            if logits == "all" or (logits == "last" and is_last):
                rows = np.ctypeslib.as_array(
                    model._lib.llama_get_logits(model._context), (int(wanted.sum()), model.n_vocab)
                )
                found.append((rows if logits == "all" else rows[-1:]).copy())
        if logits == "none":
            return None
        return found[-1][-1] if logits == "last" else np.concatenate(found)

    def _check(self) -> None:
        self._model._check_open()
        if self._model._current is not self:
            raise BadOptionError(
                f"{self._model.path}: the model has begun another text since; it reads one at a time"
            )


def _checked(tokens: npt.ArrayLike, n_vocab: int) -> npt.NDArray[np.int32]:
    array = np.asarray(tokens)
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
        raise BadOptionError(f"tokens must be a list of ids, at least one; this has the shape {array.shape}")
    if array.min() < 0 or array.max() >= n_vocab:
        raise BadOptionError(f"not all tokens are in the vocabulary, which has {n_vocab}")
    return np.ascontiguousarray(array, np.int32)
