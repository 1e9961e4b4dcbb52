"""Turn 16-bit GGUF language models into ~4-bit ones, and measure what that costs.

Files
    :func:`quantize_file` writes a quantized model and returns a report.
    :func:`plan_file` computes types and sizes without writing.
    :class:`QuantizeOptions` holds the options of both.
    :func:`plan_shapes` computes them for a model of which only the shapes are known.
    :func:`export_file` makes a file that stock llama.cpp loads.
    :func:`dequantize_file` converts all tensors to 16 bits.
    :func:`verify_file` finds damage.
    :func:`open` reads tensors by name.
Arrays
    :func:`quantize` encodes a numpy array as a :class:`QuantizedTensor`.
    :func:`dequantize` decodes one.
Running
    :class:`Model` computes logits.
    :func:`generate`, :class:`Writer` and :class:`Chat` generate text.
Measuring
    :func:`perplexity`, :func:`kl_divergence` and :func:`compare` measure how good models are.
    :func:`bench` measures their speed.
    :func:`collect_importance` measures which input columns matter.
    :func:`calibrate` measures which matrices matter.
Machine
    :func:`cpu_features` returns the instruction sets that the Rust core can use.
    :mod:`q4hifi.cuda`, imported on its own, multiplies on a GPU.
Errors
    Every error of q4hifi is a :class:`Q4HifiError`.

What this module does not name is private: modules below it, and their contents, may change at any time.
"""

TYPE_CHECKING = False  # that of typing, whose import would take longer than all of this

if TYPE_CHECKING:
    from .allocation.calibrate import Calibrated, calibrate
    from .allocation.sensitivities import Sensitivities
    from .codec.input_correlations import Hessian, TensorInputs
    from .codec.input_sums import InputSums
    from .codec.model_file import ModelFile, ModelTensor, RowRange
    from .codec.quantized_tensor import QuantizedTensor, dequantize, quantize
    from .codec.rows import CpuFeatures, ErrorSums, cpu_features
    from .engines.generation import Chat, Effort, Writer, generate
    from .engines.llama.inputs import LlamaInputSums
    from .engines.llama.model import LlamaModel, LlamaTrial
    from .engines.llama.sequence import LlamaSequence
    from .engines.llama.tokenizer import LlamaTokenizer
    from .engines.opening import open_model
    from .engines.protocol import InputCollector, LanguageModel, ModelSequence, TextTokenizer, WeightTrial
    from .errors import (
        BadFileError,
        BadOptionError,
        NotFiniteError,
        Q4HifiError,
        UnavailableError,
        UnsupportedModelError,
    )
    from .evaluate.bench import ModelFacts, Speed, bench
    from .evaluate.collect_imatrix import collect_importance
    from .evaluate.compare import compare
    from .evaluate.comparison import ComparedModel, Comparison
    from .evaluate.estimates import Estimate
    from .evaluate.kl_divergence import KlDivergence, kl_divergence
    from .evaluate.log_probs_file import LogProbsFile
    from .evaluate.logits import Divergence
    from .evaluate.perplexity import Perplexity, perplexity
    from .formats.layout import Format, StoredTensor
    from .formats.types import TensorType
    from .imatrix.file import load_importance
    from .imatrix.importance import Importance
    from .imatrix.sums import ColumnSums, ImportanceSums
    from .pipeline.export import dequantize_file, export_file
    from .pipeline.quantize import plan_file, quantize_file
    from .pipeline.quantize_options import QuantizeOptions
    from .pipeline.report import QuantizeReport
    from .pipeline.verify import Finding, verify_file
    from .plan.plan import Measured, Plan, PlannedTensor, TypeTotal
    from .plan.shapes_file import plan_shapes
    from .plan.size_classes import SizeClass
    from .progress import Progress
    from .runtime.model import Model, Trace, Trial
    from .runtime.model_input_sums import ModelInputSums
    from .runtime.sampler import Sampler
    from .runtime.sequence import Sequence
    from .runtime.tokenizer import Pieces, Tokenizer, TokenStream

    __version__: str
    open = ModelFile.open

