"""The reference: the ggml and llama.cpp inside the PyPI wheel ``xllamacpp``, called through ctypes.

The wheel's one shared object exports ggml's C functions and llama.cpp's C API. Its structs change
from version to version, so none is declared here: a parameter struct comes from the library's own
``..._default_params`` into a :class:`Blob` that is larger than any version of it, and goes back by
value; only ``n_ctx``, the first field of the context's, is set. Both the x86-64 and the AArch64
calling conventions allow this for a struct of more than 16 bytes, because only its address, or its
first bytes on the stack, matter to the callee.

The engine's log is collected instead of printed; its errors become the text of a RuntimeError.

The environment variable LLAMA_LIBRARY may name another build's shared object (libllama.so) to take the
wheel's place, which benches use to measure against one that was made for this CPU.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_LOG_ERROR = 4
_LOG_CONTINUED = 5
_CONTEXT = 512
"""Tokens of context given to a generation."""

_TokenBuffer = POINTER(c_int32)
_LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)
_ToFloat = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int64)


class Blob(ctypes.Structure):
    """Room for a struct of any version, with the defaults that the library put there."""

    _fields_ = [("first", c_uint32), ("rest", c_uint32 * 255)]


class _TypeTraits(ctypes.Structure):
    """``struct ggml_type_traits``; its fields have kept their places since 2024."""

    _fields_ = [
        ("type_name", c_char_p),
        ("block_size", c_int64),
        ("block_size_interleave", c_int64),
        ("type_size", c_size_t),
        ("is_quantized", c_bool),
        ("to_float", c_void_p),
        ("from_float_ref", c_void_p),
    ]


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ggml_quantize_chunk": (
        c_size_t,
        [c_int32, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p],
    ),
    "ggml_get_type_traits": (POINTER(_TypeTraits), [c_int32]),
    "llama_log_set": (None, [_LogCallback, c_void_p]),
    "ggml_log_set": (None, [_LogCallback, c_void_p]),
    "llama_backend_init": (None, []),
    "llama_model_default_params": (Blob, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, Blob]),
    "llama_model_free": (None, [c_void_p]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_vocab_is_eog": (c_bool, [c_void_p, c_int32]),
    "llama_tokenize": (
        c_int32,
        [c_void_p, c_char_p, c_int32, _TokenBuffer, c_int32, c_bool, c_bool],
    ),
    "llama_detokenize": (
        c_int32,
        [c_void_p, _TokenBuffer, c_int32, c_void_p, c_int32, c_bool, c_bool],
    ),
    "llama_context_default_params": (Blob, []),
    "llama_init_from_model": (c_void_p, [c_void_p, Blob]),
    "llama_set_n_threads": (None, [c_void_p, c_int32, c_int32]),
    "llama_free": (None, [c_void_p]),
    "llama_batch_get_one": (Blob, [_TokenBuffer, c_int32]),
    "llama_decode": (c_int32, [c_void_p, Blob]),
    "llama_get_logits_ith": (POINTER(c_float), [c_void_p, c_int32]),
}

_log: list[tuple[int, str]] = []


def _collect(level: int, text: bytes, _user: object) -> None:
    _log.append((level, text.decode(errors="replace")))


_collector = _LogCallback(_collect)  # kept, because the library calls it for as long as it lives


@cache
def library() -> ctypes.CDLL:
    """The wheel's shared object: loaded once, its functions typed, its log silenced."""
    # Python's import loads it first, so that CDLL finds it there instead of loading a second one.
    path = os.environ.get("LLAMA_LIBRARY") or importlib.import_module("xllamacpp.xllamacpp").__file__
    lib = ctypes.CDLL(path)
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.ggml_log_set(_collector, None)
    lib.llama_log_set(_collector, None)
    lib.llama_backend_init()
    return lib


def _traits(type_id: int) -> _TypeTraits:
    traits: _TypeTraits = library().ggml_get_type_traits(type_id).contents
    assert traits.block_size > 0, f"ggml has no type {type_id}"
    return traits


