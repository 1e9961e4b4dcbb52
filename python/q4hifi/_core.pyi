"""The Rust core of q4hifi. Private: use the functions and classes of the package :mod:`q4hifi`.

These conventions hold for all functions and methods:

- A tensor type is given as its GGUF type id. ``row_length`` is in weights and must be a positive multiple of
  the type's block size.
- ``source`` and other bytes are contiguous arrays uint8 [n] that contain whole rows.
- ``threads`` is the number of threads to use; 0 uses one thread per core.
- Arrays must be contiguous and have exactly the dtype that is stated; another dtype raises TypeError.
- Lengths and values that do not fit, and unknown type ids, raise ValueError. Integers out of range, such as
  negative ones, raise OverflowError. All other exceptions are listed with the function.
- All functions that compute release the interpreter lock. They raise :class:`Unavailable` where the threads
  cannot be started, or where the environment variable ``Q4HIFI_ISA`` names an instruction set that is not
  available.
"""

from collections.abc import Iterable
from typing import Final, final

import numpy as np
import numpy.typing as npt

_Bytes = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float32]
_Doubles = npt.NDArray[np.float64]
_Tokens = npt.NDArray[np.uint32]
"""Token ids."""

_Codes = npt.NDArray[np.uint16]
"""Log-probabilities as in the files of llama-perplexity: per row, two float32 (step and least value) in four
elements, then a code per token of the vocabulary, and an unused code if the vocabulary is odd."""

_Correlations = npt.NDArray[np.int8]
"""Correlations of pairs of columns, 127 times their value; see :mod:`q4hifi.codec.input_correlations`."""

_ErrorSums = tuple[float, float]
"""(Σ c (w' - w)², Σ c w²) over all weights, w before and w' after encoding. c is the importance of the
weight's column, or 1."""

_Divergences = tuple[_Doubles, _Doubles, _Doubles, _Doubles, npt.NDArray[np.bool_]]
"""(nll, nll_base, kld, delta_p, same_top), each [rows], with natural logarithms.
:class:`q4hifi.Divergence` describes them."""

_Tensor = tuple[str, int | None, int, int, int, list[_Bytes]]
"""(role, layer, type id, row length, outliers per block, parts): a matrix or vector of a model.

``layer`` is None outside of the layers. ``parts`` are one array of rows, or for Q4_HIFI three (base, outlier
index, outlier residual), with the type id of Q4_K. The arrays must be read-only. They are kept and not
copied."""

__all__ = [
    "BadBlock",
    "BadModel",
    "Collector",
    "Fisher",
    "InputSums",
    "Inputs",
    "Model",
    "NotFinite",
    "Sampler",
    "Sequence",
    "Trace",
    "Unavailable",
    "Watch",
    "__version__",
    "are_correlated",
    "check_finite",
    "correlation_pairs",
    "correlations_of",
    "cpu_features",
    "dequantize",
    "dequantize_hifi",
    "dequantize_hifi_fork",
    "divergence",
    "divergence_from_log_probs",
    "encode_log_probs",
    "errors",
    "fork_to_split",
    "matmul",
    "matmul_hifi",
    "products_of",
    "quantize",
    "quantize_hifi",
    "quantize_hifi_fork",
    "split_to_fork",
    "tensor_types",
    "token_nll",
]

__version__: Final[str]

# ---- exceptions ----------------------------------------------------------------------------------

class NotFinite(ValueError):
    """A weight is NaN or infinite. ``args`` is (message, position of the weight in the input)."""

class BadBlock(ValueError):
    """A Q4_HIFI block is invalid. ``args`` is (message, index of the block in the input, reason)."""

class BadModel(ValueError):
    """A model cannot be built or evaluated. ``args`` is (message, fault, role, layer).

    ``fault`` is "missing" (a tensor is missing), "unknown" (the architecture has no such tensor) or "other".
    ``role`` and ``layer`` are those of the tensor, or None.
    """

class Unavailable(RuntimeError):
    """The machine cannot do this: it has no such instruction set, or cannot start more threads."""

# ---- codec ---------------------------------------------------------------------------------------

def cpu_features() -> tuple[str, list[str]]:
    """Return the instruction set in use, and all that this CPU has, slowest first.

    Raises :class:`Unavailable` where ``Q4HIFI_ISA`` names one that is not available.
    """

def tensor_types() -> list[tuple[str, int, int, int]]:
    """Return (name, type id, weights per block, bytes per block) of every type of the codec."""