__all__ = [
    "BadFileError",
    "BadOptionError",
    "Calibrated",
    "Chat",
    "ColumnSums",
    "ComparedModel",
    "Comparison",
    "CpuFeatures",
    "Divergence",
    "Effort",
    "ErrorSums",
    "Estimate",
    "Finding",
    "Format",
    "Hessian",
    "Importance",
    "ImportanceSums",
    "InputCollector",
    "InputSums",
    "KlDivergence",
    "LanguageModel",
    "LlamaInputSums",
    "LlamaModel",
    "LlamaSequence",
    "LlamaTokenizer",
    "LlamaTrial",
    "LogProbsFile",
    "Measured",
    "Model",
    "ModelFacts",
    "ModelFile",
    "ModelInputSums",
    "ModelSequence",
    "ModelTensor",
    "NotFiniteError",
    "Perplexity",
    "Pieces",
    "Plan",
    "PlannedTensor",
    "Progress",
    "Q4HifiError",
    "QuantizeOptions",
    "QuantizeReport",
    "QuantizedTensor",
    "RowRange",
    "Sampler",
    "Sensitivities",
    "Sequence",
    "SizeClass",
    "Speed",
    "StoredTensor",
    "TensorInputs",
    "TensorType",
    "TextTokenizer",
    "TokenStream",
    "Tokenizer",
    "Trace",
    "Trial",
    "TypeTotal",
    "UnavailableError",
    "UnsupportedModelError",
    "WeightTrial",
    "Writer",
    "__version__",
    "bench",
    "calibrate",
    "collect_importance",
    "compare",
    "cpu_features",
    "dequantize",
    "dequantize_file",
    "export_file",
    "generate",
    "kl_divergence",
    "load_importance",
    "open",
    "open_model",
    "perplexity",
    "plan_file",
    "plan_shapes",
    "quantize",
    "quantize_file",
    "verify_file",
]

_MODULES = {
    "allocation.calibrate": "Calibrated calibrate",
    "allocation.sensitivities": "Sensitivities",
    "codec.input_correlations": "Hessian TensorInputs",
    "codec.input_sums": "InputSums",
    "codec.model_file": "ModelFile ModelTensor RowRange",
    "codec.quantized_tensor": "QuantizedTensor dequantize quantize",
    "codec.rows": "CpuFeatures ErrorSums cpu_features",
    "errors": "BadFileError BadOptionError NotFiniteError Q4HifiError UnavailableError UnsupportedModelError",
    "engines.generation": "Chat Effort Writer generate",
    "engines.llama.inputs": "LlamaInputSums",
    "engines.llama.model": "LlamaModel LlamaTrial",
    "engines.llama.sequence": "LlamaSequence",
    "engines.llama.tokenizer": "LlamaTokenizer",
    "engines.opening": "open_model",
    "engines.protocol": "InputCollector LanguageModel ModelSequence TextTokenizer WeightTrial",
    "evaluate.bench": "ModelFacts Speed bench",
    "evaluate.collect_imatrix": "collect_importance",
    "evaluate.compare": "compare",
    "evaluate.comparison": "ComparedModel Comparison",
    "evaluate.estimates": "Estimate",
    "evaluate.kl_divergence": "KlDivergence kl_divergence",
    "evaluate.log_probs_file": "LogProbsFile",
    "evaluate.logits": "Divergence",
    "evaluate.perplexity": "Perplexity perplexity",
    "formats.layout": "Format StoredTensor",
    "formats.types": "TensorType",
    "imatrix.file": "load_importance",
    "imatrix.importance": "Importance",
    "imatrix.sums": "ColumnSums ImportanceSums",
    "pipeline.export": "dequantize_file export_file",
    "pipeline.quantize": "plan_file quantize_file",
    "pipeline.quantize_options": "QuantizeOptions",
    "pipeline.report": "QuantizeReport",
    "pipeline.verify": "Finding verify_file",
    "plan.plan": "Measured Plan PlannedTensor TypeTotal",
    "plan.shapes_file": "plan_shapes",
    "plan.size_classes": "SizeClass",
    "progress": "Progress",
    "runtime.model_input_sums": "ModelInputSums",
    "runtime.model": "Model Trace Trial",
    "runtime.sampler": "Sampler",
    "runtime.sequence": "Sequence",
    "runtime.tokenizer": "Pieces TokenStream Tokenizer",
}
"""Module -> the public names that it defines. Each is imported when somebody first asks for the name."""

_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    from importlib import import_module

    value: object
    if name == "__version__":
        value = _version()
    elif name == "open":
        value = import_module(".codec.model_file", __name__).ModelFile.open
    elif name in _MODULE_OF:
        value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    """The installed package's version; the core's own where the package runs without being installed."""
    from importlib import metadata

    try:
        return metadata.version(__name__)
    except metadata.PackageNotFoundError:
        from ._core import __version__

        return __version__
