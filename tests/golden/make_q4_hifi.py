"""Record what Q4_HIFI blocks look like: writes q4_hifi_v1.json beside this file.

Usage: python make_q4_hifi.py

The file holds the weights themselves, as hex of little-endian float16, so that it is a reference for
other implementations and other versions of numpy. All other values are hex of bytes as in a file.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from q4hifi import Format, rows
from q4hifi.layout import FORK, SPLIT
from q4hifi.types import F16, Q4_HIFI

GOLDEN = Path(__file__).with_name("q4_hifi_v1.json")


def floats(text):
    """Return float16 numbers written as hex."""
    return np.frombuffer(bytes.fromhex(text), "<f2")


def encode(weights, importance, outliers):
    """Return the bytes of the blocks of a row, in both layouts, as hex."""
    data = floats(weights)
    w = None if importance is None else floats(importance).astype(np.float32)
    found = {}
    for layout, names in ((SPLIT, ("base", "index", "residual")), (FORK, ("fork",))):
        form = Format(Q4_HIFI, outliers, layout)
        parts, _ = rows.encode((data.view(np.uint8),), Format(F16), form, data.size, w)
        found.update(zip(names, (part.tobytes().hex() for part in parts), strict=True))
    return found


def make_inputs():
    """Return rows of one block, {name: weights}, and the importance of their columns."""
    rng = np.random.RandomState(1)  # its numbers are the same in every version of numpy
    normal = rng.standard_normal(256) * 0.02
    spikes = normal * np.where(rng.uniform(size=256) < 0.03, 20, 1)
    return {
        "normal": normal,
        "heavy-tailed": rng.standard_t(3, 256) * 0.01,
        "spikes": spikes,
        "sparse": normal * (rng.uniform(size=256) < 0.1),
        "constant": np.full(256, -0.25),
        "equal magnitudes": rng.choice([-1, 1], 256),
        "zero": np.zeros(256),
    }, rng.standard_gamma(0.5, 256)


def main():
    """Write the golden file."""

    def text(x):
        return x.astype("<f2").tobytes().hex()

    weights, importance = make_inputs()
    weights, importance = {name: text(x) for name, x in weights.items()}, text(importance)
    encoded = [
        {
            "weights": name,
            "importance": weighted,
            "outliers": n,
            "blocks": encode(x, importance if weighted else None, n),
        }
        for name, x in weights.items()
        for weighted in (False, True)
        for n in (8, 32)
    ]
    about = "Q4_HIFI, version 1: blocks in both layouts, as hex; see make_q4_hifi.py"
    content = {"about": about, "weights": weights, "importance": importance, "encoded": encoded}
    GOLDEN.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
