"""NVRTC from its PyPI wheel, by ctypes: CUDA C++ to PTX or machine code, with no GPU, driver or toolkit."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from functools import cache
from importlib.metadata import PackageNotFoundError, files

PACKAGES = ("nvidia-cuda-nvrtc-cu12", "nvidia-cuda-nvrtc")


@cache
def library() -> ctypes.CDLL | None:
    """The library of whichever package is installed."""
    for package in PACKAGES:
        try:
            listed = files(package) or []
        except PackageNotFoundError:
            continue
        for file in listed:
            if file.name.startswith("libnvrtc.so"):
                return ctypes.CDLL(str(file.locate()))
    return None


class CompileError(Exception):
    """The source does not compile, or not without warnings; the message is NVRTC's log."""


def compile(source: str, arch: str, kernels: Sequence[str]) -> tuple[bytes, dict[str, str]]:
    """PTX for "compute_90" or machine code for "sm_90", and the kernels' names in it."""
    lib = library()
    assert lib is not None

    def call(name: str, *arguments: object) -> None:
        status = getattr(lib, name)(*arguments)
        log = output("ProgramLog").rstrip(b"\0") if status or name == "nvrtcCompileProgram" else b""
        if status or log:
            raise CompileError(f"{name}: status {status}\n{log.decode()}")

    def output(what: str) -> bytes:
        size = c_size_t()
        getattr(lib, f"nvrtcGet{what}Size")(program, byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(lib, f"nvrtcGet{what}")(program, buffer)
        return buffer.raw

    program = c_void_p()
    call("nvrtcCreateProgram", byref(program), source.encode(), b"kernels.cu", 0, None, None)
    try:
        for kernel in kernels:
            call("nvrtcAddNameExpression", program, kernel.encode())
        options = [f"--gpu-architecture={arch}", "-std=c++17"]
        array = (c_char_p * len(options))(*(option.encode() for option in options))
        call("nvrtcCompileProgram", program, c_int(len(options)), array)
        names = {}
        for kernel in kernels:
            lowered = c_char_p()
            call("nvrtcGetLoweredName", program, kernel.encode(), byref(lowered))
            assert lowered.value is not None
            names[kernel] = lowered.value.decode()
        return output("CUBIN" if arch.startswith("sm") else "PTX"), names
    finally:
        lib.nvrtcDestroyProgram(byref(program))
