"""Importance matrix files of both forms: what they mean, and every way in which one is refused."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGUFValueType, GGUFWriter

from q4hifi.errors import BadFileError, BadOptionError, NotFiniteError, Q4HifiError
from q4hifi.imatrix.file import load_importance
from q4hifi.imatrix.importance import Importance

Floats = npt.NDArray[np.float32]

RNG = np.random.default_rng(7)
DENSE = RNG.exponential(40.0, 32).astype(np.float32)
EXPERTS = RNG.exponential(3.0, (4, 32)).astype(np.float32)
EXPERT_COUNTS = np.array([[5], [0], [2**24 + 2], [3]], np.float32)
SUMS: Mapping[str, tuple[Floats, Floats]] = {
    "blk.0.attn_v.weight": (DENSE, np.array([768], np.float32)),
    "blk.0.ffn_down_exps.weight": (EXPERTS, EXPERT_COUNTS),
    "token_embd.weight": (DENSE[:4], np.array([7], np.float32)),
}
KEYS: Mapping[str, Any] = {
    "imatrix.datasets": ["wiki.txt", "code.txt"],
    "imatrix.chunk_count": 12,
    "imatrix.chunk_size": 512,
}


def write_gguf(
    path: Path,
    sums: Mapping[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]] = SUMS,
    keys: Mapping[str, Any] = KEYS,
    without: str = "",
    extra: Mapping[str, npt.NDArray[Any]] | None = None,
) -> Path:
    """Write the GGUF form; ``without`` is the name of a tensor to leave out, ``extra`` are more tensors."""
    writer = GGUFWriter(path, arch="")
    writer.add_type("imatrix")
    for key, value in keys.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value >= 2**32:
            writer.add_uint64(key, value)
        else:
            writer.add_uint32(key, value)
    for name, (in_sum2, counts) in sums.items():
        for tensor, values in ((f"{name}.in_sum2", in_sum2), (f"{name}.counts", counts)):
            if tensor != without:
                writer.add_tensor(tensor, values)
    for tensor, values in (extra or {}).items():
        writer.add_tensor(tensor, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def entry(name: bytes, calls: int, values: Floats, n_values: int | None = None) -> bytes:
    """Return one entry of the binary form; ``n_values`` may lie."""
    length = values.size if n_values is None else n_values
    return struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, length) + values.tobytes()


ENTRIES = struct.pack("<i", 2) + entry(b"blk.0.attn_v.weight", 12, DENSE) + entry(b"x", 0, EXPERTS.ravel())
CHUNKS = struct.pack("<i", 12)
DATASET = struct.pack("<i", 8) + b"wiki.txt"


def one_entry(values: Floats, calls: int = 1) -> bytes:
    """Return a binary file of one entry."""
    return struct.pack("<i", 1) + entry(b"a", calls, values)


def weights(importance: Importance, name: str, row_length: int, n_matrices: int = 1) -> Floats:
    """Return weights that must be there."""
    found = importance.weights(name, row_length, n_matrices)
    assert found is not None
    assert found.dtype == np.float32 and found.shape == (n_matrices, row_length)
    return found


def test_gguf_form_gives_means_and_a_neutral_prior(tmp_path: Path) -> None:
    importance = load_importance(write_gguf(tmp_path / "imatrix.gguf"))
    assert importance.names == tuple(SUMS) and len(importance) == 3
    assert importance.datasets == ("wiki.txt", "code.txt")
    assert (importance.chunk_count, importance.chunk_size) == (12, 512)

    dense = weights(importance, "blk.0.attn_v.weight", 32)
    assert dense[0].tolist() == [float(s / np.float32(768)) for s in DENSE]
    experts = weights(importance, "blk.0.ffn_down_exps.weight", 32, 4)
    for sums, count, row in zip(EXPERTS, EXPERT_COUNTS[:, 0], experts, strict=True):
        assert row.tolist() == [float(s / count) if count else 1.0 for s in sums]
    assert importance.inactive == {"blk.0.ffn_down_exps.weight": (1,)}


def test_counts_round_half_up(tmp_path: Path) -> None:
    counts = np.array([[2.5], [0.49], [3.4]], np.float32)
    ones = np.ones((3, 4), np.float32)
    importance = load_importance(write_gguf(tmp_path / "i", {"a": (ones, counts)}))
    assert weights(importance, "a", 4, 3)[:, 0].tolist() == [
        float(np.float32(1) / 3),
        1.0,
        float(np.float32(1) / 3),
    ]
    assert importance.inactive == {"a": (1,)}


def test_counts_that_are_not_of_rows_are_refused(tmp_path: Path) -> None:
    sums = np.ones((4, 256), np.float32)
    write_gguf(tmp_path / "i", {"a": (sums, np.ones((8, 1), np.float32))})
    with pytest.raises(
        BadFileError, match="a has 1024 sums and 8 counts; there must be a count for every row"
    ):
        load_importance(tmp_path / "i")


def test_one_count_serves_all_experts(tmp_path: Path) -> None:
    """Files converted from the binary form have one count for all experts."""
    importance = load_importance(write_gguf(tmp_path / "i", {"a": (EXPERTS, np.array([4], np.float32))}))
    assert np.array_equal(weights(importance, "a", 32, 4), EXPERTS / np.float32(4))


def test_binary_form(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"  # the name does not decide
    path.write_bytes(ENTRIES + CHUNKS + DATASET)
    importance = load_importance(str(path))
    assert importance.names == ("blk.0.attn_v.weight", "x")
    assert (importance.datasets, importance.chunk_count, importance.chunk_size) == (("wiki.txt",), 12, None)
    assert weights(importance, "blk.0.attn_v.weight", 32)[0].tolist() == [
        float(s / np.float32(12)) for s in DENSE
    ]
    assert np.array_equal(weights(importance, "x", 32, 4), EXPERTS)
    assert importance.inactive == {}


def test_binary_form_without_its_optional_end(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(ENTRIES)
    assert load_importance(path).chunk_count is None
    path.write_bytes(ENTRIES + CHUNKS)
    assert (load_importance(path).chunk_count, load_importance(path).datasets) == (12, ())
    path.write_bytes(ENTRIES + CHUNKS + bytes(4))
    assert load_importance(path).datasets == ()


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    for i, name in enumerate(SUMS):
        split = {"split.no": i, "split.count": 3, "split.tensors.count": 6}
        write_gguf(tmp_path / f"imatrix-0000{i + 1}-of-00003.gguf", {name: SUMS[name]}, {**KEYS, **split})
    importance = load_importance(tmp_path / "imatrix-00001-of-00003.gguf")
    assert importance.names == tuple(SUMS)
    assert np.array_equal(weights(importance, "token_embd.weight", 4)[0], DENSE[:4] / np.float32(7))


def test_gguf_form_is_known_by_content(tmp_path: Path) -> None:
    assert len(load_importance(write_gguf(tmp_path / "imatrix.dat"))) == 3


def test_absent_and_misfitting_tensors(tmp_path: Path) -> None:
    importance = load_importance(write_gguf(tmp_path / "imatrix.gguf"))
    assert "blk.9.attn_v.weight" not in importance
    assert importance.weights("blk.9.attn_v.weight", 32, 1) is None
    with pytest.raises(
        BadFileError, match=r"imatrix\.gguf: blk\.0\.attn_v\.weight has 32 values.* 64 columns x 1"
    ):
        importance.weights("blk.0.attn_v.weight", 64, 1)
    assert importance.weights("token_embd.weight", 32, 1) is None
    assert weights(importance, "token_embd.weight", 4).shape == (1, 4)


def test_metadata_is_what_llama_quantize_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_gguf(tmp_path / "i.gguf")
    assert load_importance("./i.gguf").metadata() == [
        ("quantize.imatrix.file", "./i.gguf", GGUFValueType.STRING),
        ("quantize.imatrix.dataset", "wiki.txt", GGUFValueType.STRING),
        ("quantize.imatrix.entries_count", 3, GGUFValueType.UINT32),
        ("quantize.imatrix.chunks_count", 12, GGUFValueType.UINT32),
    ]


def test_metadata_leaves_out_what_is_unknown_and_cuts_long_strings(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(ENTRIES + bytes(4))
    assert [key for key, _, _ in load_importance(path).metadata()] == [
        "quantize.imatrix.file",
        "quantize.imatrix.entries_count",
    ]
    long = "ä" * 100
    path.write_bytes(ENTRIES + CHUNKS + struct.pack("<i", 200) + long.encode())
    recorded = load_importance(path).metadata()[1][1]
    assert str(recorded).encode("utf-8", "surrogateescape") == long.encode()[:127]  # half a letter too


def test_filters_are_substrings(tmp_path: Path) -> None:
    importance = load_importance(write_gguf(tmp_path / "imatrix.gguf"))
    assert importance.filtered().names == importance.names
    assert importance.filtered(include=["attn_v", "embd"]).names == (
        "blk.0.attn_v.weight",
        "token_embd.weight",
    )
    assert importance.filtered(exclude=["blk.0", "nothing"]).names == ("token_embd.weight",)
    assert importance.filtered(include=["embd"]).metadata()[2][1] == 1
    assert importance.filtered(exclude=["weight"]).metadata() == []
    with pytest.raises(BadOptionError, match="cannot be used together"):
        importance.filtered(include=["a"], exclude=["b"])


def changed(values: Floats, place: int, value: float) -> Floats:
    """Return a copy with one value replaced."""
    copy: Floats = values.copy()
    copy.flat[place] = value
    return copy


GGUF_REFUSALS: Mapping[str, tuple[Callable[[Path], object], type[Q4HifiError], str | None]] = {
    "a model": (lambda p: write_gguf(p, keys={}), BadFileError, "imatrix.datasets is missing"),
    "datasets are text": (
        lambda p: write_gguf(p, keys={**KEYS, "imatrix.datasets": "wiki.txt"}),
        BadFileError,
        "imatrix.datasets is missing or is not a list of strings",
    ),
    "no chunk count": (
        lambda p: write_gguf(p, keys={k: v for k, v in KEYS.items() if k != "imatrix.chunk_count"}),
        BadFileError,
        "imatrix.chunk_count is None",
    ),
    "absurd chunk count": (
        lambda p: write_gguf(p, keys={**KEYS, "imatrix.chunk_count": 2**31}),
        BadFileError,
        "imatrix.chunk_count is 2147483648",
    ),
    "absurd chunk size": (
        lambda p: write_gguf(p, keys={**KEYS, "imatrix.chunk_size": 2**40}),
        BadFileError,
        "imatrix.chunk_size is 1099511627776",
    ),
    "no entries": (lambda p: write_gguf(p, {}), BadFileError, "no tensor has an entry"),
    "no sums": (
        lambda p: write_gguf(p, without="token_embd.weight.in_sum2"),
        BadFileError,
        "tensor token_embd.weight.in_sum2 is missing",
    ),
    "no counts": (
        lambda p: write_gguf(p, without="token_embd.weight.counts"),
        BadFileError,
        "tensor token_embd.weight.counts is missing",
    ),
    "sums of another type": (
        lambda p: write_gguf(p, {"a": (DENSE.astype(np.float16), EXPERT_COUNTS[:1])}),
        BadFileError,
        "tensor a.in_sum2 has the type F16",
    ),
    "counts of another type": (
        lambda p: write_gguf(p, {"a": (DENSE, EXPERT_COUNTS[:1].astype(np.int32))}),
        BadFileError,
        "tensor a.counts has the type I32",
    ),
    "counts that do not divide": (
        lambda p: write_gguf(p, {"a": (DENSE, np.ones((3, 1), np.float32))}),
        BadFileError,
        "a has 32 sums and 3 counts",
    ),
    "sum NaN": (
        lambda p: write_gguf(p, {"a": (changed(DENSE, 9, np.nan), EXPERT_COUNTS[:1])}),
        NotFiniteError,
        r"a: value 9 is not finite \(nan\)",
    ),
    "sum negative": (
        lambda p: write_gguf(p, {"a": (changed(DENSE, 31, -1.5), EXPERT_COUNTS[:1])}),
        BadFileError,
        r"a: value 31 is negative \(-1.5\)",
    ),
    "count infinite": (
        lambda p: write_gguf(p, {"a": (EXPERTS, changed(EXPERT_COUNTS, 2, np.inf))}),
        NotFiniteError,
        r"a.counts: value 2 is not finite \(inf\)",
    ),
    "count negative": (
        lambda p: write_gguf(p, {"a": (EXPERTS, changed(EXPERT_COUNTS, 3, -2))}),
        BadFileError,
        "a.counts: value 3 is negative",
    ),
    "count absurd": (
        lambda p: write_gguf(p, {"a": (EXPERTS, changed(EXPERT_COUNTS, 0, 1e30))}),
        BadFileError,
        "a.counts has a count of 1e",
    ),
    "truncated": (lambda p: p.write_bytes(write_gguf(p).read_bytes()[:-64]), BadFileError, None),
    "cut in its header": (lambda p: p.write_bytes(write_gguf(p).read_bytes()[:20]), BadFileError, None),
    "missing": (lambda p: None, BadFileError, "No such file"),
    "a folder": (
        lambda p: p.mkdir(),
        BadFileError,
        "a folder; name the file in it that is an importance matrix",
    ),
}


@pytest.mark.parametrize("case", GGUF_REFUSALS)
def test_gguf_refusals(tmp_path: Path, case: str) -> None:
    make, error, message = GGUF_REFUSALS[case]
    path = tmp_path / "imatrix.gguf"
    make(path)
    with pytest.raises(error, match=message) as caught:
        load_importance(path)
    assert str(path) in str(caught.value)


ONE = np.ones(1, np.float32)
BINARY_REFUSALS: Mapping[str, tuple[bytes, type[Q4HifiError], str]] = {
    "empty": (b"", BadFileError, "number of entries takes 4 bytes at offset 0, but only 0 are left"),
    "no entries": (struct.pack("<i", 0), BadFileError, "claims 0 entries"),
    "negative entries": (struct.pack("<i", -1) + bytes(64), BadFileError, "claims -1 entries"),
    "a text": (
        b"importance matrix, in words",
        BadFileError,
        "this is a text, not an importance matrix; name a file that",
    ),
    "absurd entries": (struct.pack("<i", 5) + bytes(79), BadFileError, "claims 5 entries in 79 bytes"),
    "name too long": (
        struct.pack("<ii", 1, 2**31 - 1) + bytes(64),
        BadFileError,
        "name of entry 0 takes 2147483647",
    ),
    "name negative": (struct.pack("<ii", 1, -4) + bytes(64), BadFileError, "name of entry 0 takes -4 bytes"),
    "name twice": (struct.pack("<i", 2) + 2 * entry(b"a", 1, ONE), BadFileError, "second entry of a"),
    "negative calls": (one_entry(ONE, -3), BadFileError, "a has -3 calls"),
    "no values": (struct.pack("<i", 1) + entry(b"a", 1, ONE, 0), BadFileError, "a has 0 values"),
    "values beyond the end": (
        struct.pack("<i", 1) + entry(b"a", 1, ONE, 2**30),
        BadFileError,
        "values of a takes 4294967296 bytes at offset 17, but only 4 are left",
    ),
    "infinite": (
        one_entry(np.array([1, np.inf], np.float32)),
        NotFiniteError,
        r"a: value 1 is not finite \(inf\)",
    ),
    "negative": (one_entry(np.array([-1, 1], np.float32)), BadFileError, r"a: value 0 is negative \(-1.0\)"),
    "negative chunks": (one_entry(ONE) + struct.pack("<i", -1), BadFileError, "chunk count is -1"),
    "data set beyond the end": (
        one_entry(ONE) + CHUNKS + struct.pack("<i", 9) + b"wiki.txt",
        BadFileError,
        "data set's name takes 9 bytes",
    ),
    "more behind": (ENTRIES + CHUNKS + DATASET + b"!", BadFileError, "1 byte follows the end"),
}


@pytest.mark.parametrize("case", BINARY_REFUSALS)
def test_binary_refusals(tmp_path: Path, case: str) -> None:
    data, error, message = BINARY_REFUSALS[case]
    path = tmp_path / "imatrix.dat"
    path.write_bytes(data)
    with pytest.raises(error, match=message) as caught:
        load_importance(path)
    assert str(path) in str(caught.value)


def test_every_truncation_of_the_binary_form_is_refused(tmp_path: Path) -> None:
    whole = ENTRIES + CHUNKS + DATASET
    path = tmp_path / "imatrix.dat"
    for length in range(len(whole)):
        if length not in (len(ENTRIES), len(ENTRIES + CHUNKS)):  # what follows is optional
            path.write_bytes(whole[:length])
            with pytest.raises(BadFileError):
                load_importance(path)


def test_a_lying_length_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(struct.pack("<i", 1) + entry(b"a", 1, ONE, 2**28))
    tracemalloc.start()
    try:
        with pytest.raises(BadFileError):
            load_importance(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_file_that_shrinks_after_loading_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(ENTRIES)
    importance = load_importance(path)
    path.write_bytes(ENTRIES[:-4])
    with pytest.raises(BadFileError, match="x ends early"):
        importance.weights("x", 32, 4)
    path.unlink()
    with pytest.raises(BadFileError, match="cannot read the values of x"):
        importance.weights("x", 32, 4)


# ---- filters come before checks ------------------------------------------------------------------

GOOD, BAD = "blk.0.ffn_up.weight", "blk.3.attn_v.weight"
SOUND = (DENSE, EXPERT_COUNTS[:1])
BAD_ENTRIES: Mapping[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]] = {
    "sum NaN": (changed(DENSE, 9, np.nan), EXPERT_COUNTS[:1]),
    "sum infinite": (changed(DENSE, 0, np.inf), EXPERT_COUNTS[:1]),
    "sum negative": (changed(DENSE, 31, -1.5), EXPERT_COUNTS[:1]),
    "count NaN": (EXPERTS, changed(EXPERT_COUNTS, 2, np.nan)),
    "count negative": (EXPERTS, changed(EXPERT_COUNTS, 3, -2)),
    "count absurd": (EXPERTS, changed(EXPERT_COUNTS, 0, 1e30)),
    "counts that do not divide": (DENSE, np.ones((3, 1), np.float32)),
    "sums of another type": (DENSE.astype(np.float16), EXPERT_COUNTS[:1]),
    "counts of another type": (DENSE, EXPERT_COUNTS[:1].astype(np.int32)),
}
LEFT_OUT = ({"exclude": [BAD]}, {"exclude": ["blk.3."]}, {"include": [GOOD]}, {"include": ["ffn", "norm"]})


@pytest.mark.parametrize("case", BAD_ENTRIES)
def test_bad_entries_of_tensors_that_are_left_out_are_no_errors(tmp_path: Path, case: str) -> None:
    path = write_gguf(tmp_path / "i.gguf", {BAD: BAD_ENTRIES[case], GOOD: SOUND})
    for options in ({}, {"include": ["blk"]}, {"exclude": ["ffn"]}):
        with pytest.raises(Q4HifiError, match=rf"leave it out with `exclude_weights={BAD}`"):
            load_importance(path, **options)
    for options in LEFT_OUT:
        importance = load_importance(path, **options)
        assert importance.names == (GOOD,) and importance.names_in_file == (BAD, GOOD)
        assert weights(importance, GOOD, 32)[0].tolist() == (DENSE / EXPERT_COUNTS[0]).tolist()
        assert importance.weights(BAD, 32, 1) is None
    assert load_importance(path, exclude=["weight"]).names == ()
    with pytest.raises(BadOptionError, match="cannot be used together"):
        load_importance(path, include=["a"], exclude=["b"])


@pytest.mark.parametrize("missing", [".in_sum2", ".counts"])
def test_halves_of_entries_that_are_left_out_are_no_errors(tmp_path: Path, missing: str) -> None:
    path = write_gguf(tmp_path / "i.gguf", {BAD: SOUND, GOOD: SOUND}, without=BAD + missing)
    with pytest.raises(BadFileError, match=f"exclude_weights={BAD}"):
        load_importance(path)
    for options in LEFT_OUT:
        assert load_importance(path, **options).names == (GOOD,)


@pytest.mark.parametrize(
    "bad",
    [
        entry(BAD.encode(), 1, changed(DENSE, 4, np.nan)),
        entry(BAD.encode(), 1, changed(DENSE, 4, -1)),
        entry(BAD.encode(), -3, DENSE),
        entry(BAD.encode(), 1, DENSE[:0]),
    ],
)
def test_bad_entries_of_the_binary_form_may_be_left_out(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(struct.pack("<i", 2) + bad + entry(GOOD.encode(), 1, DENSE) + CHUNKS)
    with pytest.raises(Q4HifiError, match=rf"leave it out with `exclude_weights={BAD}`"):
        load_importance(path)
    for options in LEFT_OUT:
        importance = load_importance(path, **options)
        assert importance.names == (GOOD,) and weights(importance, GOOD, 32)[0].tolist() == DENSE.tolist()


def test_what_depends_on_a_tensor_that_is_left_out_is_kept_if_it_is_sound(tmp_path: Path) -> None:
    """Correlations stand under one matrix for all with its inputs; Fisher information is of errors."""
    query, value = "blk.3.attn_q.weight", "blk.3.attn_v.weight"
    columns = DENSE[:4]
    count = np.array([[768]], np.float32)
    fisher = {f"{query}.fisher": columns, f"{query}.fisher_counts": np.ones(1, np.float32)}
    extra = {f"{query}.in_corr": np.arange(6, dtype=np.int8), **fisher}

    def load(query_sums: Floats, value_sums: Floats = columns, **options: Any) -> Importance:
        entries = {query: (query_sums, count), value: (value_sums, count)}
        return load_importance(write_gguf(tmp_path / "i.gguf", entries, extra=extra), **options)

    whole, part = load(columns), load(changed(columns, 1, np.nan), exclude=["attn_q"])
    assert (part.correlated_names, part.fisher_names) == (whole.correlated_names, whole.fisher_names)
    assert part.inputs(query, 4) is not None  # nothing is known of them but their number
    for name in (query, value):
        assert part.is_correlated(name)
    inputs, expected = part.inputs(value, 4), whole.inputs(value, 4)
    assert inputs is not None and expected is not None and type(inputs) is type(expected)
    with pytest.raises(BadFileError, match=f"{query} has 6 correlations, but 5 columns have 10"):
        load(columns, DENSE[:5]).inputs(value, 5)

    extra[f"{query}.fisher"] = changed(columns, 0, np.nan)
    with pytest.raises(NotFiniteError, match=rf"leave it out with `exclude_weights={query}`"):
        load(columns)
    assert load(columns, exclude=["attn_q"]).fisher_names == ()
    extra.update(fisher)
    extra[f"{query}.in_corr"] = np.arange(5, dtype=np.int8)
    with pytest.raises(BadFileError, match=rf"5 correlations.*`exclude_weights={query}`"):
        load(columns)
    assert load(columns, include=["attn_v"]).correlated_names == ()
    extra[f"{query}.in_corr"] = np.arange(6, dtype=np.float32)
    assert load(columns, include=["attn_v"]).correlated_names == ()


def test_refining_entries_are_filtered_too(tmp_path: Path) -> None:
    bad = {"output.weight.refine_sum2": changed(DENSE, 3, -1), "output.weight.refine_counts": ONE}
    path = write_gguf(tmp_path / "i.gguf", {GOOD: SOUND}, extra=bad)
    with pytest.raises(BadFileError, match=r"leave it out with `exclude_weights=output\.weight`"):
        load_importance(path)
    importance = load_importance(path, exclude=["output"])
    assert importance.refining_names == () and importance.refining().names == (GOOD,)
    assert importance.names_in_file == (GOOD, "output.weight")
