"""Models in several files (shards): llama.cpp's file names and metadata keys, and the tensors of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from ..errors import BadOptionError
from ..files.gguf_name import gguf_stem
from ..formats.gguf_constants import GGUF_DEFAULT_ALIGNMENT, GGUFValueType, Keys
from ..formats.layout import StoredTensor, padded
from ..wording import shortened
from .metadata import Metadata

NO, COUNT, TENSORS = (
    Keys.Split.LLM_KV_SPLIT_NO,
    Keys.Split.LLM_KV_SPLIT_COUNT,
    Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT,
)
MAX_SHARDS = 0xFFFF  # split.count is a u16

MAX_SIZE = 1 << 63
"""Bytes. No file system has files of this size."""

_LEAST = Decimal("1e-30")
_SHARD_NAME = re.compile(r"(?P<prefix>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)
_SIZE = re.compile(r"(?P<number>[0-9]*\.?[0-9]+(e[+-]?[0-9]{1,15})?)\s*(?P<unit>[a-z]*)", re.IGNORECASE)
_BITS = re.compile("[KMGT]i?b")
_UNITS = {"": 1, "B": 1} | {
    letter + rest: base**power
    for power, letter in enumerate("KMGT", 1)
    for rest, base in (("", 1000), ("B", 1000), ("IB", 1024))
}


class ShardName(NamedTuple):
    """The parts of a file name PREFIX-00001-of-0000N.gguf; ``number`` counts from 1, ``total`` is N."""

    prefix: str
    number: int
    total: int


def shard_name(path: Path) -> ShardName | None:
    """Return the parts of the name of ``path``, or None if it is not the name of a shard."""
    match = _SHARD_NAME.fullmatch(path.name)
    return ShardName(match["prefix"], int(match["number"]), int(match["count"])) if match else None


def shard_paths(folder: Path, prefix: str, count: int) -> tuple[Path, ...]:
    """Return the paths of all ``count`` shards of a model."""
    return tuple(folder / f"{prefix}-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count))


def files_of(path: Path) -> tuple[Path, ...]:
    """Return all files of the model that ``path`` belongs to, by its name alone; they need not exist."""
    shard = shard_name(path)
    return shard_paths(path.parent, shard.prefix, shard.total) if shard else (path,)


def output_paths(dst: Path, count: int) -> tuple[Path, ...]:
    """Return the paths of an output ``dst`` in ``count`` files: ``dst`` itself, or its shards beside it."""
    if count == 1:
        return (dst,)
    shard = shard_name(dst)
    return shard_paths(dst.parent, shard.prefix if shard else gguf_stem(dst.name), count)


def shard_metadata(metadata: Metadata, number: int, count: int, n_tensors: int) -> Metadata:
    """Return the pairs of shard ``number`` (from 0) of ``count``, in llama-quantize's order.

    The first shard has all pairs of the model; the others have only the keys ``split.*``. A model in one file
    has no keys ``split.*``, even if ``metadata`` has them.
    """
    pairs = metadata.without(NO, COUNT, TENSORS) if number == 0 else Metadata()
    if count == 1:
        return pairs
    return (
        pairs.with_value(NO, number, GGUFValueType.UINT16)
        .with_value(COUNT, count, GGUFValueType.UINT16)
        .with_value(TENSORS, n_tensors, GGUFValueType.INT32)
    )


def assign_shards(
    groups: Iterable[Sequence[StoredTensor]],
    split_max_bytes: int,
    *,
    alignment: int = GGUF_DEFAULT_ALIGNMENT,
) -> list[int]:
    """Return the shard (from 0) of each tensor, in order, such that the data of a shard fit the limit.

    As in llama-gguf-split, a new shard begins with the first group that does not fit into
    ``split_max_bytes``; headers are not counted. The tensors of a group stay in one shard. A group that
    exceeds the limit gets its own shard.
    """
    shards: list[int] = []
    shard = used = 0
    for group in groups:
        size = sum(padded(t.nbytes, alignment) for t in group)
        if used and used + size > split_max_bytes:
            shard, used = shard + 1, 0
        used += size
        shards += [shard] * len(group)
    return shards


def parse_size(text: str) -> int:
    """Return the bytes of a size such as "3.5G", as ``--split-max-size`` and ``--target-size`` take it.

    Units, in any case: K, M, G, T, KB, MB, GB and TB are powers of 1000, as in llama-gguf-split; KiB, MiB,
    GiB and TiB are powers of 1024. No unit, or B, means bytes and needs a whole number, such as 4e9. Mb and
    the like, which mean bits, are refused. Raises :class:`BadOptionError` for anything else, for sizes below
    one byte, and for those of more than 63 bits.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match["unit"].upper(), 0) if match else 0
    shown = f"'{shortened(text)}'"
    if match and unit and _BITS.fullmatch(match["unit"]):
        raise BadOptionError(f"{shown}: {match['unit']} means bits; write {match['unit'].upper()} for bytes")
    number = Decimal(match["number"]) if match else Decimal(0)
    if unit and number >= Decimal(MAX_SIZE) / unit:
        raise BadOptionError(f"{shown} is too large; no file has so many bytes")
    # a number that is far too small would become a fraction with a huge denominator
    size = Fraction(number) * unit if number > _LEAST else Fraction(0)
    if size < 1 or (unit == 1 and size.denominator > 1):
        raise BadOptionError(
            f"{shown} is not a size above zero; write it as 500M, 3.5G, 512MiB, 1.2 GB or in bytes"
        )
    return int(size)
