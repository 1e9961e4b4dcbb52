"""Record what the encoder makes of Q4_HIFI blocks: writes q4_hifi_encoder.json beside this file.

Usage: python make_q4_hifi.py

The weights are those of q4_hifi_v1.json, as hex of little-endian float16. That file holds blocks of
version 1 and what they decode to. It never changes, and this script does not write it: a better
encoder writes other bytes, but every reader must make the same values of the same bytes. All other
values are hex of bytes as in a file; of decoded values, of the SHA-256 of little-endian float32.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from q4hifi import Format
from q4hifi.codec import rows
from q4hifi.formats.layout import FORK, SPLIT
from q4hifi.formats.types import F16, Q4_HIFI

BLOCKS = Path(__file__).with_name("q4_hifi_v1.json")
ENCODER = Path(__file__).with_name("q4_hifi_encoder.json")
PARTS = {SPLIT: ("base", "index", "residual"), FORK: ("fork",)}


def floats(text):
    """Return float16 numbers written as hex."""
    return np.frombuffer(bytes.fromhex(text), "<f2")


def encode(weights, importance, outliers):
    """Return the bytes of the blocks of a row, in both layouts, as hex."""
    data = floats(weights)
    w = None if importance is None else floats(importance).astype(np.float32)
    found = {}
    for layout, names in PARTS.items():
        form = Format(Q4_HIFI, outliers, layout)
        parts, _ = rows.encode((data.view(np.uint8),), Format(F16), form, data.size, w)
        found.update(zip(names, (part.tobytes().hex() for part in parts), strict=True))
    return found


def decode(blocks, outliers):
    """Return the SHA-256 of the values of one block in each layout, {layout: hex}."""
    found = {}
    for layout, names in PARTS.items():
        form = Format(Q4_HIFI, outliers, layout)
        parts = tuple(np.frombuffer(bytes.fromhex(blocks[name]), np.uint8) for name in names)
        values = rows.decode(parts, form, 256)
        found[layout] = hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()
    return found


def main():
    """Write the encoder's file."""
    recorded = json.loads(BLOCKS.read_text())
    encoded = [
        {
            "weights": name,
            "importance": weighted,
            "outliers": n,
            "blocks": encode(x, recorded["importance"] if weighted else None, n),
        }
        for name, x in recorded["weights"].items()
        for weighted in (False, True)
        for n in (8, 32)
    ]
    about = "What the encoder makes of the weights of q4_hifi_v1.json; see make_q4_hifi.py"
    ENCODER.write_text(json.dumps({"about": about, "encoded": encoded}, indent=1) + "\n")


if __name__ == "__main__":
    main()
