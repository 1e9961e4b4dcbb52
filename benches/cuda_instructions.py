"""Count the instructions in the loop of each matrix-vector kernel, and estimate their share of the time.

    python benches/cuda_instructions.py [--arch sm_90] [--columns 1]

Needs no GPU. It needs NVRTC (``pip install nvidia-cuda-nvrtc-cu12``) and nvdisasm, from the CUDA toolkit or
``pip install nvidia-cuda-nvdisasm``. The time is that of reading the bytes of one turn of the loop from an
H100's memory. It has 3.35 TB/s for 132 SMs at 1.75 GHz, and each SM issues four instructions per cycle.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from cuda_emulation import nvrtc
from q4hifi.cuda import kernels

BYTES = {"Q4_K": 144, "Q5_K": 176, "Q6_K": 210, "Q4_HIFI<1>": 168, "Q4_HIFI<2>": 192}
"""Bytes per block. Q4_HIFI<n> has 8 n outliers."""
BLOCKS = 4 * kernels.constant("MATVEC_ROWS")
"""Blocks that a warp reads in one turn of the loop."""
ISSUED_PER_BYTE = 4 * 132 * 1.75e9 / 3.35e12


def nvdisasm() -> str:
    """Return the path of the program nvdisasm."""
    found = shutil.which("nvdisasm")
    try:
        found = found or next(
            str(f.locate()) for f in files("nvidia-cuda-nvdisasm") or [] if f.name == "nvdisasm"
        )
    except (PackageNotFoundError, StopIteration):
        sys.exit("nvdisasm is missing: pip install nvidia-cuda-nvdisasm")
    return found


def loop(assembly: str) -> int:
    """Return the number of instructions in the first loop with more than a hundred.

    A loop begins at a label and ends with a jump back to it.
    """
    count, labels = 0, {}
    for line in assembly.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = count
        elif re.match(r"\s*/\*[0-9a-f]{4,}\*/", line):
            count += 1
            jump = re.search(r"BRA.*`\((\.L_\w+)\)", line)
            if jump and count - labels.get(jump[1], count) > 100:
                return count - labels[jump[1]]
    raise ValueError("no loop")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--columns", type=int, default=1, choices=kernels.COLUMNS)
    options = parser.parse_args()
    if nvrtc.library() is None:
        sys.exit("NVRTC is missing: pip install nvidia-cuda-nvrtc-cu12")
    code, names = nvrtc.compile(kernels.source(), options.arch, kernels.every_kernel())
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        run = [nvdisasm(), "-c", file.name]
        text = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    sections = {part.partition(",")[0].strip(): part for part in text.split("\t.section\t.text.")[1:]}
    print(f"{'':>10} {'bytes':>6} {'instructions':>12} {'of the time':>11}")
    for kind, block_bytes in BYTES.items():
        instructions = loop(sections[names[f"matvec<{kind}, {options.columns}>"]])
        nbytes = BLOCKS * block_bytes
        print(f"{kind:>10} {nbytes:6} {instructions:12} {instructions / (nbytes * ISSUED_PER_BYTE):11.0%}")


if __name__ == "__main__":
    main()
