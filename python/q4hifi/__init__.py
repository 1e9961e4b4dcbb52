"""Turn 16-bit GGUF language models into ~4-bit ones, and see what it cost.

Files
    :func:`quantize_file` writes a quantized model and reports on it, :func:`plan_file` says
    beforehand what that would give, :func:`export_file` and :func:`dequantize_file` bring a
    quantized model into other forms, :func:`verify_file` checks one, :func:`open` reads tensors by
    name.
Arrays
    :func:`quantize` and :func:`dequantize` work on numpy arrays; :class:`QuantizedTensor` is what
    the first returns.
Running
    :class:`Model` loads a model and evaluates it: logits, and tokens chosen by them.
Machine
    :func:`cpu_features` tells which instruction set the kernels use.
Errors
    Everything raised on purpose is a :class:`Q4HifiError`.
"""

from ._core import __version__
from .errors import BadFileError, BadOptionError, NotFiniteError, Q4HifiError, UnsupportedModelError
from .export import dequantize_file, export_file
from .layout import Format
from .model import InputSums, Model, Sampler, Sequence
from .model_file import ModelFile, ModelTensor
from .plan import Plan, PlannedTensor
from .quantize import plan_file, quantize_file
from .report import QuantizeReport
from .rows import CpuFeatures, cpu_features
from .tensor import QuantizedTensor, dequantize, quantize
from .types import TensorType
from .verify import Finding, verify_file

open = ModelFile.open

__all__ = [
    "BadFileError",
    "BadOptionError",
    "CpuFeatures",
    "Finding",
    "Format",
    "InputSums",
    "Model",
    "ModelFile",
    "ModelTensor",
    "NotFiniteError",
    "Plan",
    "PlannedTensor",
    "Q4HifiError",
    "QuantizeReport",
    "QuantizedTensor",
    "Sampler",
    "Sequence",
    "TensorType",
    "UnsupportedModelError",
    "__version__",
    "cpu_features",
    "dequantize",
    "dequantize_file",
    "export_file",
    "open",
    "plan_file",
    "quantize",
    "quantize_file",
    "verify_file",
]
