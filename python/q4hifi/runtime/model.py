"""Running models: :class:`Model`."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _core
from ..codec.core_errors import core_errors
from ..codec.model_file import ErrorsAt, ModelFile
from ..codec.quantized_tensor import QuantizedTensor
from ..codec.rows import cpu_features
from ..errors import BadOptionError, UnsupportedModelError
from ..files.closing import Closing
from ..formats.tensor_names import EMBEDDINGS, WRITERS, is_tied, role_of
from ..formats.types import Q4_HIFI, TYPES
from ..plan.model_shape import check_context
from ..threads import thread_count
from .architecture import ROUTER, SUPPORTED, RoleAndLayer, config_of, role_and_layer
from .loading import MappedFiles, frequency_factors, load_weights
from .model_input_sums import ModelInputSums
from .sampler import Sampler
from .sequence import Floats, Sequence, TokensLike, damaged, token_array
from .tokenizer import Tokenizer


class Trace:
    """The residual stream of a text before and after each layer: the result of :meth:`Model.trace`."""

    def __init__(self, core: _core.Trace) -> None:
        """Use :meth:`Model.trace`."""
        self.core = core


class Trial:
    """A text that a model reads with some matrices replaced: the result of :meth:`Model.trial`."""

    def __init__(self, model: Model, tokens: TokensLike) -> None:
        """Use :meth:`Model.trial`."""
        self._model, self._tokens = model, tokens
        self._trace = model.trace(tokens)
        self.reference: Floats = model.resume(self._trace, model.n_layer)
        """The logits of the model itself, float32 [n_tokens, n_vocab]."""

    @property
    def used(self) -> Collection[str]:
        """The names of the matrices that can be replaced."""
        return self._model.matrices

    @property
    def writers(self) -> Collection[str]:
        """The names of the matrices whose outputs are added to the residual stream."""
        return {name for name in self._model.matrices if role_of(name) in WRITERS}

    def logits(self, replaced: Mapping[str, QuantizedTensor]) -> Floats:
        """Return the logits with the matrices ``replaced``, by name. Only the layers from the first one on
        run."""
        model, layers = self._model, [self._model.first_layer(name) for name in replaced]
        for name, tensor in replaced.items():
            model = model.replaced(name, tensor)
        first = min((layer for layer in layers if layer is not None), default=0)
        return model.logits(self._tokens) if None in layers else model.resume(self._trace, first)


class Model(Closing):
    """A language model on the CPU.

    Attributes: ``path`` of its file, or of its first shard; ``metadata`` of the file; ``n_vocab``, tokens in
    the vocabulary; ``n_layer``, number of layers; ``n_ctx``, the longest sequence in tokens. Several threads
    may use a model at the same time.
    """

    engine = "q4hifi"
    """The name of the engine: our own runtime."""

    library: Path | None = None
    """No library of llama.cpp runs the model."""

    has_fisher = True
    """:meth:`fisher` can be called; this is not so for all engines."""

    has_logits = True
    """The model predicts tokens; models of other engines may be encoders, which do not."""

    reads_whole_texts = False
    """A text can be read in parts, because no token sees later ones; this is not so for all engines."""

    def __init__(
        self,
        path: str | os.PathLike[str] | ModelFile,
        *,
        threads: int | None = None,
        n_ctx: int | None = None,
        expert_correlations: bool = False,
    ) -> None:
        """Load a GGUF model from its file, from any of its shards, or from a file that is open already.

        ``threads``: number of threads; None or 0 means one per core, and there are never more than that.
        ``n_ctx``: the longest sequence in tokens; None means the context length of the training.
        ``expert_correlations``: let :meth:`input_sums` sum products also for experts that have inputs of
        their own; that takes n_in² / 2 floats for each expert.

        Weights are mapped from the file, not copied, so do not write to it while the model is used. If the
        file becomes shorter, every method that runs the model raises :class:`BadFileError`.

        Raises :class:`BadFileError` for a damaged file or one without a needed tensor,
        :class:`UnsupportedModelError` for a model that cannot be run, and :class:`BadOptionError` for
        ``n_ctx`` below 1 or above 2^24.
        """
        check_context(n_ctx)
        opened = nullcontext(path) if isinstance(path, ModelFile) else ModelFile.open(path)
        with opened as file:
            file.check_has_weights()
            self.path: Path = file.paths[0]
            self.metadata: Mapping[str, Any] = file.metadata
            with file.errors_at(EMBEDDINGS):
                embeddings = file.tensors.get(EMBEDDINGS)
                if embeddings is None or len(embeddings.shape) != 2:
                    raise UnsupportedModelError(
                        f"it is missing or not a matrix, so this is not a language model; {SUPPORTED}"
                    )
            with ErrorsAt(f"{self.path}: "):
                config = config_of(file.metadata, embeddings.n_rows, frequency_factors(file))
            self._weights = MappedFiles(file.gguf.map())
            with self._weights.intact():
                self._core = load_weights(file, config, thread_count(threads), self._weights.mappings)
            self._matrices = {name: use for name in file.tensors if (use := role_and_layer(name))}
            self.matrices: Collection[str] = frozenset(
                name
                for name, (role, _) in self._matrices.items()
                if len(file.tensors[name].shape) > 1 and role != ROUTER
            )
            """The names of the tensors that recipes quantize: matrices, and stacks of matrices (experts)."""
        self._expert_correlations = expert_correlations
        self.n_vocab: int = config.n_vocab
        self.n_layer: int = config.n_layer
        self.n_ctx: int = n_ctx or config.n_context

    @property
    def backend(self) -> str:
        """The instruction set in use."""
        return cpu_features().active

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model's vocabulary; it is built at the first use."""
        with ErrorsAt(f"{self.path}: "):
            return Tokenizer.from_metadata(self.metadata)

    def close(self) -> None:
        """Do nothing: the memory is freed with the last reference. Models of other engines have this, too."""

    def sequence(self) -> Sequence:
        """Return an empty sequence."""
        return Sequence(
            self._core.sequence(),
            self._weights,
            path=self.path,
            n_vocab=self.n_vocab,
            n_ctx=self.n_ctx,
        )

    def logits(self, tokens: TokensLike) -> Floats:
        """Return the logits after each token of a text, float32 [n_tokens, n_vocab]."""
        logits = self.sequence().evaluate(tokens, "all")
        assert logits is not None
        return logits

    def tokenize(
        self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Return the tokens of a text; see :meth:`Tokenizer.encode`."""
        return self.tokenizer.encode(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: Iterable[int], *, skip_special: bool = False) -> str:
        """Return the text of tokens; see :meth:`Tokenizer.decode`."""
        return self.tokenizer.decode(tokens, skip_special=skip_special)

    def generate_tokens(
        self,
        tokens: TokensLike,
        *,
        n: int | None = None,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        seed: int | None = None,
        stop: Collection[int] = (),
    ) -> Iterator[int]:
        """Yield the ids of the tokens that follow ``tokens``, one by one.

        Generation ends after ``n`` tokens, before a token in ``stop``, or when the context is full. The
        options are those of llama.cpp, with the same tokens for the same seed. ``temperature`` 0 always
        takes the most likely token. ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 switch these filters off.
        ``seed`` None means a random seed.
        """
        sampler = Sampler(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
        sequence = self.sequence()
        logits = sequence.evaluate(tokens)
        return self._continue(sequence, logits, sampler, n, frozenset(stop))

    def _continue(
        self,
        sequence: Sequence,
        logits: Floats | None,
        sampler: Sampler,
        n: int | None,
        stop: frozenset[int],
    ) -> Iterator[int]:
        done = 0
        while logits is not None and (n is None or done < n):
            token = sampler.sample(logits)
            if token in stop:
                return
            yield token
            done += 1
            room = sequence.length < self.n_ctx and (n is None or done < n)
            logits = sequence.evaluate([token]) if room else None

    def input_sums(self) -> ModelInputSums:
        """Return empty sums over the matrices' inputs; :meth:`Sequence.evaluate` adds to them."""
        return ModelInputSums(self._core.collector(self._expert_correlations), self._matrices)

    def replaced(self, name: str, tensor: QuantizedTensor) -> Model:
        """Return a copy of this model with one matrix replaced; it shares all others with this one.

        Tied embeddings are replaced in both uses. Raises :class:`BadOptionError` if ``name`` is not a matrix
        of the model, or if ``tensor`` has another shape or a type that cannot be run.
        """
        uses = self._uses(name)
        parts = [part.copy() for part in tensor.parts]
        for part in parts:
            part.flags.writeable = False
        kind = TYPES["Q4_K"] if tensor.type == Q4_HIFI else tensor.type
        model = copy.copy(self)
        with ErrorsAt(f"{self.path}: {name} cannot be replaced: "), core_errors(BadOptionError):
            for role, layer in uses:
                entry = (role, layer, kind.id, tensor.shape[-1], tensor.outliers, parts)
                model._core = model._core.replaced(entry)
        return model

    def _uses(self, name: str) -> list[RoleAndLayer]:
        """Return the roles and layers in which a matrix is used: two for tied embeddings."""
        if name not in self._matrices:
            raise BadOptionError(f"{self.path}: there is no tensor {name}")
        uses = [self._matrices[name]]
        if name == EMBEDDINGS and is_tied(self._matrices):
            uses.append(("output", None))
        return uses

    def first_layer(self, name: str) -> int | None:
        """Return the layer of a matrix: None for the embeddings, ``n_layer`` for the output matrix.

        A change of the matrix changes nothing before this layer; see :meth:`resume`.
        """
        role, layer = self._uses(name)[0]
        return self.n_layer if role == "output" else layer

    def trial(self, tokens: TokensLike) -> Trial:
        """Begin a trial of replaced weights on a text of at most 512 tokens; it raises as :meth:`trace`
        does."""
        return Trial(self, tokens)

    def trace(self, tokens: TokensLike) -> Trace:
        """Evaluate a text of at most 512 tokens, and keep the residual stream before and after each layer.

        The result holds n_layer + 1 vectors per token, float32 [n_embd]; it is the input of :meth:`resume`.
        Raises :class:`BadOptionError` for more tokens, and for ids that are not in the vocabulary.
        """
        array = token_array(tokens, self.n_vocab)
        with core_errors(BadOptionError), self._weights.intact():
            return Trace(self._core.trace(array))

    def resume(self, trace: Trace, layer: int) -> Floats:
        """Return the logits of a traced text, float32 [n_tokens, n_vocab], evaluated from ``layer`` on.

        The layers before ``layer`` are taken from the trace. So the result is right for a model that
        differs from the traced one only in ``layer`` and above. With ``n_layer``, only the output matrix is
        evaluated. Raises :class:`BadOptionError` if there is no such layer, or if the trace is of a model
        of another shape.
        """
        with ErrorsAt(f"{self.path}: "), core_errors(BadOptionError), self._weights.intact():
            return self._core.resume(trace.core, layer)

    def fisher(
        self, tokens: TokensLike, *, first: int = 0, seed: int = 0
    ) -> dict[str, npt.NDArray[np.float64]]:
        """Return the Fisher information of every matrix by columns, on a text of at most 512 tokens.

        The result maps the name of each matrix to a float64 array [row length]. A column's value is
        Σ (g w)², summed over the rows and over the predicted tokens, where w is a weight and g the gradient
        of a token's log-likelihood. The predictions after the tokens from index ``first`` on count. Their
        target tokens are drawn from the model's own predictions, with ``seed``. Half of an array's sum is
        the KL divergence, in nats, of errors that are as large as the weights (``src/model/fisher``).
        Tied embeddings have the sum of both uses, and the experts of a layer have the sum over all of them.

        Raises :class:`BadOptionError` as :meth:`trace` does, and :class:`NotFiniteError` if the model's
        logits or gradients are not finite.
        """
        array = token_array(tokens, self.n_vocab)
        with (
            ErrorsAt(f"{self.path}: "),
            core_errors(BadOptionError, bad_model=damaged),
            self._weights.intact(),
        ):
            core = self._core.fisher(array, first, seed)
        found = {}
        for name in self._matrices:
            parts = [part for use in self._uses(name) if (part := core.of(*use)) is not None]
            if parts:
                found[name] = np.sum(parts, axis=0)
        return found
