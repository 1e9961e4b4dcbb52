"""GGUF files: read like the gguf package reads them, and written to the byte."""

from __future__ import annotations

import errno
import math
import os
import stat
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGUFValueType

from q4hifi.errors import BadFileError, BadOptionError, Q4HifiError, UnsupportedModelError
from q4hifi.formats.layout import StoredTensor
from q4hifi.formats.types import F32, Q4_HIFI, TYPES
from q4hifi.gguf_io.header import data_offsets, header_bytes
from q4hifi.gguf_io.reader import GgufFile, Metadata
from q4hifi.gguf_io.split import assign_shards, output_paths, parse_size
from q4hifi.gguf_io.tensor_table import TensorInfo
from q4hifi.gguf_io.writer import GgufWriter, file_sizes

EXAMPLE = Path(__file__).parents[1] / "examples" / "tiny-qwen3-f16.gguf"

U16, U32, I32, F32_VALUE, BOOL, STRING, ARRAY = (
    GGUFValueType.UINT16,
    GGUFValueType.UINT32,
    GGUFValueType.INT32,
    GGUFValueType.FLOAT32,
    GGUFValueType.BOOL,
    GGUFValueType.STRING,
    GGUFValueType.ARRAY,
)

# (key, value, type, element type): the extremes of every kind of value that GGUF has
KINDS: list[tuple[str, Any, GGUFValueType, GGUFValueType | None]] = [
    ("k.u8", 255, GGUFValueType.UINT8, None),
    ("k.i8", -128, GGUFValueType.INT8, None),
    ("k.u16", 65535, U16, None),
    ("k.i16", -32768, GGUFValueType.INT16, None),
    ("k.u32", 2**32 - 1, U32, None),
    ("k.i32", -(2**31), I32, None),
    ("k.u64", 2**64 - 1, GGUFValueType.UINT64, None),
    ("k.i64", -(2**63), GGUFValueType.INT64, None),
    ("k.f32", 0.5, F32_VALUE, None),
    ("k.f64", 1e300, GGUFValueType.FLOAT64, None),
    ("k.inf", math.inf, F32_VALUE, None),
    ("k.true", True, BOOL, None),
    ("k.false", False, BOOL, None),
    ("k.str", "Grüße 🌍 \0 end", STRING, None),
    ("k.empty", "", STRING, None),
    ("ключ", "key that is not ASCII", STRING, None),
    ("k.u8s", [0, 1, 255], ARRAY, GGUFValueType.UINT8),
    ("k.i16s", [-1, 2], ARRAY, GGUFValueType.INT16),
    ("k.i32s", list(range(-500, 500)), ARRAY, I32),
    ("k.u64s", [2**64 - 1], ARRAY, GGUFValueType.UINT64),
    ("k.f32s", [0.25, -math.inf, 3.0], ARRAY, F32_VALUE),
    ("k.f64s", [1e-300, 2.0], ARRAY, GGUFValueType.FLOAT64),
    ("k.bools", [True, False, True], ARRAY, BOOL),
    ("k.strs", ["", "a", "▁token", "\n"], ARRAY, STRING),
    ("k.nested", [[1, 2, 3], [4], [5, 6]], ARRAY, ARRAY),
    ("k.nested_strs", [[["a", ""], ["b"]], [["c"]]], ARRAY, ARRAY),
]


def gguf_writer(path: Path, **options: Any) -> gguf.GGUFWriter:
    """Return the gguf package's writer, the oracle of how a file looks."""
    return gguf.GGUFWriter(path, "llama", **options)


def finish(writer: gguf.GGUFWriter) -> None:
    """Write the file of the gguf package's writer."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Return random float32 [rows, columns]."""
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32)


def make_model(path: Path, n_tensors: int = 3, **options: Any) -> dict[str, np.ndarray]:
    """Write a model of some F32 matrices with sizes that need padding; return them."""
    writer = gguf_writer(path, **options)
    tensors = {f"blk.{i}.w": matrix(3 + i, 5 + i, i) for i in range(n_tensors)}
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    finish(writer)
    return tensors


