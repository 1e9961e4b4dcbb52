"""An RPC server of llama.cpp: ``python rpc_server.py LIBRARY HOST:PORT`` serves the CPU until killed."""

from __future__ import annotations

import sys
from ctypes import CFUNCTYPE, c_char_p, c_size_t, c_void_p
from pathlib import Path

from q4hifi.engines.llama.library import load_library

START = CFUNCTYPE(None, c_char_p, c_char_p, c_size_t, c_size_t, c_void_p)


def main() -> None:
    library, endpoint = sys.argv[1:]
    lib = load_library(Path(library))
    for name in ("ggml_backend_reg_by_name", "ggml_backend_reg_get_proc_address", "ggml_backend_dev_by_type"):
        getattr(lib, name).restype = c_void_p
    lib.ggml_backend_reg_get_proc_address.argtypes = [c_void_p, c_char_p]
    registry = lib.ggml_backend_reg_by_name(b"RPC")
    start = START(lib.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_rpc_start_server"))
    cpu = (c_void_p * 1)(lib.ggml_backend_dev_by_type(0))
    start(endpoint.encode(), None, 1, 1, cpu)


if __name__ == "__main__":
    main()
