"""Plans a model from its shapes alone, without its file: :func:`plan_shapes`.

A model that is too large to download can be described by a JSON file with one object::

    {"architecture": "llama", "block_count": 88, "head_count": 96, "head_count_kv": 8,
     "tensors": {"token_embd.weight": [12288, 131072], "blk.0.attn_q.weight": [12288, 12288]}}

``tensors`` maps GGUF's names to shapes, row length first. Their type is taken to be F16, and F32 for vectors.
"expert_count" is optional.
"""

from __future__ import annotations

import os
from typing import Any

from ..errors import BadOptionError
from ..files.file_kinds import SHAPES_NAME, Purpose
from ..files.json_file import read_json
from ..formats.layout import MAX_ELEMENTS, StoredTensor
from ..formats.types import F16, F32
from .model_shape import ModelShape
from .options import TypeOptions
from .plan import Plan, make_plan

SUFFIX = ".json"
"""The suffix by which the commands recognise a file of shapes."""

SHAPES = Purpose(SHAPES_NAME, "name a model, or a file of its shapes", "write it again")


def plan_shapes(
    src: str | os.PathLike[str], type: str = "Q4_HIFI", *, has_imatrix: bool = False, **options: Any
) -> Plan:
    """Plan the quantization of a model whose shapes are in the JSON file ``src``.

    ``type`` is a recipe, ``has_imatrix`` whether an importance matrix would be used, and ``options`` are
    fields of :class:`q4hifi.plan.options.TypeOptions`. The plan's ``tensor_bytes`` is exact; ``file_bytes``
    is missing, because the header is unknown.

    Raises :class:`BadFileError` where the file cannot be read or does not contain shapes, and
    :class:`BadOptionError` for invalid options and for measured coverage, which needs weights.
    """

    def parse(value: Any) -> tuple[ModelShape, list[StoredTensor]]:
        model = ModelShape(
            str(value["architecture"]),
            int(value["block_count"]),
            int(value["head_count"]),
            int(value["head_count_kv"]),
            int(value.get("expert_count", 0)),
        )
        tensors = [
            StoredTensor(str(name), shape := tuple(map(int, sizes)), F16 if len(shape) > 1 else F32)
            for name, sizes in value["tensors"].items()
        ]
        if not all(t.shape and all(size > 0 for size in t.shape) for t in tensors):
            raise ValueError("an empty shape")
        if not all(t.n_elements <= MAX_ELEMENTS for t in tensors):
            raise ValueError("more weights than can be addressed")
        return model, tensors

    model, tensors = read_json(
        src,
        SHAPES,
        'holds no shapes of a model, {"architecture": ..., "block_count": ..., "head_count": ...,'
        ' "head_count_kv": ..., "tensors": {"name": [row length, rows]}}',
        parse,
    )
    choices = TypeOptions(type, **options)
    if choices.is_measured(has_imatrix):
        raise BadOptionError(
            f"{src}: measured coverage measures the errors of weights, and this file has only shapes;"
            " plan the model itself, or use `coverage='scale'`"
        )
    return make_plan(tensors, model, choices, has_imatrix=has_imatrix)