def copy(source: GgufFile, dst: Path, **options: Any) -> GgufWriter:
    """Write all of ``source`` to ``dst``, in odd pieces and not in order."""
    tensors = list(source.tensors.values())
    with GgufWriter(dst, source.metadata, tensors, **options) as writer:
        for tensor in reversed(tensors):
            data = source.read(tensor).reshape(-1)
            for start in range(0, tensor.nbytes, 100_003):
                writer.write_at(tensor.name, start, data[start : start + 100_003])
        writer.commit()
    return writer


def small_writer(dst: Path, **options: Any) -> GgufWriter:
    """Return a writer of one F32 tensor ``w`` of 24 bytes."""
    return GgufWriter(dst, Metadata(), [StoredTensor("w", (3, 2), F32)], **options)


def names_in(folder: Path) -> set[str]:
    """Return the names of all files in ``folder``."""
    return {p.name for p in folder.iterdir()}


# ---- metadata ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kinds_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kinds") / "kinds.gguf"
    writer = gguf_writer(path)
    for key, value, kind, element in KINDS:
        writer.add_key_value(key, value, kind, sub_type=element)
    writer.add_tensor("w", matrix(2, 3))
    finish(writer)
    return path


@pytest.mark.parametrize(("key", "value", "kind", "element"), KINDS, ids=[k[0] for k in KINDS])
def test_every_kind_of_value_is_read(
    kinds_file: Path, key: str, value: Any, kind: GGUFValueType, element: GGUFValueType | None
) -> None:
    with GgufFile.open(kinds_file) as model:
        pairs = model.metadata
        assert pairs[key] == value
        assert type(pairs[key]) is type(value)
        assert pairs.value_type(key) == kind
        assert pairs.element_type(key) == element
        assert pairs.array_length(key) == (len(value) if kind == ARRAY else None)


def test_every_kind_of_value_is_carried_unchanged(kinds_file: Path, tmp_path: Path) -> None:
    with GgufFile.open(kinds_file) as model:
        assert list(model.metadata) == ["general.architecture"] + [k[0] for k in KINDS]
        copy(model, tmp_path / "copy.gguf")
    assert (tmp_path / "copy.gguf").read_bytes() == kinds_file.read_bytes()


def test_values_encode_as_the_gguf_package_does(kinds_file: Path) -> None:
    def innermost(value: Any) -> GGUFValueType:
        while isinstance(value[0], list):
            value = value[0]
        return STRING if isinstance(value[0], str) else I32

    encoded = Metadata().with_value("general.architecture", "llama", STRING)
    for key, value, kind, element in KINDS:
        if element == ARRAY:
            element = innermost(value)
        encoded = encoded.with_value(key, value, kind if element is None else element)
    with GgufFile.open(kinds_file) as model:
        assert {k: encoded.raw(k) for k in encoded} == {k: model.metadata.raw(k) for k in model.metadata}
        assert encoded.encode() == model.metadata.encode()


def test_strings_that_are_not_utf8_survive(tmp_path: Path) -> None:
    writer = gguf_writer(tmp_path / "a.gguf")
    writer.add_key_value("k.bytes", b"\xff\x00\xc3", STRING)
    writer.add_key_value("k.list", [b"\x80", b"ok"], ARRAY, sub_type=STRING)
    finish(writer)
    with GgufFile.open(tmp_path / "a.gguf") as model:
        assert model.metadata["k.bytes"].encode("utf-8", "surrogateescape") == b"\xff\x00\xc3"
        again = model.metadata.with_value("k.list", model.metadata["k.list"], STRING)
        assert again.encode() == model.metadata.encode()


