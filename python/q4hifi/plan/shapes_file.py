"""Plans of models of which only the shapes are known: :func:`plan_shapes`.

A model too large to download can be planned from a JSON object::

    {"architecture": "llama", "block_count": 88, "head_count": 96, "head_count_kv": 8,
     "tensors": {"token_embd.weight": [12288, 131072], "blk.0.attn_q.weight": [12288, 12288]}}

``tensors`` has GGUF's names and shapes, row length first; they count as F16, vectors as F32.
"""

from __future__ import annotations

import os
from typing import Any

from ..errors import BadOptionError
from ..files.json_file import read_json
from ..formats.layout import MAX_ELEMENTS, StoredTensor
from ..formats.types import F16, F32
from .model_shape import ModelShape
from .options import Options
from .plan import Plan, make_plan

SUFFIX = ".json"
"""Of files of shapes."""


def plan_shapes(
    src: str | os.PathLike[str], type: str = "Q4_HIFI", *, has_imatrix: bool = False, **options: Any
) -> Plan:
    """Plan what a model of the shapes in the JSON file ``src`` would become.

    ``options`` are fields of :class:`q4hifi.plan.options.Options`; measured coverage needs weights. The plan
    has no ``file_bytes``, as the header is not known; ``tensor_bytes`` is exact. Raises
    :class:`BadFileError` where the file holds something else.
    """

    def parse(found: Any) -> tuple[ModelShape, list[StoredTensor]]:
        model = ModelShape(
            str(found["architecture"]),
            int(found["block_count"]),
            int(found["head_count"]),
            int(found["head_count_kv"]),
            int(found.get("expert_count", 0)),
        )
        tensors = [
            StoredTensor(str(name), shape := tuple(map(int, sizes)), F16 if len(shape) > 1 else F32)
            for name, sizes in found["tensors"].items()
        ]
        if not all(t.shape and all(size > 0 for size in t.shape) for t in tensors):
            raise ValueError("an empty shape")
        if not all(t.n_elements <= MAX_ELEMENTS for t in tensors):
            raise ValueError("more weights than can be addressed")
        return model, tensors

    model, tensors = read_json(
        src,
        "the shapes",
        'holds no shapes of a model, {"architecture": ..., "block_count": ..., "head_count": ...,'
        ' "head_count_kv": ..., "tensors": {"name": [row length, rows]}}',
        parse,
    )
    choices = Options(type=type, **options)
    if choices.is_measured(has_imatrix):
        raise BadOptionError(
            f"{src}: measured coverage measures weights, and shapes have none;"
            " plan the model, or with coverage scale"
        )
    return make_plan(tensors, model, choices, has_imatrix=has_imatrix)