def quantize(
    source: _Bytes,
    source_type: int,
    row_length: int,
    target_type: int,
    importance: _Floats | None,
    threads: int,
    refine: bool = False,
    inputs: Inputs | None = None,
) -> tuple[_Bytes, _ErrorSums]:
    """Encode rows of type ``source_type`` as ``target_type``; return the encoded rows and the error.

    ``importance`` [row_length], not negative, weights the squared error of each column. The bytes equal those
    of ggml, unless ``refine`` is true: then blocks of IQ4_XS, Q4_K, Q5_K and Q6_K are searched further for a
    smaller error. With ``refine`` and ``inputs``, rows of all quantized types are encoded with error feedback
    (GPTQ, QuIP's LDLQ). ``inputs`` need ``refine``, and must have the same row length.

    Raises :class:`NotFinite`. Weights too large for the target give an error that is not finite.
    """

def quantize_hifi(
    source: _Bytes,
    source_type: int,
    row_length: int,
    outliers: int,
    importance: _Floats | None,
    threads: int,
    refine: bool = False,
    inputs: Inputs | None = None,
) -> tuple[_Bytes, _Bytes, _Bytes, _ErrorSums]:
    """Encode rows as Q4_HIFI in the split layout; return base, outlier index, outlier residual and the error.

    ``outliers`` is the number of outliers per block of 256 weights, 0 to 32. The base is rows of Q4_K. The
    index has ``outliers`` uint8 per block, strictly increasing, and the residual as many float16 (as bytes),
    which are added to the decoded weights. The other arguments and errors are those of :func:`quantize`.
    """

def quantize_hifi_fork(
    source: _Bytes,
    source_type: int,
    row_length: int,
    outliers: int,
    importance: _Floats | None,
    threads: int,
    refine: bool = False,
) -> tuple[_Bytes, _ErrorSums]:
    """Encode rows as Q4_HIFI in the fork layout, in blocks of 244 bytes; return them and the error.

    Arguments and errors are those of :func:`quantize_hifi`.
    """

def dequantize(source: _Bytes, source_type: int, row_length: int, threads: int) -> _Floats:
    """Decode rows to float32 [rows * row_length]."""

def dequantize_hifi(
    base: _Bytes, index: _Bytes, residual: _Bytes, row_length: int, outliers: int, threads: int
) -> _Floats:
    """Decode Q4_HIFI rows of the split layout to float32 [rows * row_length].

    Raises :class:`BadBlock` where the indices of a block are not strictly increasing.
    """

def dequantize_hifi_fork(source: _Bytes, row_length: int, threads: int) -> _Floats:
    """Decode Q4_HIFI rows of the fork layout to float32 [rows * row_length].

    Raises :class:`BadBlock` for a block with more than 32 outliers, or indices that are not strictly
    increasing.
    """

def fork_to_split(source: _Bytes, row_length: int, outliers: int) -> tuple[_Bytes, _Bytes, _Bytes]:
    """Convert Q4_HIFI rows of the fork layout to the split layout: base, outlier index, outlier residual.

    Blocks with fewer than ``outliers`` outliers get outliers with a residual of 0. Raises :class:`BadBlock`
    for an invalid block, and for one with more outliers.
    """

def split_to_fork(base: _Bytes, index: _Bytes, residual: _Bytes, row_length: int, outliers: int) -> _Bytes:
    """Convert Q4_HIFI rows of the split layout to the fork layout.

    Raises :class:`BadBlock` for an invalid block, and for an outlier that is too large for float16.
    """

def check_finite(source: _Bytes, source_type: int, row_length: int, threads: int) -> None:
    """Raise :class:`NotFinite` with the position of the first weight that decodes to NaN or infinity."""

def errors(
    source: _Bytes,
    source_type: int,
    row_length: int,
    decoded: _Floats,
    weights: _Floats | None,
    threads: int,
) -> _ErrorSums:
    """Return the error of ``decoded`` [rows * row_length], compared with the rows ``source``.

    ``weights`` [row_length], not negative, weights the squared error of each column. Raises
    :class:`NotFinite` for a weight of ``source`` that is not finite.
    """

def matmul(source: _Bytes, source_type: int, row_length: int, activations: _Floats, threads: int) -> _Floats:
    """Multiply a matrix by columns of activations.

    ``activations`` is [columns * row_length], the result [columns * rows]: element (c, r) is the product of
    column c and row r. Activations are quantized to eight bits unless the rows are floats.
    """

def matmul_hifi(
    base: _Bytes,
    index: _Bytes,
    residual: _Bytes,
    row_length: int,
    outliers: int,
    activations: _Floats,
    threads: int,
) -> _Floats:
    """Multiply a Q4_HIFI matrix of the split layout by columns of activations, as :func:`matmul` does.

    Indices that are not increasing are not an error here.
    """

# ---- inputs of a matrix --------------------------------------------------------------------------

def are_correlated(row_length: int, is_ffn_down: bool) -> bool:
    """Return whether products are summed of the inputs of a matrix with rows of this length."""

