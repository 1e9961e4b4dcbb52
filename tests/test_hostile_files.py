"""Files that are damaged or lie: each is refused with an error that says so, and costs nothing."""

from __future__ import annotations

import os
import random
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from q4hifi.errors import BadFileError, Q4HifiError, UnsupportedModelError
from q4hifi.gguf_io.header import data_offsets, header_bytes
from q4hifi.gguf_io.reader import GgufFile

EXAMPLE = Path(__file__).parents[1] / "examples" / "tiny-qwen3-f16.gguf"

HUGE = 1 << 62
U8, I32, U32, STRING, ARRAY = 0, 5, 4, 8, 9
F32, Q8_0 = 0, 8


def string(data: bytes, length: int | None = None) -> bytes:
    """Return a GGUF string, or one that lies about its length."""
    return struct.pack("<Q", len(data) if length is None else length) + data


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    """Return a key-value pair."""
    return string(key) + struct.pack("<I", kind) + value


def u32(key: bytes, value: int) -> bytes:
    """Return a pair of type UINT32."""
    return pair(key, U32, struct.pack("<I", value))


def array(kind: int, count: int, data: bytes = b"") -> bytes:
    """Return the value of an array."""
    return struct.pack("<IQ", kind, count) + data


def entry(
    name: bytes = b"w",
    shape: Sequence[int] = (8,),
    kind: int = F32,
    offset: int = 0,
    n_dims: int | None = None,
) -> bytes:
    """Return a tensor's entry in the header, or one that lies about its dimensions."""
    dims = struct.pack(f"<I{len(shape)}Q", len(shape) if n_dims is None else n_dims, *shape)
    return string(name) + dims + struct.pack("<IQ", kind, offset)


