"""Models that llama.cpp runs: :class:`LlamaModel`."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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
from ...gguf_io.contents import check_is_whole_model
from ...plan.model_shape import MAX_CONTEXT, ModelShape, check_context, trained_context, unused_layers
from ...threads import thread_count, used_threads
from ..protocol import Logits, Tokens
from .abi import StructOffsets
from .context import MOST_GPUS, Context, NoLogitsError
from .graph import GraphNotes
from .inputs import Correlating, LlamaInputSums
from .library import add_rpc_servers, library_path, load_library
from .readable import has_q4_hifi, write_readable
from .self_test import checked_offsets
from .sequence import LlamaSequence
from .tokenizer import LlamaTokenizer

NOT_MULTIPLIED = frozenset({"I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"})
"""Types without a product of matrices in ggml, which would end the process."""

POSITIONS = "position_embd.weight"
"""The tensor with an embedding for each position, in models that have it: they read no longer text."""

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
            file.check_has_weights()
            check_is_whole_model(file.metadata, self.path)
            self.metadata: Mapping[str, Any] = file.metadata
            shape = ModelShape.from_metadata(file.metadata)
            shapes = {t.name: t.shape for t in file.tensors.values() if len(t.shape) > 1}
            self._shapes, names = shapes, frozenset(file.tensors)
            self._formats = {name: file.tensors[name].format for name in shapes}
            self.n_layer: int = (shape.n_layer or 0) - unused_layers(file.metadata)
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
            most = shapes[POSITIONS][1] if POSITIONS in shapes else MAX_CONTEXT
            if n_ctx is not None and n_ctx > most:
                raise BadOptionError(
                    f"{self.path}: the model has embeddings for {most} positions, so it reads no text of"
                    f" {n_ctx} tokens; give a smaller `n_ctx`"
                )
            trained = trained_context(self.metadata) or DEFAULT_CONTEXT
            self.n_ctx: int = n_ctx or min(DEFAULT_CONTEXT, trained, most)
            copy = _readable_copy(file, threads)
        self._correlating = Correlating(
            frozenset(name for name in self.matrices if are_correlated(name, shapes[name][0])),
            expert_correlations,
        )
        self._threads = used_threads(threads)
        self._context = Context(
            lib,
            offsets,
            self.path,
            copy=copy,
            tensors=names,
            n_ctx=self.n_ctx,
            threads=self._threads,
            gpu_layers=gpu_layers,
            tensor_split=tensor_split,
            causal=self.metadata.get(f"{shape.architecture}.attention.causal") is not False,
        )
        self.reads_whole_texts: bool = self._context.reads_whole_texts
        """Whether a text must be evaluated at once: its tokens see later ones, or earlier ones are not
        kept."""
        self.n_vocab: int = self._context.n_vocab

    @cached_property
    def has_logits(self) -> bool:
        """Whether the model predicts tokens. Encoders do not; the first use evaluates one token."""
        try:
            self.sequence().evaluate([0])
        except NoLogitsError:
            return False
        return True

    @cached_property
    def tokenizer(self) -> LlamaTokenizer:
        """llama.cpp's tokenizer for this model."""
        return LlamaTokenizer(self._lib, self._context.vocabulary, str(self.path))

    def sequence(self) -> LlamaSequence:
        """Return an empty sequence. Sequences that were returned before can no longer be used."""
        self._context.check_open()
        self._context.clear()
        sequence = self._context.reader = LlamaSequence(self._context)
        return sequence

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
        self._context.close()


def _readable_copy(file: ModelFile, threads: int | None) -> TemporaryDirectory[str] | None:
    """Return a folder with a copy of the same name that llama.cpp reads; None if it reads the file."""
    if not has_q4_hifi(file):
        return None
    folder = TemporaryDirectory(prefix="q4hifi-")
    write_readable(file, Path(folder.name) / file.paths[0].name, threads=thread_count(threads))
    return folder


class LlamaTrial:
    """A text that a model reads with some matrices replaced: the result of :meth:`LlamaModel.trial`."""

    def __init__(self, model: LlamaModel, tokens: Tokens) -> None:
        """Use :meth:`LlamaModel.trial`."""
        self._model, self._tokens = model, tokens
        self._notes = GraphNotes(model._context.observer.reader, model._context.observer.names)
        model._context.observer.notes = self._notes
        try:
            self.reference: Logits = model.logits(tokens)
            """The logits of the model itself, float32 [n_tokens, n_vocab]."""
        finally:
            model._context.observer.notes = None

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
                stack.enter_context(model._context.observer.reader.data_replaced(address, data))
            return model.logits(self._tokens)


def _as_stored(tensor: QuantizedTensor, form: Format) -> npt.NDArray[np.uint8]:
    """Return weights in the type in which the model's file has them."""
    if tensor.format == form and not form.is_split:
        return np.ascontiguousarray(tensor.data).reshape(-1)
    values = np.ascontiguousarray(tensor.dequantize().reshape(-1, tensor.shape[-1]))
    parts, _ = encode((values.reshape(-1).view(np.uint8),), Format(F32), form, tensor.shape[-1])
    return parts[0]