def test_a_set_value_goes_to_the_end() -> None:
    pairs = Metadata().with_value("a", 1, U32).with_value("b", "x", STRING)
    changed = pairs.with_value("a", [], F32_VALUE)
    assert list(changed.items()) == [("b", "x"), ("a", [])]
    assert (changed.element_type("a"), changed.array_length("a")) == (F32_VALUE, 0)
    assert list(pairs) == ["a", "b"] and pairs["a"] == 1
    assert list(changed.without("b", "not there")) == ["a"]
    with pytest.raises(KeyError):
        pairs["c"]


@pytest.mark.parametrize(
    ("value", "kind"),
    [(-1, U32), (2**32, U32), ("1", U32), (1.5, I32), (7, STRING), ([1, [2]], U32), (1, ARRAY)],
)
def test_values_that_do_not_fit_their_type_are_refused(value: Any, kind: GGUFValueType) -> None:
    with pytest.raises(BadOptionError, match=r"key\.x"):
        Metadata().with_value("key.x", value, kind)


def test_a_large_vocabulary_is_carried_unchanged(tmp_path: Path) -> None:
    tokens = [f"▁token{i}" for i in range(150_000)]
    writer = gguf_writer(tmp_path / "big.gguf")
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_uint32("after", 7)
    finish(writer)
    with GgufFile.open(tmp_path / "big.gguf") as model:
        assert model.metadata.array_length("tokenizer.ggml.tokens") == 150_000
        copy(model, tmp_path / "copy.gguf")
        assert model.metadata["tokenizer.ggml.tokens"] == tokens
        assert model.metadata["after"] == 7
    assert (tmp_path / "copy.gguf").read_bytes() == (tmp_path / "big.gguf").read_bytes()


# ---- reading -------------------------------------------------------------------------------------


def test_the_example_reads_as_the_gguf_package_reads_it() -> None:
    reader = gguf.GGUFReader(EXAMPLE)
    with GgufFile.open(EXAMPLE) as model:
        assert model.paths == (EXAMPLE,)
        assert (model.version, model.alignment) == (3, reader.alignment)
        assert model.n_bytes == EXAMPLE.stat().st_size
        assert list(model.tensors) == [t.name for t in reader.tensors]
        assert list(model.metadata) == [k for k in reader.fields if not k.startswith("GGUF.")]
        for key in model.metadata:
            assert model.metadata[key] == reader.fields[key].contents()
        for expected in reader.tensors:
            tensor = model.tensors[expected.name]
            assert list(tensor.shape) == expected.shape.tolist()
            assert tensor.type.id == expected.tensor_type
            assert (tensor.offset, tensor.nbytes) == (expected.data_offset, expected.n_bytes)
            assert tensor.n_rows * tensor.row_length == tensor.n_elements == expected.n_elements
            assert tensor.n_rows * tensor.row_bytes == tensor.nbytes
            assert np.array_equal(model.read(tensor).reshape(-1), expected.data.view(np.uint8).reshape(-1))


def test_rows_and_bytes_are_read_from_the_middle(tmp_path: Path) -> None:
    (data,) = make_model(tmp_path / "a.gguf", 1).values()
    with GgufFile.open(tmp_path / "a.gguf") as model:
        (tensor,) = model.tensors.values()
        assert (tensor.shape, tensor.row_bytes) == ((5, 3), 20)
        assert np.array_equal(model.read(tensor, 1, 2).view(np.float32), data[1:])
        assert np.array_equal(model.read(tensor, 2).view(np.float32), data[2:])
        assert model.read(tensor, 3).shape == (0, 20)
        out = bytearray(7)
        model.read_into(tensor, 50, memoryview(out))
        assert out == data.tobytes()[50:57]
        for first, count in [(0, 4), (-1, 1), (3, 1), (2, -1)]:
            with pytest.raises(BadOptionError, match=r"blk\.0\.w"):
                model.read(tensor, first, count)
        for start, length in [(54, 7), (-1, 7)]:
            with pytest.raises(BadOptionError, match=r"blk\.0\.w"):
                model.read_into(tensor, start, np.empty(length, np.uint8))


