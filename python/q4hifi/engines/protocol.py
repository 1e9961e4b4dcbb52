"""What measuring and writing text need of a model, whichever engine runs it."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ..codec.quantized_tensor import QuantizedTensor

if TYPE_CHECKING:
    from ..runtime.tokenizer import TokenStream

Logits = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.uint32]


class TextTokenizer(Protocol):
    """A model's tokenizer: :class:`q4hifi.Tokenizer`, or that of another engine."""

    def encode_array(self, text: str, *, limit: int | None = ..., parse_special: bool = ...) -> Tokens:
        """Return the tokens of a text, uint32 [n], but at most the first ``limit``.

        ``parse_special`` makes text that spells a control token that token.
        """
        ...

    def encode(
        self, text: str, *, add_special: bool = ..., parse_special: bool = ..., shield: str = ...
    ) -> list[int]:
        """Return the token ids of a text (:meth:`q4hifi.Tokenizer.encode`)."""
        ...

    def shield(self, text: str) -> str:
        """Return a text in which nothing spells a control token (:meth:`q4hifi.Tokenizer.shield`)."""
        ...

    def piece(self, token: int) -> bytes:
        """Return the bytes of one token."""
        ...

    def stream(self, *, skip_special: bool = ...) -> TokenStream:
        """Return a decoder for a generated text."""
        ...

    def is_end_of_generation(self, token: int) -> bool:
        """Return whether the model ends its text with ``token``."""
        ...

    @property
    def add_bos(self) -> bool:
        """Whether a text begins with BOS."""
        ...

    @property
    def add_eos(self) -> bool:
        """Whether a text ends with EOS."""
        ...

    @property
    def bos(self) -> int | None:
        """The BOS token, or None."""
        ...

    @property
    def eos(self) -> int | None:
        """The EOS token, or None."""
        ...


class InputCollector(Protocol):
    """Adds up squares and products of the inputs of a model's matrices while the model runs.

    All mappings have tensor names as keys. A tensor has several matrices if it holds the experts of a layer.
    """

    @property
    def expected_bytes(self) -> tuple[int, int]:
        """Bytes that the sums take in memory and in a file when all matrices have been seen."""
        ...

    def take(self, other: Any) -> None:
        """Add the sums of another collector of the same model to these, and set the other's to zero."""
        ...

    def all(self) -> Mapping[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]]:
        """Return the sums of squares by input column, float64 [n_matrices, n_in], and token counts, int64.

        There is one count for each matrix.
        """
        ...

    def products(self) -> Mapping[str, npt.NDArray[np.float32]]:
        """Return the sums of products of pairs of columns, float32 [n, pairs].

        n is 1, with the inputs of all matrices together, or the number of matrices. The order of pairs is
        that of :mod:`q4hifi.codec.input_correlations`. Tensors with the same inputs appear once.
        """
        ...

    def same_inputs(self) -> Mapping[str, str]:
        """Return the name under which :meth:`products` has a tensor's products, where that is another's."""
        ...


class ModelSequence(Protocol):
    """A text that a model is reading, or writing. It can be continued and cut."""

    @property
    def length(self) -> int:
        """Number of tokens that were evaluated."""
        ...

    def truncate(self, length: int) -> None:
        """Remove all but the first ``length`` tokens; raises :class:`BadOptionError` if that is
        impossible."""
        ...

    def reset(self) -> None:
        """Remove all tokens."""
        ...

    def evaluate(
        self, tokens: npt.ArrayLike, logits: Literal["all", "last", "none"] = ..., *, sums: Any = ...
    ) -> Logits | None:
        """Append tokens, ids [n_tokens], and return logits, float32.

        ``logits`` "all" returns [n_tokens, n_vocab], "last" returns [n_vocab], "none" returns None. ``sums``
        is a collector from :meth:`LanguageModel.input_sums`, which receives the inputs of all matrices.
        """
        ...


class WeightTrial(Protocol):
    """One text that a model reads again and again, each time with some of its matrices replaced."""

    @property
    def reference(self) -> Logits:
        """The logits of the model itself after each token, float32 [n_tokens, n_vocab]."""
        ...

    @property
    def used(self) -> Collection[str]:
        """The names of the matrices that can be replaced: all that the model multiplies with."""
        ...

    @property
    def writers(self) -> Collection[str]:
        """The names of the matrices whose outputs are added to the residual stream."""
        ...

    def logits(self, replaced: Mapping[str, QuantizedTensor]) -> Logits:
        """Return the logits with the tensors ``replaced``, by name; all others are the model's own."""
        ...


class LanguageModel(Protocol):
    """A model that an engine runs: :class:`q4hifi.Model` or :class:`q4hifi.LlamaModel`."""

    @property
    def path(self) -> Path:
        """The model's file."""
        ...

    @property
    def engine(self) -> str:
        """The name of the engine: "q4hifi" or "llama.cpp"."""
        ...

    @property
    def backend(self) -> str:
        """What computes, as tables of speeds name it: the instruction set, or the engine."""
        ...

    @property
    def library(self) -> Path | None:
        """The shared library of llama.cpp that runs the model; None for our own runtime."""
        ...

    @property
    def n_vocab(self) -> int:
        """Number of tokens in the vocabulary."""
        ...

    @property
    def n_ctx(self) -> int:
        """The longest text in tokens."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The file's metadata: key -> value."""
        ...

    @property
    def tokenizer(self) -> TextTokenizer:
        """The model's tokenizer."""
        ...

    @property
    def matrices(self) -> Collection[str]:
        """The names of the tensors that recipes quantize: matrices, or stacks of them."""
        ...

    @property
    def has_fisher(self) -> bool:
        """Whether the engine can measure Fisher information, which needs a backward pass."""
        ...

    @property
    def has_logits(self) -> bool:
        """Whether the model predicts tokens. Encoders do not."""
        ...

    @property
    def reads_whole_texts(self) -> bool:
        """Whether the model reads a text in both directions, so that it must get the whole text at once."""
        ...

    @property
    def n_layer(self) -> int:
        """Number of layers."""
        ...

    def first_layer(self, name: str) -> int | None:
        """Return the first layer that a trial with this matrix evaluates; None for the whole model."""
        ...

    def trial(self, tokens: Tokens) -> WeightTrial:
        """Begin a trial of replaced weights on a text of at most 512 tokens."""
        ...

    def sequence(self) -> ModelSequence:
        """Return a new, empty text."""
        ...

    def input_sums(self) -> InputCollector:
        """Return a new collector of the matrices' inputs."""
        ...

    def fisher(self, tokens: Tokens, *, first: int, seed: int) -> Mapping[str, npt.NDArray[np.float64]]:
        """Return the Fisher information of the matrices on a text: tensor name -> float64 [n_in].

        It is summed over the predictions after token ``first`` and all later tokens. ``seed`` is that of the
        tokens that are drawn from the predictions (:meth:`q4hifi.Model.fisher`). Raises
        :class:`UnsupportedModelError` if :attr:`has_fisher` is false.
        """
        ...


ModelOrPath = str | os.PathLike[str] | LanguageModel
