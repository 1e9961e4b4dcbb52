"""The kernels compiled for the host, behind emulation.hpp, and called by ctypes."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from q4hifi.cuda import kernels
from q4hifi.cuda.kernels import Launch

COMPILER = shutil.which("g++")
"""None where it is not installed."""

FLAGS = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-Werror"]
SANITIZE = ["-fsanitize=undefined", "-fno-sanitize-recover=undefined"]
"""An address that is not aligned for what is read there ends the process, as it would a kernel."""

MAIN = """
#include "emulation.hpp"
#include "kernels.cu"

static const std::map<std::string, emulation::Launcher> launchers = {{
{table}
}};

extern "C" const char *launch(const char *kernel, unsigned grid, const unsigned *block, void **arguments,
                              bool backwards) {{
    static std::string message;
    try {{
        const dim3 dimensions{{block[0], block[1], block[2]}};
        emulation::launch(launchers.at(kernel), grid, dimensions, arguments, backwards);
        return nullptr;
    }} catch (const std::exception &error) {{
        return (message = error.what()).c_str();
    }}
}}
"""


@cache
def library() -> ctypes.CDLL:
    """All kernels as a shared object."""
    assert COMPILER is not None
    table = "\n".join(
        f'    {{"{kernel}", emulation::launcher({kernel})}},' for kernel in kernels.every_kernel()
    )
    with TemporaryDirectory() as folder:
        source, target = Path(folder, "main.cpp"), Path(folder, "kernels.so")
        source.write_text(MAIN.format(table=table))
        includes = [f"-I{kernels.FOLDER}", f"-I{Path(__file__).parent}"]
        subprocess.run([COMPILER, *FLAGS, *SANITIZE, *includes, str(source), "-o", str(target)], check=True)
        lib = ctypes.CDLL(str(target))
    lib.launch.restype = ctypes.c_char_p
    return lib


backwards = False
"""Whether threads and blocks run in the opposite order."""


def launch(plan: Launch, arguments: Sequence[ctypes._SimpleCData]) -> None:
    """Run a kernel. Raises RuntimeError where its threads wait for each other."""
    addresses = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
    message = library().launch(
        plan.kernel.encode(), plan.grid, (ctypes.c_uint * 3)(*plan.block), addresses, backwards
    )
    if message is not None:
        raise RuntimeError(message.decode())