def test_threads_read_without_disturbing_each_other() -> None:
    with GgufFile.open(EXAMPLE) as model, ThreadPoolExecutor(4) as pool:
        expected = {t.name: model.read(t).tobytes() for t in model.tensors.values()}
        for tensor, got in zip(
            model.tensors.values(), pool.map(model.read, model.tensors.values()), strict=True
        ):
            assert got.tobytes() == expected[tensor.name]


@pytest.mark.parametrize("missing", ["preadv", "pwrite"])
def test_systems_without_positional_io(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(tmp_path / "a.gguf")
    monkeypatch.delattr(os, missing)
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with GgufFile.open(tmp_path / "a.gguf") as model:
        copy(model, tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_version_2_is_read_and_written_as_3(tmp_path: Path) -> None:
    tensors = make_model(tmp_path / "v3.gguf")
    v3 = (tmp_path / "v3.gguf").read_bytes()
    (tmp_path / "v2.gguf").write_bytes(v3[:4] + struct.pack("<I", 2) + v3[8:])
    with GgufFile.open(tmp_path / "v2.gguf") as model:
        assert model.version == 2
        for name, data in tensors.items():
            assert model.read(model.tensors[name]).tobytes() == data.tobytes()
        copy(model, tmp_path / "copy.gguf")
    assert (tmp_path / "copy.gguf").read_bytes() == v3


def test_a_file_that_shrinks_while_open_is_reported(tmp_path: Path) -> None:
    make_model(tmp_path / "a.gguf")
    with GgufFile.open(tmp_path / "a.gguf") as model:
        os.truncate(tmp_path / "a.gguf", model.tensors["blk.2.w"].offset + 4)
        with pytest.raises(BadFileError, match=r"blk\.2\.w.*shorter"):
            model.read(model.tensors["blk.2.w"])


def fork_file(path: Path, type_name: str, *, file_type: int, row_length: int) -> None:
    """Write two tensors of three rows under type id 41, which ``type_name`` must have."""
    pairs = Metadata().with_value("general.file_type", file_type, U32)
    tensors = [StoredTensor(name, (row_length, 3), TYPES[type_name]) for name in "ab"]
    path.write_bytes(header_bytes(pairs, tensors, 32) + bytes(data_offsets(tensors, 32)[-1]))


@pytest.mark.parametrize(
    ("stored", "file_type", "row_length", "read_as"),
    [
        ("Q4_HIFI", 42, 512, "Q4_HIFI"),
        ("Q1_0", 42, 512, "Q1_0"),
        ("Q1_0", 42, 384, "Q1_0"),
        ("Q1_0", 40, 512, "Q1_0"),
    ],
)
def test_type_41_is_q4_hifi_only_in_a_fork_file(
    stored: str, file_type: int, row_length: int, read_as: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.gguf"
    fork_file(path, stored, file_type=file_type, row_length=row_length)
    with GgufFile.open(path) as model:
        assert [t.type for t in model.tensors.values()] == [TYPES[read_as]] * 2
        copy(model, tmp_path / "b.gguf")
    assert (tmp_path / "b.gguf").read_bytes() == path.read_bytes()
    os.truncate(path, path.stat().st_size - 64)
    with pytest.raises(BadFileError, match=r"tensor 'b'.*cut off"):
        GgufFile.open(path)


# ---- shards --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.gguf", "m.GGUF", "m.Gguf", "m", "m-00002-of-00007.gguf"])
def test_shards_are_named_after_the_output_without_its_ending(name: str) -> None:
    paths = output_paths(Path("folder", name), 2)
    assert [str(path) for path in paths] == [f"folder/m-0000{i}-of-00002.gguf" for i in (1, 2)]


@pytest.fixture
def shards(tmp_path: Path) -> SimpleNamespace:
    """Make a model of five tensors in three shards, by the gguf package."""
    (tmp_path / "in").mkdir()
    tensors = make_model(tmp_path / "in" / "m.gguf", 5, split_max_tensors=2)
    paths = tuple(tmp_path / "in" / f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3))
    return SimpleNamespace(paths=paths, tensors=tensors, folder=tmp_path)


@pytest.mark.parametrize("opened", [0, 1, 2])
def test_any_shard_opens_the_whole_model(shards: SimpleNamespace, opened: int) -> None:
    with GgufFile.open(shards.paths[opened]) as model:
        assert model.paths == shards.paths
        assert model.metadata["general.architecture"] == "llama"
        assert model.metadata["split.count"] == 3
        assert [t.shard for t in model.tensors.values()] == [0, 0, 1, 1, 2]
        assert model.n_bytes == sum(p.stat().st_size for p in shards.paths)
        for name, data in shards.tensors.items():
            assert model.read(model.tensors[name]).tobytes() == data.tobytes()


def test_shards_become_one_file_without_split_keys(shards: SimpleNamespace) -> None:
    make_model(shards.folder / "single.gguf", 5)
    with GgufFile.open(shards.paths[0]) as model:
        copy(model, shards.folder / "merged.gguf")
    assert (shards.folder / "merged.gguf").read_bytes() == (shards.folder / "single.gguf").read_bytes()


def test_shards_are_kept(shards: SimpleNamespace) -> None:
    with GgufFile.open(shards.paths[0]) as model:
        shard_of = [t.shard for t in model.tensors.values()]
        writer = copy(model, shards.folder / "out.v2.gguf", shard_of=shard_of)
    assert [p.name for p in writer.paths] == [f"out.v2-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert writer.sizes == tuple(p.stat().st_size for p in writer.paths)
    for number, path in enumerate(writer.paths):
        fields = gguf.GGUFReader(path).fields
        keys = [k for k in fields if not k.startswith("GGUF.")]
        assert keys == ["general.architecture"] * (number == 0) + [
            "split.no",
            "split.count",
            "split.tensors.count",
        ]
        assert [fields[k].contents() for k in keys[-3:]] == [number, 3, 5]
        assert [fields[k].types for k in keys[-3:]] == [[U16], [U16], [I32]]
    with GgufFile.open(writer.paths[1]) as model:
        for name, data in shards.tensors.items():
            assert model.read(model.tensors[name]).tobytes() == data.tobytes()
        again = copy(model, shards.folder / "again-00002-of-00007.gguf", shard_of=shard_of)
    assert again.paths[0].name == "again-00001-of-00003.gguf"
    assert [p.read_bytes() for p in again.paths] == [p.read_bytes() for p in writer.paths]


def test_a_first_shard_may_hold_no_tensors(tmp_path: Path) -> None:
    make_model(tmp_path / "a.gguf")
    with GgufFile.open(tmp_path / "a.gguf") as model:
        writer = copy(model, tmp_path / "b.gguf", shard_of=[1, 1, 1])
    assert len(writer.paths) == 2
    with GgufFile.open(writer.paths[0]) as model:
        assert [t.shard for t in model.tensors.values()] == [1, 1, 1]


def test_alignment_is_honoured_in_one_file_and_in_shards(tmp_path: Path) -> None:
    writer = gguf_writer(tmp_path / "a.gguf")
    writer.add_custom_alignment(64)
    tensors = {f"w{i}": matrix(3, 5, i) for i in range(3)}
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    finish(writer)
    with GgufFile.open(tmp_path / "a.gguf") as model:
        assert model.alignment == 64
        copy(model, tmp_path / "copy.gguf")
        split = copy(model, tmp_path / "split.gguf", shard_of=[0, 1, 1])
        copy(model, tmp_path / "b.gguf", alignment=128)
    assert (tmp_path / "copy.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()
    for path, alignment in [(split.paths[1], 64), (tmp_path / "b.gguf", 128)]:
        with GgufFile.open(path) as model:
            assert model.alignment == alignment
            assert all(t.offset % alignment == 0 for t in model.tensors.values())
            for name, data in tensors.items():
                assert model.read(model.tensors[name]).tobytes() == data.tobytes()


def test_shards_are_assigned_up_to_the_limit_and_groups_stay_together() -> None:
    def stored(n: int) -> StoredTensor:
        return StoredTensor("t", (n,), F32)

    a, b, big = stored(8), stored(9), stored(100)  # 32, 64 and 416 bytes with their padding
    assert assign_shards([[a], [a], [a], [a]], 64) == [0, 0, 1, 1]
    assert assign_shards([[a], [a, b], [a]], 128) == [0, 0, 0, 1]
    assert assign_shards([[a], [a, b], [a]], 127) == [0, 1, 1, 1 + 1]
    assert assign_shards([[big], [a], [big], [a]], 100) == [0, 1, 2, 3]
    assert assign_shards([[a], [b]], 96, alignment=64) == [0, 1]
    assert assign_shards([], 1) == []


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4G", 4_000_000_000),
        ("500M", 500_000_000),
        ("12345", 12345),
        ("2gib", 2 << 30),
        ("512 MiB", 512 << 20),
        ("3KiB", 3072),
        ("4MB", 4_000_000),
        ("3.5GiB", 3_758_096_384),
        ("1.2 GB", 1_200_000_000),
        (" 4g ", 4_000_000_000),
        ("2k", 2000),
        ("2KB", 2000),
        ("1.5K", 1500),
        ("0.5G", 500_000_000),
        (".5G", 500_000_000),
        ("7B", 7),
        ("7 b", 7),
        ("1", 1),
        ("1.0000001K", 1000),
        ("4T", 4 * 10**12),
        ("4TB", 4 * 10**12),
        ("1.5TiB", 3 << 39),
        ("4e6", 4_000_000),
        ("1e9", 10**9),
        ("1.5E3 kb", 1_500_000),
        ("4mb", 4_000_000),
        ("0.3GB", 300_000_000),  # not a byte less, as floats would have it
    ],
)
def test_sizes_are_parsed(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "0", "0G", "0.0", "-1G", "+1G", "G", "GB", "4E", "4 G B", "1e", "inf", "nan"),
        *("1e-400", "1e-999999999", "1.5e0"),
        *(
            "1.5",
            "1.5B",
            "0.0001K",
            "1.G",
            "1..5G",
            "1,2GB",
            "1_000",
            "0x10",
            "4Gi B",
            "1iB",
            "\u0663G",
            "4\u212a",
        ),
        "many",
    ],
)
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(BadOptionError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["9" * 5000, "1e400", "1e999999999G", "9223372036854775808", "8388608TiB"])
def test_a_size_that_no_file_has_is_too_large(text: str) -> None:
    with pytest.raises(BadOptionError, match="' is too large; no file has so many bytes") as caught:
        parse_size(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("unit", "bytes_"), [("Mb", "MB"), ("Gb", "GB"), ("Kb", "KB"), ("Tb", "TB"), ("Mib", "MIB")]
)
def test_bits_are_not_bytes(unit: str, bytes_: str) -> None:
    with pytest.raises(BadOptionError, match=f"'4{unit}': {unit} means bits; write {bytes_} for bytes"):
        parse_size(f"4{unit}")