def build(
    pairs: Sequence[bytes] = (),
    entries: Sequence[bytes] = (),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_pairs: int | None = None,
    n_tensors: int | None = None,
    data: int = 64,
) -> bytes:
    """Return a file of these parts with ``data`` bytes of data, or one that lies about its counts."""
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(entries) if n_tensors is None else n_tensors,
        len(pairs) if n_pairs is None else n_pairs,
    )
    head += b"".join([*pairs, *entries])
    return head.ljust(-(-len(head) // 32) * 32, b"\0") + bytes(data)


def nested(depth: int) -> bytes:
    """Return the value of an array of arrays, ``depth`` deep."""
    return array(ARRAY, 1) * (depth - 1) + array(U8, 1, b"\1")


GOOD = build([u32(b"k", 7), pair(b"deep", ARRAY, nested(8))], [entry(b"w"), entry(b"v", (4, 2), F32, 32)])

# (what is wrong, the file, what the error says)
MALFORMED: list[tuple[str, bytes, str]] = [
    ("empty file", b"", "0 bytes is not a GGUF file"),
    ("only a magic number", b"GGUF", "4 bytes is not a GGUF file"),
    ("another format", build(magic=b"ggml"), "not a GGUF file: it begins with b'ggml'"),
    ("absurd number of pairs", build(n_pairs=HUGE), "pairs and 0 tensors would end"),
    ("absurd number of tensors", build(n_tensors=HUGE), f"{HUGE} tensors would end"),
    ("one pair too many", build([u32(b"k", 7)], n_pairs=2, data=0), "2 pairs|key 2"),
    ("key longer than the file", build([string(b"k", HUGE) + bytes(64)]), "key 1 would end"),
    ("key longer than allowed", build([pair(b"k" * 65536, U8, b"\0")]), "key 1 has 65536 bytes"),
    ("empty key", build([u32(b"", 7)]), "key 1 is empty"),
    ("key twice", build([u32(b"k", 7), u32(b"k", 8)]), "key 'k' is there twice"),
    ("unknown value type", build([pair(b"k", 13, bytes(8))]), "unknown value type 13 of the value of 'k'"),
    ("string beyond the file", build([pair(b"k", STRING, string(b"x", HUGE))]), "value of 'k' would end"),
    ("array beyond the file", build([pair(b"k", ARRAY, array(I32, HUGE))]), "value of 'k' would end"),
    ("strings beyond the file", build([pair(b"k", ARRAY, array(STRING, HUGE))]), "value of 'k' would end"),
    (
        "a string of an array beyond the file",
        build([pair(b"k", ARRAY, array(STRING, 2, string(b"a") + string(b"b", HUGE)))]),
        "value of 'k' would end",
    ),
    ("arrays beyond the file", build([pair(b"k", ARRAY, array(ARRAY, HUGE))]), "value of 'k' would end"),
    ("unknown element type", build([pair(b"k", ARRAY, array(99, 0))]), "type 99 of the elements of"),
    ("arrays too deep", build([pair(b"k", ARRAY, nested(9))]), "more than 8 deep"),
    ("arrays far too deep", build([pair(b"k", ARRAY, nested(100_000))]), "more than 8 deep"),
    (
        "alignment not a power of two",
        build([u32(b"general.alignment", 48)]),
        "48, which is not a power of two",
    ),
    ("alignment zero", build([u32(b"general.alignment", 0)]), "0, which is not a power of two"),
    (
        "alignment of another type",
        build([pair(b"general.alignment", U8, b"\x20")]),
        "general.alignment is of type UINT8",
    ),
    ("tensor name too long", build([], [entry(b"n" * 64)]), "name of tensor 1 has 64 bytes"),
    (
        "tensor name beyond the file",
        build([], [string(b"w", HUGE) + bytes(64)]),
        "name of tensor 1 would end",
    ),
    ("tensor twice", build([], [entry(b"w"), entry(b"w", offset=32)]), "two tensors are called 'w'"),
    ("five dimensions", build([], [entry(shape=(1,) * 5)]), "'w' has 5 dimensions"),
    ("absurd number of dimensions", build([], [entry(n_dims=2**32 - 1)]), "'w' has 4294967295 dimensions"),
    ("zero beside a negative", build([], [entry(shape=(0, 2**64 - 8))]), "'w' has the impossible shape"),
    ("zero beside too many", build([], [entry(shape=(1 << 32, 0, 1 << 32))]), "'w' has the impossible shape"),
    (
        "nothing beyond the file",
        build([], [entry(shape=(0,), offset=96)]),
        "'w' would end at byte .* cut off",
    ),
    ("nothing far beyond the file", build([], [entry(shape=(0,), offset=HUGE)]), "'w' would end at byte"),
    ("nothing misaligned", build([], [entry(shape=(0,), offset=16)]), "'w' begins at data byte 16"),
    (
        "nothing of broken blocks",
        build([], [entry(shape=(48, 0), kind=Q8_0)]),
        "rows of 48 .* multiple of Q8_0's 32",
    ),
    (
        "tensors overlap across an empty one",
        build([], [entry(b"w", (9,)), entry(b"e", (0,), F32, 32), entry(b"v", (8,), F32, 32)]),
        "'w' and 'v' overlap",
    ),
    ("number beyond the file", build([], [entry(shape=())], data=3), "'w' would end at byte .* cut off"),
    ("dimension negative", build([], [entry(shape=(2**64 - 8,))]), "'w' has the impossible shape"),
    ("dimensions overflow", build([], [entry(shape=(1 << 32, 1 << 32))]), "'w' has the impossible shape"),
    (
        "rows are not whole blocks",
        build([], [entry(shape=(48,), kind=Q8_0)]),
        "rows of 48 .* multiple of Q8_0's 32",
    ),
    ("misaligned offset", build([], [entry(offset=16)]), "'w' begins at data byte 16"),
    ("tensor beyond the file", build([], [entry(shape=(17,))]), "'w' would end at byte .* cut off"),
    ("offset beyond the file", build([], [entry(offset=HUGE)]), "'w' would end at byte .* cut off"),
    ("data cut off", build([], [entry()], data=31), "'w' would end at byte .* cut off"),
    ("tensors overlap", build([], [entry(b"w", (9,)), entry(b"v", (8,), F32, 32)]), "'w' and 'v' overlap"),
    ("tensors in one place", build([], [entry(b"w"), entry(b"v")]), "'w' and 'v' overlap"),
]

UNSUPPORTED: list[tuple[str, bytes, str]] = [
    ("version 0", build(version=0), "GGUF version 0"),
    ("version 1", build(version=1), "GGUF version 1"),
    ("version 4", build(version=4), "GGUF version 4"),
    ("big-endian", build(version=3 << 24), "big-endian"),
    ("unknown tensor type", build([], [entry(kind=1000)]), "'w' has the unknown type id 1000"),
    ("removed tensor type", build([], [entry(kind=4)]), "'w' has the unknown type id 4"),
]


def test_the_builder_builds_good_files(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(GOOD)
    with GgufFile.open(tmp_path / "a.gguf") as model:
        assert model.metadata["k"] == 7
        assert list(model.tensors) == ["w", "v"]


@pytest.mark.parametrize(
    ("data", "match", "error"),
    [pytest.param(*case[1:], BadFileError, id=case[0]) for case in MALFORMED]
    + [pytest.param(*case[1:], UnsupportedModelError, id=case[0]) for case in UNSUPPORTED],
)
def test_a_bad_file_is_refused(data: bytes, match: str, error: type[Q4HifiError], tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(error, match=match) as raised:
        GgufFile.open(path)
    assert str(path) in str(raised.value)


def test_a_good_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    for length in range(len(GOOD)):
        path.write_bytes(GOOD[:length])
        with pytest.raises(BadFileError):
            GgufFile.open(path)


def test_a_header_of_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    path.write_bytes(build([pair(b"k", STRING, string(b"", 3 << 30))]))
    os.truncate(path, 4 << 30)
    tracemalloc.start()
    try:
        with pytest.raises(BadFileError, match="larger than 128 MiB"):
            GgufFile.open(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_is_no_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("no pipes in the file system")
        os.mkfifo(path)
    match = {"missing": "No such file", "folder": "not a file but a folder", "pipe": "not a regular file"}
    with pytest.raises(BadFileError, match=match[kind]):
        GgufFile.open(path)


# ---- shards --------------------------------------------------------------------------------------


def shard(number: int, count: int, n_tensors: int, *names: bytes) -> bytes:
    """Return a shard with its three keys and tensors of 32 bytes."""
    pairs = [
        pair(b"split.no", 2, struct.pack("<H", number)),
        pair(b"split.count", 2, struct.pack("<H", count)),
        pair(b"split.tensors.count", I32, struct.pack("<i", n_tensors)),
    ]
    return build(pairs, [entry(name, offset=32 * i) for i, name in enumerate(names)])


# (what is wrong, file number -> content, the file opened, what the error says)
BAD_SETS: list[tuple[str, dict[int, bytes], str, str]] = [
    ("missing shard", {1: shard(0, 2, 2, b"a")}, "m-00001-of-00002.gguf", "m-00002-of-00002.gguf"),
    (
        "count differs between the shards",
        {1: shard(0, 2, 2, b"a"), 2: shard(1, 3, 2, b"b")},
        "m-00001-of-00002.gguf",
        "00002-of-00002.gguf: split.count is 3, but 2",
    ),
    (
        "count differs from the name",
        {1: shard(0, 3, 2, b"a"), 2: shard(1, 3, 2, b"b")},
        "m-00001-of-00002.gguf",
        "split.count is 3, but by its name",
    ),
    (
        "shards exchanged",
        {1: shard(1, 2, 2, b"a"), 2: shard(0, 2, 2, b"b")},
        "m-00002-of-00002.gguf",
        "00001-of-00002.gguf: split.no is 1, but 0",
    ),
    (
        "tensors missing",
        {1: shard(0, 2, 3, b"a"), 2: shard(1, 2, 3, b"b")},
        "m-00001-of-00002.gguf",
        "split.tensors.count is 3, but 2",
    ),
    (
        "tensor in two shards",
        {1: shard(0, 2, 2, b"a"), 2: shard(1, 2, 2, b"a")},
        "m-00001-of-00002.gguf",
        "00002-of-00002.gguf: tensor 'a' is in .*00001-of-00002.gguf too",
    ),
    (
        "a shard that knows nothing of the set",
        {1: shard(0, 2, 2, b"a"), 2: build([], [entry(b"b")])},
        "m-00001-of-00002.gguf",
        "00002-of-00002.gguf: split.no is None",
    ),
    (
        "a lone file called a shard",
        {1: build()},
        "m-00001-of-00002.gguf",
        "split.count is 1, but by its name",
    ),
    (
        "a shard that is no GGUF",
        {1: shard(0, 2, 1, b"a"), 2: bytes(100)},
        "m-00001-of-00002.gguf",
        "00002-of-00002.gguf: not a GGUF file",
    ),
]


@pytest.mark.parametrize(
    ("files", "opened", "match"), [pytest.param(*case[1:], id=case[0]) for case in BAD_SETS]
)
def test_a_bad_set_of_shards_is_refused(
    files: dict[int, bytes], opened: str, match: str, tmp_path: Path
) -> None:
    for number, data in files.items():
        (tmp_path / f"m-{number:05d}-of-00002.gguf").write_bytes(data)
    with pytest.raises(BadFileError, match=match):
        GgufFile.open(tmp_path / opened)


@pytest.mark.parametrize("name", ["renamed.gguf", "m-00003-of-00002.gguf", "m-00000-of-00002.gguf"])
def test_a_shard_under_another_name_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(shard(0, 2, 2, b"a"))
    with pytest.raises(BadFileError, match=r"must be called|there is no shard"):
        GgufFile.open(tmp_path / name)


# ---- random damage -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_model() -> tuple[bytes, int]:
    """Return the example with all of its pairs but only its smallest tensors, and its header's length."""
    with GgufFile.open(EXAMPLE) as model:
        tensors = sorted(model.tensors.values(), key=lambda t: t.nbytes)[:6]
        header = header_bytes(model.metadata, tensors, 32)
        return header + bytes(data_offsets(tensors, 32)[-1]), len(header)


def flip_bytes(data: bytearray, rng: random.Random, where: int) -> None:
    for _ in range(rng.randint(1, 8)):
        data[min(where + rng.randrange(64), len(data) - 1)] = rng.randrange(256)


def cut_off(data: bytearray, _: random.Random, where: int) -> None:
    del data[where:]


def enlarge(data: bytearray, rng: random.Random, where: int) -> None:
    data[where : where + 8] = struct.pack("<Q", rng.choice([2**64 - 1, 2**63, 2**40, 2**32, 70_000]))


def insert(data: bytearray, rng: random.Random, where: int) -> None:
    data[where:where] = rng.randbytes(rng.randint(1, 40))


Damage = Callable[[bytearray, random.Random, int], None]


@pytest.mark.parametrize("damage", [flip_bytes, cut_off, enlarge, insert])
def test_damaged_headers_open_or_are_refused(
    damage: Damage, small_model: tuple[bytes, int], tmp_path: Path
) -> None:
    rng = random.Random(damage.__name__)
    path = tmp_path / "damaged.gguf"
    refused = 0
    intact, header = small_model
    for _ in range(100):
        data = bytearray(intact)
        # most of a header is vocabulary: aim at its beginning and end, where the structure is, as well
        first, last = rng.choice([(0, 1200), (0, header), (header - 600, header)])
        damage(data, rng, rng.randrange(first, last))
        path.write_bytes(data)
        tracemalloc.start()
        try:
            with GgufFile.open(path) as model:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                for tensor in model.tensors.values():
                    model.read(tensor)
                assert len(dict(model.metadata)) == len(model.metadata)
        except Q4HifiError as error:
            refused += 1
            peak = tracemalloc.get_traced_memory()[1]
            assert str(path) in str(error)
        finally:
            tracemalloc.stop()
        assert peak < 5 * len(data) + 100_000
    assert refused > 10
