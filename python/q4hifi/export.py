"""Bringing quantized models into other forms: for stock llama.cpp, the fork, or back to 16 bits."""

from __future__ import annotations

import os
import time

from .errors import BadOptionError, UnsupportedModelError
from .gguf_constants import GGUFValueType
from .gguf_metadata import Metadata
from .layout import (
    FILE_TYPE,
    KEY_LAYOUT,
    KEY_VERSION,
    KEYS,
    LAYOUTS,
    SPLIT,
    VERSION,
    Format,
)
from .limits import DEQUANTIZED, DROP, EXPORTS
from .model_file import ModelFile, ModelTensor
from .names import layer_of, processing_order, role_of
from .plan import Plan, PlannedTensor
from .quantize import quantize_file
from .report import QuantizeReport
from .rewrite import Output, Progress, rewrite
from .threads import thread_count
from .types import Q4_HIFI, TensorType


def export_file(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    as_: str | None = None,
    layout: str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> QuantizeReport:
    """Rewrite the Q4_HIFI tensors of a model; all others are copied.

    Exactly one of ``as_`` (a key of :data:`EXPORTS`; the result loads in stock llama.cpp) and
    ``layout`` ("split" or "fork") is given. Changing the layout keeps bases and outliers, but for
    the rounding of an outlier to f16. Raises :class:`BadOptionError`,
    :class:`UnsupportedModelError` for a model without Q4_HIFI tensors, and what
    :func:`q4hifi.quantize_file` raises.
    """
    if (as_ is None) == (layout is None):
        raise BadOptionError("choose one of `as_` and `layout`")
    if as_ is not None and as_.lower() not in EXPORTS:
        raise BadOptionError(f"cannot export as {as_!r}; choose one of {', '.join(EXPORTS)}")
    if layout is not None and layout not in LAYOUTS:
        raise BadOptionError(f"unknown layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
    started = time.monotonic()
    with ModelFile.open(src) as model:
        if model.layout is None:
            raise UnsupportedModelError(
                f"{model.paths[0]}: has no Q4_HIFI tensors; it loads in llama.cpp as it is"
            )
        kind = EXPORTS[as_.lower()] if as_ else Q4_HIFI
        plan = _plan(model, kind, layout or SPLIT)
        metadata = _metadata(model.gguf.metadata, plan)
        written = rewrite(
            model,
            plan,
            metadata,
            Output(dst, overwrite),
            threads=thread_count(threads),
            progress=progress,
            drop_outliers=as_ is not None and as_.lower() == DROP,
        )
        return QuantizeReport.of(model, plan, written, None, time.monotonic() - started)


def _plan(model: ModelFile, kind: TensorType, layout: str) -> Plan:
    """Copy everything but the Q4_HIFI tensors, which become ``kind``."""

    def planned(tensor: ModelTensor) -> PlannedTensor:
        target = source = tensor.format
        if source.type == Q4_HIFI:
            target = Format(kind, source.outliers, layout) if kind == Q4_HIFI else Format(kind)
        role, layer = role_of(tensor.name), layer_of(tensor.name)
        return PlannedTensor(tensor.name, role, layer, tensor.shape, source, target)

    ordered = sorted(model.tensors.values(), key=lambda t: processing_order(t.name))
    return Plan(
        recipe=f"Q4_HIFI as {kind}" if kind != Q4_HIFI else f"Q4_HIFI, {layout} layout",
        layout=layout,
        file_type=FILE_TYPE[layout],
        scale=None,
        tensors=tuple(planned(tensor) for tensor in ordered),
    )


def _metadata(source: Metadata, plan: Plan) -> Metadata:
    """The source's pairs, with the layout told or, where no Q4_HIFI tensor is left, without it."""
    pairs = source.with_value("general.file_type", plan.file_type, GGUFValueType.UINT32)
    if not any(t.type == Q4_HIFI for t in plan.tensors):
        return pairs.without(*KEYS)
    return pairs.with_value(KEY_VERSION, VERSION, GGUFValueType.UINT32).with_value(
        KEY_LAYOUT, plan.layout, GGUFValueType.STRING
    )


def dequantize_file(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    type: str = "F16",
    *,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> QuantizeReport:
    """Decode every matrix of a model to F16, F32 or BF16; norms and the like are copied."""
    if type.upper() not in DEQUANTIZED:
        raise BadOptionError(f"cannot dequantize to {type!r}; choose one of {', '.join(DEQUANTIZED)}")
    return quantize_file(
        src, dst, type, allow_requantize=True, threads=threads, overwrite=overwrite, progress=progress
    )
