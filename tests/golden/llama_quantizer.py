"""llama.cpp's function ``llama_model_quantize``, called in a child process: :class:`LlamaQuantizer`.

It runs in a child because llama.cpp ends its process where an assertion of it fails.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from ctypes import (
    CDLL,
    CFUNCTYPE,
    POINTER,
    Structure,
    byref,
    c_bool,
    c_char_p,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_void_p,
)
from typing import Any

from gguf import GGMLQuantizationType, LlamaFileType

COPY = "COPY"


class _Importance(Structure):
    _fields_ = [("name", c_char_p), ("data", POINTER(c_float)), ("size", c_size_t)]


class _Rule(Structure):
    _fields_ = [("pattern", c_char_p), ("type", c_int)]


class _Params(Structure):
    """``llama_model_quantize_params`` as it is since spring 2026, and room for later fields."""

    _fields_ = [
        ("nthread", c_int32),
        ("ftype", c_int),
        ("output_tensor_type", c_int),
        ("token_embedding_type", c_int),
        ("allow_requantize", c_bool),
        ("quantize_output_tensor", c_bool),
        ("only_copy", c_bool),
        ("pure", c_bool),
        ("keep_split", c_bool),
        ("dry_run", c_bool),
        ("imatrix", POINTER(_Importance)),
        ("kv_overrides", c_void_p),
        ("tt_overrides", POINTER(_Rule)),
        ("prune_layers", POINTER(c_int32)),
        ("rest", c_int64 * 64),
    ]


_Log = CFUNCTYPE(None, c_int, c_char_p, c_void_p)


class LlamaQuantizer:
    """A child process with the library ``path``, a libllama; :meth:`run` asks it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._child: subprocess.Popen[str] | None = None

    def run(self, src: str, dst: str, **options: Any) -> tuple[bool, str]:
        """Return whether the library quantized the file, and its log.

        The options are ``type``, a name; the fields of the parameters; ``imatrix``, {name: values};
        ``tensor_types``, [(pattern, type)]; ``prune_layers``.
        """
        if self._child is None or self._child.poll() is not None:
            command = [sys.executable, __file__, self._path]
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write(json.dumps({"src": src, "dst": dst, **options}) + "\n")
        self._child.stdin.flush()
        answer = self._child.stdout.readline()
        if not answer:
            self._child.wait()
            return False, "aborted"
        done, log = json.loads(answer)
        return done, log

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.communicate()


def _type(name: str) -> int:
    return int(GGMLQuantizationType[name.upper()])


def _file_type(name: str) -> int:
    names = {"F32": "ALL_F32", COPY: "ALL_F32"}
    return int(LlamaFileType[names.get(name.upper(), f"MOSTLY_{name.upper()}")])


def _set(params: Any, asked: dict[str, Any]) -> list[Any]:
    """Set the parameters; return what must live as long as they do."""
    params.ftype, params.only_copy = _file_type(asked["type"]), asked["type"].upper() == COPY
    kept: list[Any] = []
    for name, value in asked.items():
        if name in ("output_tensor_type", "token_embedding_type"):
            setattr(params, name, _type(value))
        elif name == "tensor_types":
            rules = [_Rule(pattern.encode(), _type(kind)) for pattern, kind in value]
            params.tt_overrides = array = (_Rule * (len(rules) + 1))(*rules)
            kept.append(array)
        elif name == "prune_layers":
            params.prune_layers = array = (c_int32 * (len(value) + 1))(*value, -1)
            kept.append(array)
        elif name == "imatrix":
            entries = [
                _Importance(key.encode(), (c_float * len(data))(*data), len(data))
                for key, data in value.items()
            ]
            params.imatrix = array = (_Importance * (len(entries) + 1))(*entries)
            kept += [entries, array]
        elif name not in ("src", "dst", "type"):
            setattr(params, name, value)
    return kept


def _serve(path: str) -> None:
    """Answer the questions on standard input, each a line of JSON."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "w")  # the library prints to standard output itself
    os.dup2(2, 1)
    lib = CDLL(path)
    log: list[str] = []
    collect = _Log(lambda level, text, user: log.append(text.decode(errors="replace")))
    lib.llama_log_set.argtypes = [_Log, c_void_p]
    lib.llama_log_set(collect, None)
    lib.llama_backend_init()
    lib.llama_model_quantize_default_params.restype = _Params
    for line in sys.stdin:
        asked = json.loads(line)
        log.clear()
        params = lib.llama_model_quantize_default_params()
        kept = _set(params, asked)
        status = lib.llama_model_quantize(asked["src"].encode(), asked["dst"].encode(), byref(params))
        del kept
        print(json.dumps([status == 0, "".join(log)]), file=answers, flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