# ---- writing -------------------------------------------------------------------------------------


def test_the_example_is_copied_to_the_byte(tmp_path: Path) -> None:
    with GgufFile.open(EXAMPLE) as model:
        writer = copy(model, tmp_path / "copy.gguf", sources=model.paths)
        tensors = list(model.tensors.values())
        assert file_sizes(model.metadata, tensors) == writer.sizes == (EXAMPLE.stat().st_size,)
    assert (tmp_path / "copy.gguf").read_bytes() == EXAMPLE.read_bytes()


def test_threads_write_without_disturbing_each_other(tmp_path: Path) -> None:
    data = np.random.default_rng(1).integers(0, 256, (64, 4096), np.uint8)
    tensors = [StoredTensor(f"w{i}", (1024,), F32) for i in range(len(data))]
    with GgufWriter(tmp_path / "a.gguf", Metadata(), tensors) as writer, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: writer.write_at(f"w{i}", 0, data[i]), range(len(data))))
        writer.commit()
    with GgufFile.open(tmp_path / "a.gguf") as model:
        for i, row in enumerate(data):
            assert np.array_equal(model.read(model.tensors[f"w{i}"])[0], row)


def test_the_destination_appears_only_at_the_commit(tmp_path: Path) -> None:
    dst = tmp_path / "a.gguf"
    with small_writer(dst) as writer:
        writer.write_at("w", 0, bytes(24))
        assert not dst.exists()
        writer.commit()
        assert names_in(tmp_path) == {"a.gguf"}
    assert dst.stat().st_size == writer.sizes[0]


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX")
def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with small_writer(tmp_path / "a.gguf") as writer:
            writer.write_at("w", 0, bytes(24))
            writer.commit()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.gguf").stat().st_mode) == 0o640