def correlation_pairs(row_length: int) -> int:
    """Return the number of pairs of columns whose correlation is kept, for rows of this length."""

def correlations_of(products: _Floats, squares: _Floats) -> _Correlations:
    """Return the correlations [pairs] of sums over input vectors x.

    ``products`` [pairs] is Σ x_i x_j of each pair of columns, ``squares`` [row_length] is Σ x_i².
    """

def products_of(correlations: _Correlations, squares: _Floats) -> _Floats:
    """Return the sums of products [pairs] of ``correlations`` [pairs]: the inverse of correlations_of."""

@final
class Inputs:
    """Importance and correlations of a matrix's inputs, prepared for error feedback."""

    def __new__(cls, importance: _Floats, correlations: _Correlations, tokens: float, threads: int) -> Inputs:
        """Factorize the Hessian that ``importance`` and ``correlations`` describe.

        ``importance`` is [row_length]. ``correlations`` is [pairs], or [0] if only the importance is known.
        They are moved towards 0 by a share that is larger, the fewer ``tokens`` they were measured over.
        """

    def with_importance(self, importance: _Floats, threads: int) -> Inputs:
        """Return the same correlations with another ``importance`` [row_length], without factorizing
        again."""

@final
class InputSums:
    """Sums over the inputs x of a tensor's matrices, from which importance matrices are made."""

    def __new__(cls, width: int, n_matrices: int, n_products: int) -> InputSums:
        """Begin with zeros, for ``n_matrices`` matrices with rows of ``width`` weights.

        ``n_products`` is the number of sums of products: 0, 1 (of all matrices together) or ``n_matrices``.
        """

    def add(self, rows: _Floats, matrices: npt.NDArray[np.int32], threads: int) -> None:
        """Add ``rows`` [n * width], each to the matrices with the indices ``matrices`` [n * m]; -1 is no
        matrix."""

    def squares(self) -> _Doubles:
        """Return Σ x_i², float64 [n_matrices * width]."""

    def counts(self) -> npt.NDArray[np.uint64]:
        """Return the number of rows that each matrix received, [n_matrices]."""

    def products(self, index: int) -> _Floats:
        """Return Σ x_i x_j of all pairs of columns, [pairs], of the sum of products ``index``."""

    def take(self, other: InputSums) -> None:
        """Add the sums of ``other`` to these, and set ``other`` to zero."""

# ---- logits --------------------------------------------------------------------------------------

def token_nll(logits: _Floats, tokens: _Tokens, threads: int) -> _Doubles:
    """Return -log p(token) of each row, [rows].

    ``logits`` is [rows, n_vocab]; ``tokens`` [rows] are the tokens that follow. The result is NaN or infinite
    where logits are not finite.
    """

def encode_log_probs(logits: _Floats, tokens: _Tokens, threads: int) -> tuple[_Doubles, _Codes]:
    """Return the result of :func:`token_nll`, and all log-probabilities as codes."""

def divergence_from_log_probs(logits: _Floats, base: _Codes, tokens: _Tokens, threads: int) -> _Divergences:
    """Compare ``logits`` [rows, n_vocab] with the log-probabilities ``base`` of the reference model.

    ``base`` is what :func:`encode_log_probs` returns. As in llama-perplexity, the KL divergence leaves out
    tokens whose probability in the reference model is below exp(-16), because codes cannot express it.
    """

def divergence(logits: _Floats, base: _Floats, tokens: _Tokens, threads: int) -> _Divergences:
    """Compare ``logits`` with the logits ``base`` of the reference model, both [rows, n_vocab]."""

# ---- running models ------------------------------------------------------------------------------

@final
class Model:
    """A transformer, ready to run. Several threads may use it at the same time.

    Methods that run it can be interrupted by signals: they raise the exception of the Python signal handler,
    such as KeyboardInterrupt. They raise :class:`BadModel` for a token outside of the vocabulary, and where
    the model gives logits that are not finite.
    """

    def __new__(cls, config: object, tensors: Iterable[_Tensor], threads: int) -> Model:
        """Build a model of its tensors.

        ``config`` has the attributes of :class:`q4hifi.runtime.architecture.Config`. Raises :class:`BadModel`
        for a contradictory configuration, and for tensors that are missing, unknown, or of a wrong shape.
        """

    def sequence(self) -> Sequence:
        """Return an empty sequence."""

    def collector(self, expert_products: bool) -> Collector:
        """Return a collector whose sums are zero.

        ``expert_products``: sum products also for each expert that has inputs of its own.
        """

    def replaced(self, tensor: _Tensor) -> Model:
        """Return a copy in which ``tensor`` replaces the one of its role and layer; the others are shared.

        Raises :class:`BadModel` where the model has no such tensor, or one of another shape.
        """

    def trace(self, tokens: _Tokens) -> Trace:
        """Run at most 512 tokens and keep their hidden states before each layer and after the last."""

    def resume(self, trace: Trace, layer: int) -> _Floats:
        """Run a traced text from ``layer`` (0 to n_layer) on; return its logits [n_tokens, n_vocab].

        The trace may come from a model that differs from this one only in ``layer`` and later layers. Raises
        ValueError for a trace of a model with another configuration, and for a layer that does not exist.
        """

    def fisher(self, tokens: _Tokens, first: int, seed: int) -> Fisher:
        """Return the Fisher information of every matrix, estimated on a text of at most 512 tokens.

        It is summed over the predictions after each token from index ``first`` on. For each of them a next
        token is drawn from the prediction, with a random generator seeded with ``seed``, and its gradient is
        used.
        """