def ggml_quantize(type_id: int, x: Floats, importance: Floats | None = None) -> Bytes:
    """Bytes uint8 [rows, row_bytes] that ggml writes for ``x``, float32 [rows, n], as ``type_id``.

    ``importance``, float32 [n], weighs the columns, the same for all rows.
    """
    traits = _traits(type_id)
    x = np.ascontiguousarray(x, np.float32)
    rows, n = x.shape
    assert n % traits.block_size == 0, f"rows of {n} are not whole blocks of {traits.block_size}"
    out = np.zeros((rows, n // traits.block_size * traits.type_size), np.uint8)
    weights = None
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
        assert importance.shape == (n,), f"importance {importance.shape} does not fit rows of {n}"
        weights = importance.ctypes.data
    written = library().ggml_quantize_chunk(type_id, x.ctypes.data, out.ctypes.data, 0, rows, n, weights)
    assert written == out.nbytes, f"ggml wrote {written} bytes instead of {out.nbytes}"
    return out


def ggml_dequantize(type_id: int, data: Bytes, n: int) -> Floats:
    """Weights float32 [rows, n] that ggml reads from ``data``, uint8 [rows, row_bytes]."""
    traits = _traits(type_id)
    data = np.ascontiguousarray(data, np.uint8)
    rows, row_bytes = data.shape
    assert row_bytes * traits.block_size == n * traits.type_size, f"{row_bytes} bytes do not hold {n} weights"
    if traits.to_float is None:  # F32 has nothing to convert
        assert traits.type_name == b"f32", f"ggml cannot dequantize {traits.type_name}"
        return data.view(np.float32)
    out = np.empty((rows, n), np.float32)
    _ToFloat(traits.to_float)(data.ctypes.data, out.ctypes.data, out.size)
    return out


def checked(result: Any, ok: bool, what: str) -> Any:
    """Return ``result`` if ``ok``, else raise RuntimeError with what the engine logged as errors."""
    if ok:
        return result
    errors, error = "", False
    for level, text in _log:
        error = error if level == _LOG_CONTINUED else level == _LOG_ERROR
        errors += text * error
    raise RuntimeError(f"{what}: {errors.strip() or 'the engine gave no reason'}")


@contextmanager
def loaded(path: str | Path) -> Iterator[int]:
    """A model in the engine, a ``llama_model *``."""
    _log.clear()
    lib = library()
    lib.ggml_log_set(_collector, None)  # an engine of q4hifi may have taken the log
    lib.llama_log_set(_collector, None)
    model = lib.llama_model_load_from_file(os.fsencode(path), lib.llama_model_default_params())
    checked(model, bool(model), f"{path} does not load")
    try:
        yield model
    finally:
        lib.llama_model_free(model)


@contextmanager
def _context(model: int, threads: int) -> Iterator[int]:
    lib = library()
    params = lib.llama_context_default_params()
    params.first = _CONTEXT
    context = lib.llama_init_from_model(model, params)
    checked(context, bool(context), "no context for the model")
    try:
        lib.llama_set_n_threads(context, threads, threads)
        yield context
    finally:
        lib.llama_free(context)


def tokens_of(vocabulary: int, text: str) -> list[int]:
    raw = text.encode()
    room = len(raw) + 8  # a token is at least one byte, and a few are added at the ends
    tokens = (c_int32 * room)()
    n = library().llama_tokenize(vocabulary, raw, len(raw), tokens, room, True, False)
    return list(tokens[: checked(n, n > 0, f"{text!r} gives no tokens")])


def _text_of(vocabulary: int, tokens: list[int]) -> str:
    array = (c_int32 * len(tokens))(*tokens)
    room = 256 * (len(tokens) + 1)
    text = ctypes.create_string_buffer(room)
    n = library().llama_detokenize(vocabulary, array, len(tokens), text, room, False, True)
    return text.raw[: checked(n, n >= 0, "the tokens give no text")].decode(errors="replace")


def llama_generate(path: str | Path, prompt: str, n_tokens: int, threads: int = 1) -> str:
    """The text of the ``n_tokens`` most probable tokens, one after another, that follow ``prompt``.

    Fewer where the model ends its text. Raises RuntimeError with the engine's words where it
    refuses the file.
    """
    lib = library()
    with loaded(path) as model, _context(model, threads) as context:
        vocabulary = lib.llama_model_get_vocab(model)
        n_vocabulary = lib.llama_vocab_n_tokens(vocabulary)
        tokens, generated = tokens_of(vocabulary, prompt), list[int]()
        assert len(tokens) + n_tokens <= _CONTEXT, f"more than {_CONTEXT} tokens"
        for _ in range(n_tokens):
            array = (c_int32 * len(tokens))(*tokens)
            status = lib.llama_decode(context, lib.llama_batch_get_one(array, len(tokens)))
            checked(status, status == 0, f"{path} does not run (status {status})")
            logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (n_vocabulary,))
            assert np.isfinite(logits).all(), f"{path} gives logits that are not finite"
            tokens = [int(logits.argmax())]
            if lib.llama_vocab_is_eog(vocabulary, tokens[0]):
                break
            generated += tokens
        return _text_of(vocabulary, generated)


def llama_loads(path: str | Path) -> bool:
    """Whether the engine loads the file."""
    return llama_load_error(path) is None


def llama_load_error(path: str | Path) -> str | None:
    """None where the engine loads the file, else what it says against it."""
    try:
        with loaded(path):
            return None
    except RuntimeError as error:
        return str(error)