@pytest.mark.parametrize("error", [KeyboardInterrupt, Q4HifiError, MemoryError])
def test_an_interrupted_run_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error), small_writer(tmp_path / "a.gguf") as writer:
        writer.write_at("w", 0, bytes(8))
        raise error
    assert names_in(tmp_path) == set()


def test_an_interrupt_while_the_files_are_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "posix_fallocate", interrupt, raising=False)
    with pytest.raises(KeyboardInterrupt), small_writer(tmp_path / "a.gguf"):
        pass
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("written", [[(0, 23)], [(0, 24), (0, 1)], []])
def test_what_is_not_wholly_written_is_not_committed(written: list[tuple[int, int]], tmp_path: Path) -> None:
    with (
        pytest.raises(Q4HifiError, match=r"a\.gguf: tensor 'w' takes 24 bytes; written: \d+$"),
        small_writer(tmp_path / "a.gguf") as writer,
    ):
        for start, length in written:
            writer.write_at("w", start, bytes(length))
        writer.commit()
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize(("name", "start", "length"), [("w", 20, 5), ("w", -1, 2), ("v", 0, 1)])
def test_writes_outside_of_the_tensors_are_refused(
    name: str, start: int, length: int, tmp_path: Path
) -> None:
    with small_writer(tmp_path / "a.gguf") as writer, pytest.raises(BadOptionError, match=repr(name)):
        writer.write_at(name, start, bytes(length))


