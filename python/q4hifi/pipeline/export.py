"""Converting quantized models: for stock llama.cpp, to the other layout, or back to 16 or 32 bits."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from ..codec.model_file import ModelFile, ModelTensor
from ..errors import BadOptionError, UnsupportedModelError
from ..formats.gguf_constants import GGUFValueType
from ..formats.layout import (
    FILE_TYPE,
    KEY_LAYOUT,
    KEY_VERSION,
    KEYS,
    LAYOUTS,
    MAX_NAME_BYTES,
    SPLIT,
    VERSION,
    Format,
)
from ..formats.tensor_names import is_quantizable, layer_of, processing_order, role_of
from ..formats.types import F32, Q4_HIFI, TensorType
from ..gguf_io.metadata import Metadata
from ..plan.model_shape import ModelShape
from ..plan.plan import Plan, PlannedTensor
from ..plan.recipes import find_recipe
from ..progress import Progress
from ..threads import thread_count
from .planner import planned_metadata
from .report import QuantizeReport
from .rewrite import Output, rewrite
from .target_types import DEQUANTIZED, DROP, EXPORTS


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

    Give exactly one of two options. ``as_`` is "drop", "q5_k", "q6_k", "q8_0" or "f16"; the result loads in
    stock llama.cpp. ``layout`` is "split" or "fork"; base blocks and outliers stay the same, except that an
    outlier may be rounded to f16.

    Raises :class:`BadOptionError`, :class:`UnsupportedModelError` for a model without Q4_HIFI tensors, and
    the errors of :func:`q4hifi.quantize_file`.
    """
    if (as_ is None) == (layout is None):
        raise BadOptionError("choose one of `as_` and `layout`")
    if as_ is not None and as_.lower() not in EXPORTS:
        raise BadOptionError(f"cannot export as {as_!r}; choose one of {', '.join(EXPORTS)}")
    if layout is not None and layout not in LAYOUTS:
        raise BadOptionError(f"unknown layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
    started = time.monotonic()
    with ModelFile.open(src) as model:
        model.check_has_weights()
        if model.layout is None:
            raise UnsupportedModelError(
                f"{model.paths[0]}: has no Q4_HIFI tensors; it loads in llama.cpp as it is."
                f" {os.fspath(dst)} was not written"
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
    """The plan in which the Q4_HIFI tensors become ``kind``, and all others are copied."""

    def target(tensor: ModelTensor) -> Format:
        if tensor.type != Q4_HIFI:
            return tensor.format
        if kind != Q4_HIFI:
            return Format(kind)
        form = Format(kind, tensor.outliers, layout)
        if not form.can_name(tensor.name):
            with model.errors_at(tensor.name):
                raise UnsupportedModelError(
                    f"its companions would have names of more than {MAX_NAME_BYTES} bytes in the {layout}"
                    " layout; export it in another type with `as_=...`"
                )
        return form

    recipe = f"Q4_HIFI as {kind}" if kind != Q4_HIFI else f"Q4_HIFI, {layout} layout"
    return _planned(model, recipe, target, file_type=FILE_TYPE[layout], layout=layout)


def _metadata(source: Metadata, plan: Plan) -> Metadata:
    """The source's pairs, with the layout, or without it if no Q4_HIFI tensor is left."""
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
    """Decode every quantized tensor of a model, and convert its matrices to ``type``.

    ``type`` is F16, F32 or BF16. Quantized vectors become F32, as other vectors in GGUF files. Norms and
    other tensors that are never quantized are copied. Raises :class:`UnsupportedModelError` for a type that
    cannot be decoded, and the errors of :func:`q4hifi.quantize_file`.
    """
    kind = DEQUANTIZED.get(type.upper())
    if kind is None:
        raise BadOptionError(f"cannot dequantize to {type!r}; choose one of {', '.join(DEQUANTIZED)}")
    started = time.monotonic()
    with ModelFile.open(src) as model:
        model.check_has_weights()
        plan = _dequantized(model, kind)
        written = rewrite(
            model,
            plan,
            planned_metadata(model.gguf.metadata, plan),
            Output(dst, overwrite),
            threads=thread_count(threads),
            progress=progress,
        )
        return QuantizeReport.of(model, plan, written, None, time.monotonic() - started)


def _dequantized(model: ModelFile, kind: TensorType) -> Plan:
    """The plan in which matrices become ``kind``, and quantized vectors F32."""
    architecture = ModelShape.from_metadata(model.metadata).architecture

    def target(tensor: ModelTensor) -> Format:
        if not tensor.type.quantized:
            is_matrix = tensor.type.codec and is_quantizable(tensor.name, tensor.shape, architecture)
            return Format(kind) if is_matrix else tensor.format
        if not tensor.type.decodable:
            with model.errors_at(tensor.name):
                raise UnsupportedModelError(
                    f"is stored as {tensor.type}, which q4hifi cannot decode; start from the 16-bit model"
                )
        return Format(kind if any(n != 1 for n in tensor.shape[1:]) else F32)

    return _planned(model, kind.name, target, file_type=find_recipe(kind.name).file_type)


def _planned(
    model: ModelFile,
    recipe: str,
    target: Callable[[ModelTensor], Format],
    *,
    file_type: int | None,
    layout: str = SPLIT,
) -> Plan:
    """The plan in which ``target`` gives the format of every tensor."""
    ordered = sorted(model.tensors.values(), key=lambda t: processing_order(t.name))
    tensors = tuple(
        PlannedTensor(t.name, role_of(t.name), layer_of(t.name), t.shape, t.format, target(t))
        for t in ordered
    )
    return Plan(recipe, layout, file_type, None, tensors)
