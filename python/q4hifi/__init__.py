"""Turn 16-bit GGUF language models into ~4-bit ones, and see what it cost.

Files
    :func:`quantize_file` writes a quantized model and reports on it, :func:`plan_file` says
    beforehand what that would give (:func:`plan_shapes` knowing shapes alone), :func:`export_file`
    and :func:`dequantize_file` bring a quantized model into other forms, :func:`verify_file` checks
    one, :func:`open` reads tensors by name.
Arrays
    :func:`quantize` and :func:`dequantize` work on numpy arrays; :class:`QuantizedTensor` is what
    the first returns.
Running
    :class:`Model` loads a model and evaluates it: logits, and tokens chosen by them;
    :class:`Writer` and :class:`Chat` make text of them.
Measuring
    :func:`perplexity`, :func:`kl_divergence` and :func:`compare` tell how good models are,
    :func:`bench` how fast, :func:`collect_importance` which of their inputs matter,
    :func:`calibrate` which of their matrices.
Machine
    :func:`cpu_features` tells which instruction set the kernels use; :mod:`q4hifi.cuda`, imported by
    itself, brings weights to a GPU.
Errors
    Everything raised on purpose is a :class:`Q4HifiError`.
"""

import sys

TYPE_CHECKING = False  # that of typing, whose import would take longer than all of this

if TYPE_CHECKING:
    from .bench import Speed, bench
    from .calibrate import Calibrated, calibrate
    from .collect import collect_importance
    from .compare import ComparedModel, Comparison, compare
    from .errors import (
        BadFileError,
        BadOptionError,
        NotFiniteError,
        Q4HifiError,
        UnavailableError,
        UnsupportedModelError,
    )
    from .estimates import Estimate
    from .export import dequantize_file, export_file
    from .generation import Chat, Writer
    from .importance import Importance, load_importance
    from .importance_sums import ImportanceSums
    from .kl_divergence import KlDivergence, kl_divergence
    from .layout import Format
    from .model import InputSums, Model, Sampler, Sequence
    from .model_file import ModelFile, ModelTensor
    from .perplexity import Perplexity, perplexity
    from .plan import Plan, PlannedTensor
    from .quantize import plan_file, quantize_file
    from .report import QuantizeReport
    from .rows import CpuFeatures, cpu_features
    from .shapes import plan_shapes
    from .tensor import QuantizedTensor, dequantize, quantize
    from .types import TensorType
    from .verify import Finding, verify_file

    __version__: str
    open = ModelFile.open

__all__ = [
    "BadFileError",
    "BadOptionError",
    "Calibrated",
    "Chat",
    "ComparedModel",
    "Comparison",
    "CpuFeatures",
    "Estimate",
    "Finding",
    "Format",
    "Importance",
    "ImportanceSums",
    "InputSums",
    "KlDivergence",
    "Model",
    "ModelFile",
    "ModelTensor",
    "NotFiniteError",
    "Perplexity",
    "Plan",
    "PlannedTensor",
    "Q4HifiError",
    "QuantizeReport",
    "QuantizedTensor",
    "Sampler",
    "Sequence",
    "Speed",
    "TensorType",
    "UnavailableError",
    "UnsupportedModelError",
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
    "kl_divergence",
    "load_importance",
    "open",
    "perplexity",
    "plan_file",
    "plan_shapes",
    "quantize",
    "quantize_file",
    "verify_file",
]

_MODULES = {
    "bench": "Speed bench",
    "calibrate": "Calibrated calibrate",
    "collect": "collect_importance",
    "compare": "ComparedModel Comparison compare",
    "errors": "BadFileError BadOptionError NotFiniteError Q4HifiError UnavailableError UnsupportedModelError",
    "estimates": "Estimate",
    "export": "dequantize_file export_file",
    "generation": "Chat Writer",
    "importance": "Importance load_importance",
    "importance_sums": "ImportanceSums",
    "kl_divergence": "KlDivergence kl_divergence",
    "layout": "Format",
    "model": "InputSums Model Sampler Sequence",
    "model_file": "ModelFile ModelTensor",
    "perplexity": "Perplexity perplexity",
    "plan": "Plan PlannedTensor",
    "quantize": "plan_file quantize_file",
    "report": "QuantizeReport",
    "rows": "CpuFeatures cpu_features",
    "shapes": "plan_shapes",
    "tensor": "QuantizedTensor dequantize quantize",
    "types": "TensorType",
    "verify": "Finding verify_file",
}
"""Module -> the public names that it defines. Each is imported when somebody first asks for the name."""

_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    from importlib import import_module, util

    value: object
    if name == "__version__":
        value = _version()
    elif name == "open":
        value = import_module(".model_file", __name__).ModelFile.open
    elif name in _MODULE_OF:
        value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    elif util.find_spec(f"{__name__}.{name}"):
        value = import_module(f".{name}", __name__)
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


class _Package(type(sys)):  # type: ignore[misc]
    """This package: ``q4hifi.bench`` is the function, also after the module ``bench`` was imported.

    An import would bind the name to the module.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _MODULE_OF and isinstance(value, type(sys))):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