def test_an_existing_destination_needs_overwrite(tmp_path: Path) -> None:
    dst = tmp_path / "a.gguf"
    dst.write_bytes(b"precious")
    with pytest.raises(BadOptionError, match=r"a\.gguf: exists"):
        small_writer(dst)
    with pytest.raises(KeyboardInterrupt), small_writer(dst, overwrite=True):
        raise KeyboardInterrupt
    assert dst.read_bytes() == b"precious"
    with small_writer(dst, overwrite=True) as writer:
        writer.write_at("w", 0, bytes(24))
        writer.commit()
    assert dst.read_bytes()[:4] == b"GGUF"


def test_a_destination_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    dst = tmp_path / "a.gguf"
    with pytest.raises(BadOptionError, match="exists"), small_writer(dst) as writer:
        writer.write_at("w", 0, bytes(24))
        dst.write_bytes(b"precious")
        writer.commit()
    assert dst.read_bytes() == b"precious"
    assert names_in(tmp_path) == {"a.gguf"}


@pytest.mark.parametrize("link", ["same", "symlink", "hardlink", "dots"])
def test_the_source_is_refused_as_destination(link: str, tmp_path: Path) -> None:
    source, dst = tmp_path / "a.gguf", tmp_path / "b.gguf"
    make_model(source)
    before = source.read_bytes()
    if link == "symlink":
        dst.symlink_to(source)
    elif link == "hardlink":
        dst.hardlink_to(source)
    else:
        (tmp_path / "x").mkdir()
        dst = source if link == "same" else tmp_path / "x" / ".." / "a.gguf"
    with GgufFile.open(source) as model, pytest.raises(BadOptionError, match="source"):
        copy(model, dst, sources=model.paths, overwrite=True)
    assert source.read_bytes() == before


