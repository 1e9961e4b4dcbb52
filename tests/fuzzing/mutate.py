"""Damage to files: the same for the same state of a generator."""

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
    """A sound file. Most damage falls on its first ``hot`` bytes, where the structure is."""

    data: bytes
    hot: int

    @classmethod
    def of(cls, data: bytes, hot: int | None = None) -> Seed:
        """``hot`` None is all of it."""
        return cls(data, min(len(data), len(data) if hot is None else hot))


NUMBERS = [0, 1, 2, 3, 8, 31, 32, 33, 64, 255, 256, 257, 65535, 65536]
NUMBERS += [2**k + d for k in (24, 31, 32, 40, 53, 62, 63, 64) for d in (-1, 0, 1)]
"""Lengths, counts and numbers that readers go wrong with."""

FLOATS = [struct.pack("<f", x) for x in (0.0, -0.0, -1.0, 1e-45, 3.4e38, float("inf"), -float("inf"))]
FLOATS += [bytes.fromhex("0000c07f"), bytes.fromhex("ffffffff"), bytes.fromhex("007c")]


@lru_cache(64)
def fields(data: bytes) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Places and sizes of what is probably a length, a count or a type: small numbers of 8 and 4 bytes.

    Places that have the same number are together. A vocabulary has thousands of lengths, and other numbers
    that stand in one place only should be as likely to be changed.
    """
    found: dict[int, list[tuple[int, int]]] = {}
    for size in (8, 4):
        for at in range(len(data) - size + 1):
            number = int.from_bytes(data[at : at + size], "little")
            if 0 < number <= max(64, len(data)):
                found.setdefault(number, []).append((at, size))
    return tuple(map(tuple, found.values()))


def damage(seed: Seed, seeds: Sequence[Seed], rng: random.Random) -> bytes:
    """Change one to four places of a binary file. No call that is slow: there are millions of these."""
    data = bytearray(seed.data)
    places = fields(seed.data[: seed.hot])
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        hot = min(len(data), seed.hot) if rng.random() < 0.9 else len(data)
        at = int(rng.random() * hot)
        kind = int(rng.random() * 12)
        if kind < 4 and places:
            equal = places[int(rng.random() * len(places))]
            at, size = equal[int(rng.random() * len(equal))]
            number = rng.choice((rng.choice(NUMBERS), len(data), len(data) - at, rng.getrandbits(8), -1))
            data[at : at + size] = (number % (1 << (8 * size))).to_bytes(size, "little")
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
"""What a value of a JSON file is replaced by."""


def damage_json(seed: Seed, seeds: Sequence[Seed], rng: random.Random) -> bytes:
    """Replace, remove, add or repeat values of a JSON file; or change its bytes."""
    if rng.random() < 0.3:
        return damage_text(seed, seeds, rng)
    found = json.loads(seed.data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        nodes: list[tuple[Any, Any]] = []
        _nodes(found, nodes)
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
    return json.dumps(found).encode()


def _nodes(value: Any, found: list[tuple[Any, Any]], depth: int = 0) -> None:
    if depth > 20:
        return
    for key in (
        list(value) if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    ):
        found.append((value, key))
        _nodes(value[key], found, depth + 1)


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
"""What texts may contain that their readers do not expect."""


def damage_text(seed: Seed, seeds: Sequence[Seed], rng: random.Random) -> bytes:
    """Change a text in some places: lines, pieces and bytes."""
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
