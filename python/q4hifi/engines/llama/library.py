"""The shared library with llama.cpp in it: finding it, loading it, and what it logs."""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Sequence
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

from ...errors import BadFileError, UnavailableError
from ...files.file_kinds import Purpose
from ...files.regular_file import check_regular_file

VARIABLE = "LLAMA_LIBRARY"
"""Environment variable with the path of a library to use instead of the package's."""

PACKAGE = "xllamacpp"

INSTALL = "pip install xllamacpp, or name a libllama with --llama-library or the variable " + VARIABLE

LIBRARY = Purpose("a libllama", "name a libllama", "install it again")

BLOB_WORDS = 256


class Blob(ctypes.Structure):
    """Room for a parameter struct of any version: the library fills it with defaults and takes it back.

    By the calling conventions of x86-64 and AArch64, only the address of a struct of more than 16 bytes, or
    its first bytes on the stack, matter to the function that is called. So the room may be larger than the
    struct.
    """

    _fields_ = [("words", c_uint32 * BLOB_WORDS)]

    def set_pointer(self, offset: int, value: int | None) -> None:
        """Write a pointer at a byte offset."""
        ctypes.memmove(ctypes.addressof(self) + offset, ctypes.byref(c_void_p(value)), 8)


class Batch(ctypes.Structure):
    """``llama_batch``."""

    _fields_ = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", c_void_p),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", c_void_p),
        ("seq_id", c_void_p),
        ("logits", POINTER(c_int8)),
    ]


class InitParams(ctypes.Structure):
    """``ggml_init_params``."""

    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


AbortCallback = ctypes.CFUNCTYPE(None, c_char_p)
LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)
EvalCallback = ctypes.CFUNCTYPE(c_bool, c_void_p, c_bool, c_void_p)
TokenBuffer = POINTER(c_int32)

SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ggml_backend_buffer_is_host": (c_bool, [c_void_p]),
    "ggml_backend_tensor_get": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_tensor_set": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_free": (None, [c_void_p]),
    "ggml_get_data": (c_void_p, [c_void_p]),
    "ggml_get_name": (c_void_p, [c_void_p]),
    "ggml_init": (c_void_p, [InitParams]),
    "ggml_log_set": (None, [LogCallback, c_void_p]),
    "ggml_mul_mat": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "ggml_mul_mat_id": (c_void_p, [c_void_p, c_void_p, c_void_p, c_void_p]),
    "ggml_nbytes": (c_size_t, [c_void_p]),
    "ggml_new_tensor_3d": (c_void_p, [c_void_p, c_int32, c_int64, c_int64, c_int64]),
    "ggml_op_name": (c_char_p, [c_int32]),
    "ggml_type_name": (c_char_p, [c_int32]),
    "ggml_view_1d": (c_void_p, [c_void_p, c_void_p, c_int64, c_size_t]),
    "llama_backend_init": (None, []),
    "llama_context_default_params": (Blob, []),
    "llama_decode": (c_int32, [c_void_p, Batch]),
    "llama_encode": (c_int32, [c_void_p, Batch]),
    "llama_free": (None, [c_void_p]),
    "llama_get_logits": (POINTER(c_float), [c_void_p]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_init_from_model": (c_void_p, [c_void_p, Blob]),
    "llama_log_set": (None, [LogCallback, c_void_p]),
    "llama_memory_clear": (None, [c_void_p, c_bool]),
    "llama_memory_seq_rm": (c_bool, [c_void_p, c_int32, c_int32, c_int32]),
    "llama_model_default_params": (Blob, []),
    "llama_model_free": (None, [c_void_p]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_model_has_decoder": (c_bool, [c_void_p]),
    "llama_model_has_encoder": (c_bool, [c_void_p]),
    "llama_model_is_diffusion": (c_bool, [c_void_p]),
    "llama_model_load_from_file": (c_void_p, [c_char_p, Blob]),
    "llama_n_batch": (c_uint32, [c_void_p]),
    "llama_n_ctx": (c_uint32, [c_void_p]),
    "llama_n_ubatch": (c_uint32, [c_void_p]),
    "llama_set_n_threads": (None, [c_void_p, c_int32, c_int32]),
    "llama_token_to_piece": (c_int32, [c_void_p, c_int32, c_void_p, c_int32, c_int32, c_bool]),
    "llama_tokenize": (c_int32, [c_void_p, c_char_p, c_int32, TokenBuffer, c_int32, c_bool, c_bool]),
    "llama_vocab_bos": (c_int32, [c_void_p]),
    "llama_vocab_eos": (c_int32, [c_void_p]),
    "llama_vocab_get_add_bos": (c_bool, [c_void_p]),
    "llama_vocab_get_add_eos": (c_bool, [c_void_p]),
    "llama_vocab_is_control": (c_bool, [c_void_p, c_int32]),
    "llama_vocab_is_eog": (c_bool, [c_void_p, c_int32]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
}
"""Function -> its result and arguments."""

_ERROR, _CONTINUED = 4, 5  # levels of ggml's log

_log: deque[tuple[int, str]] = deque(maxlen=200)

_processes: dict[str, int] = {}
"""The file of a library -> the process that loaded it."""

_model = "the model"
"""The file of the model that the library works on."""


def _collect(level: int, text: bytes, _user: object) -> None:
    _log.append((level, text.decode(errors="replace")))


_ending = Lock()


def _end(message: bytes) -> None:
    """End the process, which ggml would abort: it calls this where a model breaks one of its assumptions."""
    _ending.acquire()  # never released: a second thread of ggml that fails waits here for the end
    os.write(2, f"Error: {_model}: llama.cpp cannot go on: ".encode(errors="surrogateescape"))
    os.write(2, message.strip() + b"\n")
    os._exit(1)


# kept, because the library calls them as long as the process runs
_collector, _ender = LogCallback(_collect), AbortCallback(_end)


def begin_work(lib: ctypes.CDLL, model: str) -> None:
    """Forget what was logged, so that :func:`logged_errors` returns what follows.

    ``model`` is the file that the library works on from now on; the message about an abort names it. Raises
    :class:`UnavailableError` in a forked process, which does not have the threads of the library.
    """
    global _model
    if _processes[lib._name] != os.getpid():
        raise UnavailableError(
            f"{model}: llama.cpp does not work in a process that was forked after it was loaded;"
            " start processes with the method 'spawn'"
        )
    _model = model
    _log.clear()
    _take_log(lib)  # again, because another user of the library may have taken it meanwhile


def _take_log(lib: ctypes.CDLL) -> None:
    lib.ggml_log_set(_collector, None)
    lib.llama_log_set(_collector, None)


def logged_errors() -> str:
    """Return the errors that llama.cpp logged since :func:`begin_work`, in one line."""
    errors, is_error = "", False
    for level, text in _log:
        is_error = is_error if level == _CONTINUED else level == _ERROR
        errors += text * is_error
    return " ".join(errors.split()) or "llama.cpp gives no reason"


def library_path(path: str | os.PathLike[str] | None = None) -> Path:
    """Return the library to use: ``path``, or that of LLAMA_LIBRARY, or that of the package xllamacpp.

    Raises :class:`UnavailableError` if there is none.
    """
    if named := path or os.environ.get(VARIABLE):
        try:
            check_regular_file(named, LIBRARY)
        except BadFileError as error:
            source = "" if path else f"; the variable {VARIABLE} names it"
            raise UnavailableError(f"{error}{source}") from error
        return Path(named).resolve()
    spec = find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for name in sorted(Path(folder).glob(f"{PACKAGE}*")):
            if name.suffix == ".so":
                return name
            if name.suffix == ".pyd":
                raise UnavailableError(
                    f"{name}: the package for Windows does not export llama.cpp's functions;"
                    f" name a llama.dll with --llama-library or the variable {VARIABLE}"
                )
    raise UnavailableError(f"llama.cpp is not installed; {INSTALL}")


@cache
def load_library(path: Path) -> ctypes.CDLL:
    """Load a library, and declare its functions. Raises :class:`UnavailableError` if it is not llama.cpp."""
    # else idle threads of llama.cpp take the time of ours; OpenMP reads the variable when it is loaded
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        lib = ctypes.CDLL(os.fspath(path))
    except OSError as error:
        raise UnavailableError(f"{path} cannot be loaded: {error}; name another libllama") from None
    _processes[lib._name] = os.getpid()
    missing = [name for name in SIGNATURES if not hasattr(lib, name)]
    if missing:
        raise UnavailableError(
            f"{path} has no function {missing[0]}, so it is no llama.cpp of a version that q4hifi can use;"
            f" {INSTALL}"
        )
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    _take_log(lib)
    if hasattr(lib, "ggml_set_abort_callback"):
        lib.ggml_set_abort_callback.restype, lib.ggml_set_abort_callback.argtypes = c_void_p, [AbortCallback]
        lib.ggml_set_abort_callback(_ender)
    if not path.name.startswith(PACKAGE):
        _load_backends(lib, path.parent)
    lib.llama_backend_init()
    return lib


def _load_backends(lib: ctypes.CDLL, folder: Path) -> None:
    """Load the backends (CUDA and others) of a build that has them in libraries of their own."""
    if hasattr(lib, "ggml_backend_load_all_from_path"):
        lib.ggml_backend_load_all_from_path.argtypes = [c_char_p]
        lib.ggml_backend_load_all_from_path.restype = None
        lib.ggml_backend_load_all_from_path(os.fsencode(folder))


def is_causal(lib: ctypes.CDLL, model: int, context: int, *, stored: bool) -> bool:
    """Return whether no token of a context sees later ones.

    ``stored`` is what the model's file says of it. An old library does not tell more, except for diffusion
    models.
    """
    if not hasattr(lib, "llama_get_causal_attn"):
        return stored and not lib.llama_model_is_diffusion(model)
    lib.llama_get_causal_attn.restype, lib.llama_get_causal_attn.argtypes = c_bool, [c_void_p]
    return bool(lib.llama_get_causal_attn(context))


def has_rpc(lib: ctypes.CDLL) -> bool:
    """Return whether a library can compute on RPC servers."""
    return bool(_rpc_function(lib, b"ggml_backend_rpc_add_server"))


def _rpc_function(lib: ctypes.CDLL, name: bytes) -> int | None:
    """The address of a function of the RPC backend, None if there is none."""
    lib.ggml_backend_reg_by_name.restype, lib.ggml_backend_reg_by_name.argtypes = c_void_p, [c_char_p]
    lib.ggml_backend_reg_get_proc_address.restype = c_void_p
    lib.ggml_backend_reg_get_proc_address.argtypes = [c_void_p, c_char_p]
    registry = lib.ggml_backend_reg_by_name(b"RPC")
    address: int | None = lib.ggml_backend_reg_get_proc_address(registry, name) if registry else None
    return address


def add_rpc_servers(lib: ctypes.CDLL, path: Path, servers: Sequence[str]) -> None:
    """Let llama.cpp compute on RPC servers, each "HOST:PORT".

    Raises :class:`UnavailableError` if the library was built without RPC, or a server does not answer.
    """
    if not servers:
        return
    if not (address := _rpc_function(lib, b"ggml_backend_rpc_add_server")):
        raise UnavailableError(f"{path}: this llama.cpp was built without RPC; name another libllama")
    lib.ggml_backend_register.restype, lib.ggml_backend_register.argtypes = None, [c_void_p]
    add_server = ctypes.CFUNCTYPE(c_void_p, c_char_p)(address)
    for server in servers:
        if not (added := add_server(server.encode())):
            raise UnavailableError(f"the RPC server {server} does not answer: {logged_errors()}")
        lib.ggml_backend_register(added)