@final
class Watch:
    """Guards reads of a mapped file, an array of uint8, as long as this object exists.

    If the file becomes shorter, reading the lost part gives zeros instead of killing the process by SIGBUS.
    """

    def __new__(cls, array: _Bytes) -> Watch:
        """Watch the memory of ``array``, which must be a view of the mapping."""

    @property
    def is_lost(self) -> bool:
        """Whether a lost part of the file was read, so that results are wrong."""

@final
class Trace:
    """The hidden states of a text's tokens in every layer, made by :meth:`Model.trace`."""

@final
class Fisher:
    """The Fisher information of a model's matrices, made by :meth:`Model.fisher`."""

    def of(self, role: str, layer: int | None) -> _Doubles | None:
        """Return a matrix's information by columns, float64 [row_length]; None if there is no such matrix.

        The sum over all columns is twice the KL divergence, in nats, that an error in the matrix causes whose
        squares are as large as those of its weights. An output matrix that is also the embedding matrix has
        its information as output under its own role.
        """

@final
class Sequence:
    """A text that a model evaluates piece by piece, with its key-value cache."""

    @property
    def length(self) -> int:
        """Number of tokens in the sequence."""

    def evaluate(self, tokens: _Tokens, first: int, last: int, collector: Collector | None) -> _Floats:
        """Append ``tokens`` and return the logits of tokens[first:last], [last - first, n_vocab].

        ``collector`` receives the inputs of all matrices. Can be interrupted and raises as the methods of
        :class:`Model`. After an error the sequence may contain some of the tokens, in whole batches of 512.
        """

    def reset(self) -> None:
        """Remove all tokens."""

    def truncate(self, length: int) -> bool:
        """Keep only the first ``length`` tokens; return whether that was possible.

        It is not where a layer with a sliding window no longer has the keys and values that the next token
        needs; then nothing changes. Raises ValueError if the sequence is shorter.
        """

@final
class Collector:
    """For each matrix of a model: sums over its input vectors x, from which importance matrices are made."""

    def shape(self, role: str, layer: int | None) -> tuple[int, int, int] | None:
        """Return the row length, the number of matrices in the stack, and of sums of products.

        None if there is no such matrix. A matrix alone is a stack of one. Products are not collected in
        ffn_down with rows longer than 2048, and where 32 does not divide the row length.
        """

    def sums(self, role: str, layer: int | None) -> tuple[_Doubles, npt.NDArray[np.uint64]] | None:
        """Return Σ x_i², float64 [n_matrices · row_length], and the number of vectors of each matrix, uint64.

        None if there is no such matrix.
        """

    def products(self, role: str, layer: int | None, index: int) -> _Floats | None:
        """Return Σ x_i x_j of all pairs of columns, float32 [pairs], the sum with an ``index``.

        The pairs are those of :func:`correlations_of`. None if there is no such matrix or sum.
        """

    def take(self, other: Collector) -> None:
        """Add the sums of ``other`` to these, and set those of ``other`` to zero.

        Raises ValueError if ``other`` is this collector, or belongs to a model of another shape.
        """

@final
class Sampler:
    """Chooses tokens from logits, as llama.cpp does: the same seed gives the same tokens."""

    def __new__(cls, temperature: float, top_k: int, top_p: float, min_p: float, seed: int) -> Sampler:
        """Make a sampler.

        The filters apply in this order: the ``top_k`` most probable tokens (0: all); of these the fewest with
        a joint probability of ``top_p`` (1: all); of these the tokens with at least ``min_p`` times the
        probability of the best (0: all). Logits are then divided by ``temperature``. 0 always takes the best
        token. ``seed`` is that of the random generator.
        """

    def sample(self, logits: _Floats) -> int | None:
        """Choose the next token by its logits [n_vocab]; None where a logit is NaN, or there are none."""