def test_a_shard_of_the_source_is_refused_as_destination(shards: SimpleNamespace) -> None:
    with GgufFile.open(shards.paths[0]) as model:
        shard_of = [t.shard for t in model.tensors.values()]
        with pytest.raises(BadOptionError, match="source"):
            copy(model, shards.paths[0].parent / "m.gguf", sources=model.paths, shard_of=shard_of)


def test_places_that_cannot_take_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadOptionError, match="no folder"):
        small_writer(tmp_path / "not there" / "a.gguf")
    with pytest.raises(Q4HifiError, match="name too long"):
        small_writer(tmp_path / ("a" * 300))
    with pytest.raises(BadOptionError, match="not a file"):
        small_writer(tmp_path, overwrite=True)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="space cannot be reserved here")
@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
def test_a_full_disk_is_reported_and_leaves_nothing(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with (
        pytest.raises(Q4HifiError, match=r"a\.gguf: the disk is full: .* 128 bytes, \d+ were free"),
        small_writer(tmp_path / "a.gguf"),
    ):
        pass
    assert names_in(tmp_path) == set()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="space cannot be reserved here")
def test_file_systems_that_cannot_reserve_space_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    with small_writer(tmp_path / "a.gguf") as writer:
        writer.write_at("w", 0, bytes(24))
        writer.commit()
    assert (tmp_path / "a.gguf").stat().st_size == writer.sizes[0]


@pytest.mark.parametrize("call", ["pwrite", "fsync", "link"])
def test_disk_errors_name_the_file(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with (
        pytest.raises(Q4HifiError, match=r"a\.gguf: cannot .*: Input/output error"),
        small_writer(tmp_path / "a.gguf") as writer,
    ):
        if call != "pwrite":
            writer.write_at("w", 0, bytes(24))
        monkeypatch.setattr(os, call, fail)
        writer.write_at("w", 0, bytes(24)) if call == "pwrite" else writer.commit()
    assert names_in(tmp_path) == set()


def test_shards_appear_together_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def fail_on_third(src: Path, dst: Path, **options: Any) -> None:
        if "-00003-of-" in dst.name:
            raise OSError(errno.EIO, "Input/output error")
        link(src, dst, **options)

    monkeypatch.setattr(os, "link", fail_on_third)
    tensors = [StoredTensor(f"w{i}", (8,), F32) for i in range(3)]
    with (
        pytest.raises(Q4HifiError, match="-00003-of-00003"),
        GgufWriter(tmp_path / "a.gguf", Metadata(), tensors, shard_of=[0, 1, 2]) as writer,
    ):
        for tensor in tensors:
            writer.write_at(tensor.name, 0, bytes(32))
        writer.commit()
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize(
    ("names", "shard_of", "error", "match"),
    [
        (["a", "a"], None, UnsupportedModelError, "2 tensors would be called 'a'"),
        (["n" * 64], None, UnsupportedModelError, "longer than 63 bytes"),
        (["a", "b"], [1, 0], BadOptionError, "not decreasing"),
        (["a", "b"], [0], BadOptionError, "every tensor"),
        (["a"], [-1], BadOptionError, "from 0 on"),
        (["a"], [70_000], BadOptionError, "too many"),
    ],
)
def test_models_that_cannot_be_written_are_refused(
    names: list[str], shard_of: list[int] | None, error: type[Q4HifiError], match: str, tmp_path: Path
) -> None:
    tensors = [StoredTensor(name, (8,), F32) for name in names]
    with pytest.raises(error, match=match):
        GgufWriter(tmp_path / "a.gguf", Metadata(), tensors, shard_of=shard_of)


def test_tensor_info_is_a_stored_tensor() -> None:
    tensor = TensorInfo("experts", (512, 3, 4), Q4_HIFI, shard=0, offset=96)
    assert (tensor.row_length, tensor.n_rows, tensor.n_elements) == (512, 12, 512 * 12)
    assert (tensor.row_bytes, tensor.nbytes) == (488, 488 * 12)
