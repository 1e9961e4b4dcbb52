"""The reference engine: llama.cpp's logits and its samplers, through the shared object of :mod:`oracle`.

Keys and values are f16 and flash attention is off, so that its arithmetic is the plain one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import POINTER, c_bool, c_float, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

import oracle
from oracle import Blob, checked, loaded

Floats = npt.NDArray[np.float32]


class _Batch(ctypes.Structure):
    """``llama_batch``, unchanged since 2023."""

    _fields_ = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", c_void_p),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", c_void_p),
        ("seq_id", c_void_p),
        ("logits", POINTER(c_int8)),
    ]


class _Candidate(ctypes.Structure):
    _fields_ = [("id", c_int32), ("logit", c_float), ("p", c_float)]


class _Candidates(ctypes.Structure):
    _fields_ = [
        ("data", POINTER(_Candidate)),
        ("size", c_size_t),
        ("selected", ctypes.c_int64),
        ("sorted", c_bool),
    ]


@cache
def _library() -> ctypes.CDLL:
    lib = ctypes.CDLL(oracle.library()._name)
    for name, result, arguments in (
        ("llama_decode", c_int32, [c_void_p, _Batch]),
        ("llama_get_logits", POINTER(c_float), [c_void_p]),
        ("llama_get_memory", c_void_p, [c_void_p]),
        ("llama_memory_clear", None, [c_void_p, c_bool]),
        ("llama_sampler_chain_default_params", Blob, []),
        ("llama_sampler_chain_init", c_void_p, [c_bool]),
        ("llama_sampler_chain_add", None, [c_void_p, c_void_p]),
        ("llama_sampler_init_top_k", c_void_p, [c_int32]),
        ("llama_sampler_init_top_p", c_void_p, [c_float, c_size_t]),
        ("llama_sampler_init_min_p", c_void_p, [c_float, c_size_t]),
        ("llama_sampler_init_temp", c_void_p, [c_float]),
        ("llama_sampler_init_dist", c_void_p, [c_uint32]),
        ("llama_sampler_apply", None, [c_void_p, POINTER(_Candidates)]),
        ("llama_sampler_free", None, [c_void_p]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def _context_params(n_ctx: int) -> Blob:
    """The defaults without flash attention.

    Its type is the last of four enumerations in a row whose default is -1; before them are counts,
    and after them a frequency, which is 0.
    """
    params = oracle.library().llama_context_default_params()
    words = list(params.rest)
    (last,) = [i for i in range(3, 254) if words[i - 3 : i + 2] == [0xFFFFFFFF] * 4 + [0]]
    params.rest[last] = 0
    params.first = n_ctx
    return params


@contextmanager
def _context(path: str | Path, n_ctx: int, threads: int) -> Iterator[tuple[int, int]]:
    lib = oracle.library()
    with loaded(path) as model:
        context = lib.llama_init_from_model(model, _context_params(n_ctx))
        checked(context, bool(context), "no context for the model")
        try:
            lib.llama_set_n_threads(context, threads, threads)
            yield context, lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        finally:
            lib.llama_free(context)


Read = Callable[..., Floats]
"""``read(tokens, first=0, pieces=())``: see :func:`llama_reader`."""


@contextmanager
def llama_reader(path: str | Path, n_ctx: int, *, threads: int = 2) -> Iterator[Read]:
    """A function that reads tokens, at most 2048 and ``n_ctx``, as a text on its own.

    It returns the logits after each from ``first`` on, float32 [n_tokens - first, n_vocab]. They are
    evaluated at once, or in ``pieces`` of so many and the rest.
    """
    lib = _library()
    with _context(path, n_ctx, threads) as (context, n_vocab):

        def read(tokens: Sequence[int], first: int = 0, pieces: Sequence[int] = ()) -> Floats:
            lib.llama_memory_clear(lib.llama_get_memory(context), True)
            rows: list[Floats] = []
            for numbers in np.split(np.arange(len(tokens)), np.cumsum(pieces, dtype=int)):
                n, wanted = len(numbers), numbers >= first
                array = (c_int32 * n)(*np.asarray(tokens)[numbers])
                batch = _Batch(n, array, None, None, None, None, (c_int8 * n)(*wanted.tolist()))
                status = lib.llama_decode(context, batch)
                checked(status, status == 0, f"{path} does not run (status {status})")
                if n_rows := int(wanted.sum()):
                    rows.append(
                        np.ctypeslib.as_array(lib.llama_get_logits(context), (n_rows, n_vocab)).copy()
                    )
            return np.concatenate(rows)

        yield read


def llama_logits(
    path: str | Path, tokens: Sequence[int], *, threads: int = 2, pieces: Sequence[int] = ()
) -> Floats:
    """Logits after each token, float32 [n_tokens, n_vocab]; see :func:`llama_reader`."""
    with llama_reader(path, len(tokens) + 8, threads=threads) as read:
        return read(tokens, pieces=pieces)


def llama_samples(
    logits: Floats, n: int, *, temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> list[int]:
    """``n`` tokens that llama.cpp's samplers choose by the same ``logits``, one after another."""
    lib = _library()
    chain = lib.llama_sampler_chain_init(False)
    for sampler in (
        lib.llama_sampler_init_top_k(top_k),
        lib.llama_sampler_init_top_p(top_p, 0),
        lib.llama_sampler_init_min_p(min_p, 0),
        lib.llama_sampler_init_temp(temperature),
        lib.llama_sampler_init_dist(seed),
    ):
        lib.llama_sampler_chain_add(chain, sampler)
    tokens = []
    for _ in range(n):
        data = (_Candidate * len(logits))(*[(i, float(v), 0) for i, v in enumerate(logits)])
        candidates = _Candidates(data, len(logits), -1, False)
        lib.llama_sampler_apply(chain, ctypes.byref(candidates))
        tokens.append(candidates.data[candidates.selected].id)
    lib.llama_sampler_free(chain)
    return tokens


def distance(ours: Floats, theirs: Floats) -> float:
    """The largest difference as a share of the range."""
    return float(np.abs(ours - theirs).max() / (theirs.max() - theirs.min()))


def divergences(reference: Floats, other: Floats) -> npt.NDArray[np.float64]:
    """Kullback-Leibler divergence of the distributions that the logits stand for, a token each."""

    def log_softmax(logits: Floats) -> npt.NDArray[np.float64]:
        shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))

    p, q = log_softmax(reference), log_softmax(other)
    return np.asarray((np.exp(p) * (p - q)).sum(-1))


def divergence(reference: Floats, other: Floats) -> float:
    """The mean of :func:`divergences`."""
    return float(divergences(reference, other).mean())
