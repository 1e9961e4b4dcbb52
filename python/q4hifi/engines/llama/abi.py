"""Where llama.cpp's structs have the fields that we use: measured, because they move between versions.

- A tensor that ggml makes in a scratch context shows where ``ggml_tensor`` has its fields.
- ``cb_eval`` in ``llama_context_params`` is found by its neighbours: two null pointers (the callback and its
  user data) before ``type_k`` and ``type_v``, which are both F16.
- Operations and types have the numbers that ``ggml_op_name`` and ``ggml_type_name`` know.

What does not look exactly as expected raises :class:`UnavailableError`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

from ...errors import UnavailableError
from .library import Blob, InitParams

MAX_OPS, MAX_TYPES = 128, 64

NAME_BYTES = 64
"""``GGML_MAX_NAME`` of the usual builds. Longer names are cut."""

PARAMS_WORDS = 40
"""Words of ``llama_context_params`` in which ``cb_eval`` is searched. What is behind the struct is
undefined."""

FIRST_WORD = 10
"""The first word in which ``cb_eval`` can be: sizes and numbers of threads come before."""

GPU_LAYERS_WORD = 4
"""``n_gpu_layers`` in ``llama_model_params``: behind two pointers, before ``split_mode`` and ``main_gpu``."""

MODEL_WORDS = 24
"""Words of ``llama_model_params`` in which its fields that are true or false are searched."""


@dataclass(frozen=True)
class StructOffsets:
    """Byte offsets of the fields of ``ggml_tensor``, numbers of operations and types, and ``cb_eval``."""

    type: int
    buffer: int
    ne: int
    nb: int
    op: int
    src: int
    view_src: int
    data: int
    name: int
    mul_mat: int
    mul_mat_id: int
    f32: int
    i32: int
    cb_eval: int


def struct_offsets(lib: ctypes.CDLL) -> StructOffsets:
    """Measure the offsets in a library. Raises :class:`UnavailableError` where they are not as expected."""
    mul_mat = _number(lib.ggml_op_name, b"MUL_MAT", MAX_OPS)
    mul_mat_id = _number(lib.ggml_op_name, b"MUL_MAT_ID", MAX_OPS)
    f32, i32 = (_number(lib.ggml_type_name, name, MAX_TYPES) for name in (b"f32", b"i32"))
    context = lib.ggml_init(InitParams(1 << 20, None, False))
    if not context:
        raise _unlike("ggml_init returns nothing")
    try:
        weights = lib.ggml_new_tensor_3d(context, f32, 37, 11, 5)
        rows = lib.ggml_new_tensor_3d(context, f32, 37, 13, 5)
        product = lib.ggml_mul_mat(context, weights, rows)
        few_rows = lib.ggml_new_tensor_3d(context, f32, 37, 2, 5)
        experts = lib.ggml_new_tensor_3d(context, i32, 2, 5, 1)
        indirect = lib.ggml_mul_mat_id(context, weights, few_rows, experts)
        view = lib.ggml_view_1d(context, weights, 37, 8)
        name = lib.ggml_get_name(weights) - weights
        if not 0 < name < 1024:
            raise _unlike("a tensor's name is not in it")
        raw = {t: ctypes.string_at(t, name + NAME_BYTES) for t in (weights, product, indirect, view)}
        of = raw[weights]
        ne = _position(of, _int64s(37, 11, 5, 1), "ne")
        nb = _position(of, _int64s(4, 148, 148 * 11, 148 * 55), "nb")
        src = _position(raw[product], _int64s(weights, rows), "src")
        view_src = _position(raw[view], _int64s(weights), "view_src", first=src + 8)
        data = _position(of, _int64s(lib.ggml_get_data(weights)), "data")
        op = _position(raw[product], mul_mat.to_bytes(4, "little"), "op", step=4, first=nb + 32, last=src)
        if raw[indirect][op : op + 4] != mul_mat_id.to_bytes(4, "little"):
            raise _unlike("the operation of MUL_MAT_ID is elsewhere")
        if raw[indirect][src : src + 24] != _int64s(weights, few_rows, experts):
            raise _unlike("MUL_MAT_ID has other sources than weights, inputs and experts")
        if of[:4] != f32.to_bytes(4, "little") or ne < 16 or of[8:16] != bytes(8):
            raise _unlike("a tensor does not begin with its type and its buffer")
    finally:
        lib.ggml_free(context)
    return StructOffsets(
        type=0,
        buffer=8,
        ne=ne,
        nb=nb,
        op=op,
        src=src,
        view_src=view_src,
        data=data,
        name=name,
        mul_mat=mul_mat,
        mul_mat_id=mul_mat_id,
        f32=f32,
        i32=i32,
        cb_eval=_cb_eval(lib),
    )


def context_params(
    lib: ctypes.CDLL, offsets: StructOffsets, n_ctx: int, n_batch: int, callback: object
) -> Blob:
    """Return the parameters of a context that reads ``n_batch`` tokens at once and calls ``callback``.

    ``n_ctx``, ``n_batch``, ``n_ubatch`` and ``n_seq_max`` are the first four words.
    """
    params: Blob = lib.llama_context_default_params()
    words = params.words
    if not (words[3] == 1 and 0 < words[2] <= words[1] <= 1 << 20):
        raise _unlike(f"llama_context_params begins with {list(words[:4])}")
    words[0], words[1], words[2] = n_ctx, n_batch, n_batch
    params.set_pointer(offsets.cb_eval, ctypes.cast(callback, ctypes.c_void_p).value)  # type: ignore[arg-type]
    return params


def model_params(lib: ctypes.CDLL, gpu_layers: int | None, tensor_split: object = None) -> Blob:
    """Return the parameters of a model. ``gpu_layers`` None leaves the number of layers on a GPU to
    llama.cpp.

    ``tensor_split`` is None, or a C array of floats, which must live as long as the model is loaded.
    """
    params: Blob = lib.llama_model_default_params()
    if gpu_layers is None and tensor_split is None:
        return params
    words = params.words
    if any(words[:GPU_LAYERS_WORD]) or words[GPU_LAYERS_WORD + 1] != 1:
        raise _unlike(f"llama_model_params begins with {list(words[:8])}")
    if gpu_layers is not None:
        words[GPU_LAYERS_WORD] = gpu_layers & 0xFFFFFFFF
    if tensor_split is not None:
        address = ctypes.addressof(tensor_split)  # type: ignore[arg-type]
        params.set_pointer(_tensor_split(list(words[:MODEL_WORDS])), address)
    return params


def _tensor_split(words: list[int]) -> int:
    """Return the offset of ``tensor_split``: the first of four null pointers before the flags."""
    first = GPU_LAYERS_WORD + 3 + 8
    flags = [i for i in range(first, len(words)) if words[i] and not words[i] & ~0x01010101]
    pointers = 0 if not flags else flags[0] // 2 * 2 - 8
    if not flags or any(words[pointers : pointers + 8]):
        raise _unlike(f"llama_model_params is {words}")
    return 4 * pointers


def _unlike(what: str) -> UnavailableError:
    return UnavailableError(
        f"this llama.cpp is laid out in a way that q4hifi does not know ({what}); use another version"
    )


def _number(name_of: Callable[[int], bytes], wanted: bytes, most: int) -> int:
    """Return the number with that name."""
    for number in range(most):
        if name_of(number) == wanted:
            return number
    raise _unlike(f"there is no {wanted.decode()}")


def _int64s(*values: int) -> bytes:
    return b"".join(value.to_bytes(8, "little") for value in values)


def _position(
    raw: bytes, value: bytes, what: str, *, step: int = 8, first: int = 0, last: int | None = None
) -> int:
    """Return the only multiple of ``step`` from ``first`` to ``last`` where ``raw`` has ``value``."""
    end = (len(raw) if last is None else last) - len(value) + 1
    found = [i for i in range(first, end, step) if raw[i : i + len(value)] == value]
    if len(found) != 1:
        raise _unlike(f"{what} may be at {found}")
    return found[0]


def _cb_eval(lib: ctypes.CDLL) -> int:
    words = list(lib.llama_context_default_params().words[:PARAMS_WORDS])
    null, f16 = [0] * 4, [1] * 2
    found = [4 * i for i in range(FIRST_WORD, PARAMS_WORDS - 5, 2) if words[i : i + 6] == null + f16]
    if len(found) != 1:
        raise _unlike(f"cb_eval may be at {found}")
    return found[0]
