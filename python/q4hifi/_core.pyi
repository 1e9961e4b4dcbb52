"""The Rust core. Private: use the functions and classes of :mod:`q4hifi`.

Types are named by their GGUF ids. Data are contiguous one-dimensional arrays of bytes that hold
whole rows. ``threads`` = 0 uses one thread a core. Every function raises ValueError for lengths
that do not fit, and releases the interpreter lock while it works. The pair of floats that the
encoders return is the squared error and the squared magnitude of the input, both weighted by
importance where there is one.
"""

from collections.abc import Iterable
from typing import Final, final

import numpy as np
import numpy.typing as npt

_Bytes = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float32]
_Sums = tuple[float, float]
_Doubles = npt.NDArray[np.float64]
_Tokens = npt.NDArray[np.uint32]
_Codes = npt.NDArray[np.uint16]
_Signed = npt.NDArray[np.int8]
_Columns = tuple[_Doubles, _Doubles, _Doubles, _Doubles, npt.NDArray[np.bool_]]

__all__ = [
    "BadBlock",
    "BadModel",
    "Collector",
    "Fisher",
    "Inputs",
    "Model",
    "NotFinite",
    "Sampler",
    "Sequence",
    "Trace",
    "Unavailable",
    "Watch",
    "__version__",
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

class BadBlock(ValueError): ...
class BadModel(ValueError): ...
class NotFinite(ValueError): ...
class Unavailable(RuntimeError): ...

@final
class Inputs:
    """What is known of the inputs of rows: importances, and correlations of so many tokens, or none."""

    def __new__(cls, importance: _Floats, correlations: _Signed, tokens: float, threads: int) -> Inputs: ...

def cpu_features() -> tuple[str, list[str]]: ...
def tensor_types() -> list[tuple[str, int, int, int]]: ...
def quantize(
    source: _Bytes,
    source_type: int,
    row_length: int,
    target_type: int,
    importance: _Floats | None,
    threads: int,
    refine: bool = False,
    inputs: Inputs | None = None,
) -> tuple[_Bytes, _Sums]: ...
def quantize_hifi(
    source: _Bytes,
    source_type: int,
    row_length: int,
    outliers: int,
    importance: _Floats | None,
    threads: int,
    refine: bool = False,
    inputs: Inputs | None = None,
) -> tuple[_Bytes, _Bytes, _Bytes, _Sums]: ...
def quantize_hifi_fork(
    source: _Bytes,
    source_type: int,
    row_length: int,
    outliers: int,
    importance: _Floats | None,
    threads: int,
    refine: bool = False,
) -> tuple[_Bytes, _Sums]: ...
def dequantize(source: _Bytes, source_type: int, row_length: int, threads: int) -> _Floats: ...
def dequantize_hifi(
    base: _Bytes, index: _Bytes, residual: _Bytes, row_length: int, outliers: int, threads: int
) -> _Floats: ...
def dequantize_hifi_fork(source: _Bytes, row_length: int, threads: int) -> _Floats: ...
def fork_to_split(source: _Bytes, row_length: int, outliers: int) -> tuple[_Bytes, _Bytes, _Bytes]: ...
def split_to_fork(
    base: _Bytes, index: _Bytes, residual: _Bytes, row_length: int, outliers: int
) -> _Bytes: ...
def check_finite(source: _Bytes, source_type: int, row_length: int, threads: int) -> None: ...
def errors(
    source: _Bytes,
    source_type: int,
    row_length: int,
    decoded: _Floats,
    weights: _Floats | None,
    threads: int,
) -> tuple[float, float]: ...
def matmul(
    source: _Bytes, source_type: int, row_length: int, activations: _Floats, threads: int
) -> _Floats: ...
def matmul_hifi(
    base: _Bytes,
    index: _Bytes,
    residual: _Bytes,
    row_length: int,
    outliers: int,
    activations: _Floats,
    threads: int,
) -> _Floats: ...
def correlation_pairs(row_length: int) -> int: ...
def correlations_of(products: _Floats, squares: _Floats) -> _Signed: ...
def products_of(correlations: _Signed, squares: _Floats) -> _Floats: ...
def token_nll(logits: _Floats, tokens: _Tokens, threads: int) -> _Doubles: ...
def encode_log_probs(logits: _Floats, tokens: _Tokens, threads: int) -> tuple[_Doubles, _Codes]: ...
def divergence_from_log_probs(logits: _Floats, base: _Codes, tokens: _Tokens, threads: int) -> _Columns: ...
def divergence(logits: _Floats, base: _Floats, tokens: _Tokens, threads: int) -> _Columns: ...

_Tensor = tuple[str, int | None, int, int, int, list[_Bytes]]
"""Role, layer, type, row length, outliers a block, and its parts, which must be read-only."""

@final
class Model:
    """A transformer on its weights. ``config`` has the attributes of ``architecture.Config``.

    The tensors' arrays are kept, and used as they lie.
    """

    def __new__(cls, config: object, tensors: Iterable[_Tensor], threads: int) -> Model: ...
    def sequence(self) -> Sequence: ...
    def collector(self) -> Collector: ...
    def replaced(self, tensor: _Tensor) -> Model: ...
    def trace(self, tokens: npt.NDArray[np.uint32]) -> Trace: ...
    def resume(self, trace: Trace, layer: int) -> _Floats: ...
    def fisher(self, tokens: npt.NDArray[np.uint32], first: int, seed: int) -> Fisher: ...

@final
class Watch:
    """Watches over a mapped file, an array of uint8: if the file shrinks, reading it ends no process."""

    def __new__(cls, array: npt.NDArray[np.uint8]) -> Watch: ...
    @property
    def is_lost(self) -> bool:
        """Whether a part of the file that was read was not there any more, and zeros were read instead."""

@final
class Trace:
    """The states of a text's tokens on their way through the layers."""

@final
class Fisher:
    """The Fisher information of a matrix, by its role and layer, in the shares of its columns."""

    def of(self, role: str, layer: int | None) -> npt.NDArray[np.float64] | None: ...

@final
class Sequence:
    """Evaluates tokens: returns the logits of those from ``first`` to ``last``, [n, n_vocab]."""

    @property
    def length(self) -> int: ...
    def evaluate(
        self,
        tokens: npt.NDArray[np.uint32],
        first: int,
        last: int,
        collector: Collector | None,
    ) -> _Floats: ...
    def reset(self) -> None: ...
    def truncate(self, length: int) -> bool: ...

@final
class Collector:
    """Sums of squared inputs and of products, and the number of rows, of a matrix by its role and layer."""

    def sums(self, role: str, layer: int | None) -> tuple[_Doubles, int] | None: ...
    def products(self, role: str, layer: int | None) -> tuple[_Floats, int] | None: ...
    def take(self, other: Collector) -> None:
        """Add the sums of ``other`` to these and set those to zero; ValueError if the shapes differ."""

@final
class Sampler:
    """Chooses tokens; None where a logit is NaN."""

    def __new__(cls, temperature: float, top_k: int, top_p: float, min_p: float, seed: int) -> Sampler: ...
    def sample(self, logits: _Floats) -> int | None: ...
