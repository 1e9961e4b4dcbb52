"""Damaging files at random, reproducibly: the random generator determines the damage."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import lru_cache
from typing import Any, NamedTuple

Mutate = Callable[["Seed", Sequence["Seed"], random.Random], bytes]


class Seed(NamedTuple):
    """A valid file. Most damage hits its first ``hot`` bytes, which contain the structure."""

    data: bytes
    hot: int

    @classmethod
    def of(cls, data: bytes, hot: int | None = None) -> Seed:
        """Return a seed; ``hot`` None means the whole file."""
        return cls(data, min(len(data), len(data) if hot is None else hot))


INTEGERS = [0, 1, 2, 3, 8, 31, 32, 33, 64, 255, 256, 257, 65535, 65536]
INTEGERS += [2**k + d for k in (24, 31, 32, 40, 53, 62, 63, 64) for d in (-1, 0, 1)]
"""Integers at the limits of types and sizes, where readers often have bugs."""

FLOATS = [struct.pack("<f", x) for x in (0.0, -0.0, -1.0, 1e-45, 3.4e38, float("inf"), -float("inf"))]
FLOATS += [bytes.fromhex("0000c07f"), bytes.fromhex("ffffffff"), bytes.fromhex("007c")]


@lru_cache(64)
def fields(data: bytes) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Return the offsets and sizes of probable lengths, counts and types: small integers of 8 or 4 bytes.

    They are grouped by value, and :func:`damage` chooses a group first. So the thousands of lengths in a
    vocabulary do not make it unlikely that a value is changed which occurs only once.
    """
    by_value: dict[int, list[tuple[int, int]]] = {}
    for size in (8, 4):
        for at in range(len(data) - size + 1):
            value = int.from_bytes(data[at : at + size], "little")
            if 0 < value <= max(64, len(data)):
                by_value.setdefault(value, []).append((at, size))
    return tuple(map(tuple, by_value.values()))


def damage(seed: Seed, seeds: Sequence[Seed], rng: random.Random) -> bytes:
    """Damage a binary file one to four times. This runs millions of times, so it avoids slow calls."""
    data = bytearray(seed.data)
    groups = fields(seed.data[: seed.hot])
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        hot = min(len(data), seed.hot) if rng.random() < 0.9 else len(data)
        at = int(rng.random() * hot)
        kind = int(rng.random() * 12)
        if kind < 4 and groups:
            group = groups[int(rng.random() * len(groups))]
            at, size = group[int(rng.random() * len(group))]
            value = rng.choice((rng.choice(INTEGERS), len(data), len(data) - at, rng.getrandbits(8), -1))
            data[at : at + size] = (value % (1 << (8 * size))).to_bytes(size, "little")
        elif kind < 6:
            if at < len(data):
                data[at] ^= 1 << rng.getrandbits(3)
        elif kind == 6:
            data[at : at + 1] = bytes((rng.getrandbits(8),))
        elif kind == 7:
            del data[at:]
        elif kind == 8:
            data[at:at] = rng.randbytes(1 + rng.getrandbits(5))
        elif kind == 9:
            end = at + 1 + int(rng.random() * min(256, len(data)))
            data[at:at] = data[at:end]
        elif kind == 10:
            del data[at : at + 1 + rng.getrandbits(6)]
        else:
            other = seeds[int(rng.random() * len(seeds))].data
            start = int(rng.random() * len(other))
            piece = (
                rng.choice(FLOATS) if rng.random() < 0.3 else other[start : start + 1 + rng.getrandbits(7)]
            )
            data[at : at + (len(piece) if rng.random() < 0.7 else 0)] = piece
    return bytes(data)


VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    1e308,
    1e-320,
    2**63,
    10**400,
    "",
    "x" * 2000,
    "\ud800",
    "Q4_K",
    [],
    {},
]
VALUES += [[0, 0], [[1, 2]], {"a": {}}, float("nan"), float("inf"), "0.5", [[[[[]]]]]]
"""Replacements for values of a JSON file."""


def damage_json(seed: Seed, seeds: Sequence[Seed], rng: random.Random) -> bytes:
    """Replace, remove, add or repeat values of a JSON file, or damage it as a text."""
    if rng.random() < 0.3:
        return damage_text(seed, seeds, rng)
    root = json.loads(seed.data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        nodes: list[tuple[Any, Any]] = []
        _nodes(root, nodes)
        if not nodes:
            break
        parent, key = rng.choice(nodes)
        action = rng.randrange(6)
        if action < 3:
            parent[key] = deepcopy(rng.choice(VALUES))
        elif action == 3:
            del parent[key]
        elif action == 4:
            parent[key] = deepcopy(rng.choice(nodes)[0])
        elif isinstance(parent, dict):
            parent[rng.choice(("", "version", "é\0", "x" * 300))] = deepcopy(parent[key])
        else:
            parent.extend(deepcopy(parent) * 3)
    return json.dumps(root).encode()


def _nodes(value: Any, nodes: list[tuple[Any, Any]], depth: int = 0) -> None:
    """Append every list or dict in ``value`` to ``nodes``, with each of its indices or keys."""
    if depth > 20:
        return
    for key in (
        list(value) if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    ):
        nodes.append((value, key))
        _nodes(value[key], nodes, depth + 1)


PIECES = [
    "",
    "\0",
    "\n",
    "\r\n",
    "\ufeff",
    "\ud800",
    "é",
    "=",
    "#",
    '"',
    "\\",
    "(" * 50,
    "(a+)+$",
    "[[:digit:]]",
]
PIECES += [
    "{{",
    "}}",
    "{%",
    "%}",
    "[" * 2000,
    "[" * 100_000,
    "{" * 100,
    "1e999",
    "-0",
    "NaN",
    "9" * 5000,
    "x" * 3000,
    "\x1b[31m",
]
PIECES += [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{{ 'x' * 3000000000 }}",
    "{% include 'x' %}",
    "\U0010ffff",
]
"""Pieces of text that readers may not expect."""


def damage_text(seed: Seed, seeds: Sequence[Seed], rng: random.Random) -> bytes:
    """Insert, remove, repeat or change parts of a text, or change its encoding."""
    data = bytearray(seed.data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, kind = rng.randrange(len(data) + 1), rng.randrange(7)
        if kind < 2:
            data[at:at] = rng.choice(PIECES).encode("utf-8", "surrogatepass")
        elif kind == 2:
            data[at : at + 1] = rng.randbytes(rng.choice((1, 1, 4)))
        elif kind == 3:
            del data[at : at + rng.choice((1, 5, 50, len(data)))]
        elif kind == 4:
            other = rng.choice(seeds).data
            start = rng.randrange(len(other) + 1)
            data[at:at] = other[start : start + rng.choice((3, 20, 300))]
        elif kind == 5:
            data[at:at] = data[at : at + rng.choice((5, 50))] * rng.choice((2, 30))
        else:
            data[:] = data.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-8-sig", "utf-32-be")))
    return bytes(data[:1_000_000])
