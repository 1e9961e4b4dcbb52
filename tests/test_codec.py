"""The codec against the real ggml: bytes, not tolerances; and the functions for numpy arrays."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Iterator

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
import q4hifi
from inputs import HUGE, IMPORTANCE, INPUTS, ROWS, Floats
from q4hifi import BadOptionError, Format, NotFiniteError, Q4HifiError, _core
from q4hifi.codec import rows
from q4hifi.formats.layout import FORK
from q4hifi.formats.types import CODEC_TYPES, Q4_HIFI, TYPES, TensorType

KINDS = [TYPES[name] for name in CODEC_TYPES]
BLOCKS = [kind for kind in KINDS if kind.quantized]
LENGTHS = {1: (1, 33, 512), 32: (32, 96, 512), 256: (256, 768)}
"""Row lengths tried, by weights per block."""

BITS = {"F32": np.float32, "F16": np.float16}

by_type = pytest.mark.parametrize("kind", KINDS, ids=str)
deterministic = settings(derandomize=True, deadline=None, max_examples=40)


def raw(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8)


def core_quantize(
    data: np.ndarray,
    source: TensorType,
    target: TensorType,
    n: int,
    importance: Floats | None,
    threads: int = 0,
) -> np.ndarray:
    """Bytes uint8 [rows, row bytes], also where the public functions refuse the result."""
    out, _ = _core.quantize(raw(data), source.id, n, target.id, importance, threads)
    return out.reshape(-1, target.row_bytes(n))


def combinations(kind: TensorType, make, seed: int = 5) -> Iterator[tuple[str, Floats, Floats | None]]:
    """(description, weights, importance) for every row length and kind of importance."""
    rng = np.random.default_rng(seed)
    for n in LENGTHS[kind.block_size]:
        x = make(rng, n)
        for name, make_importance in IMPORTANCE.items():
            yield f"{kind}, rows of {n}, importance {name}", x, make_importance(rng, n)


def assert_same_blocks(got: np.ndarray, expected: np.ndarray, kind: TensorType, what: str) -> None:
    """Compare rows of bytes; on failure show the block that differs most."""
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype), what
    if np.array_equal(got, expected):
        return
    got, expected = (a.reshape(len(a), -1, kind.block_bytes) for a in (got, expected))
    differing = (got != expected).sum(axis=-1)
    row, block = np.unravel_index(differing.argmax(), differing.shape)
    pytest.fail(
        f"{what}: {np.count_nonzero(differing)} of {differing.size} blocks differ;"
        f" the worst is row {row}, block {block}\n"
        f"  got      {got[row, block].tobytes().hex()}\n"
        f"  expected {expected[row, block].tobytes().hex()}"
    )


def assert_same_floats(got: np.ndarray, expected: np.ndarray, what: object = "") -> None:
    """Compare bit for bit; any NaN equals any other."""
    same = (got.view(np.uint32) == expected.view(np.uint32)) | (np.isnan(got) & np.isnan(expected))
    assert got.shape == expected.shape and same.all(), f"{what}: {got[~same][:4]} != {expected[~same][:4]}"


# --- bytes ---------------------------------------------------------------------------------------


@by_type
@pytest.mark.parametrize("inputs", INPUTS)
def test_bytes_are_ggmls(kind: TensorType, inputs: str) -> None:
    for what, x, importance in combinations(kind, INPUTS[inputs]):
        got = q4hifi.quantize(x, kind, importance=importance)
        assert_same_blocks(got.data, oracle.ggml_quantize(kind.id, x, importance), kind, what)


@by_type
@pytest.mark.parametrize("inputs", HUGE)
def test_bytes_are_ggmls_where_scales_overflow(kind: TensorType, inputs: str) -> None:
    for what, x, importance in combinations(kind, HUGE[inputs]):
        got = core_quantize(x, TYPES["F32"], kind, x.shape[1], importance)
        assert_same_blocks(got, oracle.ggml_quantize(kind.id, x, importance), kind, what)


def test_importance_matters_where_ggml_uses_it() -> None:
    rng = np.random.default_rng(0)
    x, importance = INPUTS["normal"](rng, 256), IMPORTANCE["heavy"](rng, 256)
    unused = {"F32", "F16", "BF16", "Q8_0"}
    for kind in KINDS:
        plain, weighted = (q4hifi.quantize(x, kind, importance=w).data for w in (None, importance))
        assert np.array_equal(plain, weighted) == (kind.name in unused), kind


@by_type
def test_dequantized_floats_are_ggufs_and_ggmls(kind: TensorType) -> None:
    """Of real blocks, and of random bytes: among these are scales that are infinite or NaN."""
    rng = np.random.default_rng(6)
    n = 256
    data = [rng.integers(0, 256, (300, kind.row_bytes(n)), np.uint8)]
    data += [core_quantize(make(rng, n), TYPES["F32"], kind, n, None) for make in (INPUTS | HUGE).values()]
    data = np.concatenate(data)
    got = q4hifi.dequantize(data, kind, (len(data), n))
    assert got.dtype == np.float32
    assert_same_floats(got, oracle.ggml_dequantize(kind.id, data, n), "ggml")
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(kind.id))
    assert_same_floats(got, expected, "gguf")


@pytest.mark.parametrize("source", KINDS, ids=str)
def test_every_source_gives_the_bytes_of_its_floats(source: TensorType) -> None:
    rng = np.random.default_rng(7)
    n = 512
    data = np.concatenate([q4hifi.quantize(INPUTS[k](rng, n), source).data for k in ("student", "mixed")])
    x = q4hifi.dequantize(data, source, (len(data), n))
    for target in KINDS:
        for importance in (None, rng.random(n, np.float32)):
            got = core_quantize(data, source, target, n, importance)
            expected = core_quantize(x, TYPES["F32"], target, n, importance)
            assert_same_blocks(got, expected, target, f"{source} to {target}")


@deterministic
@given(
    kind=st.sampled_from(KINDS),
    inputs=st.sampled_from(sorted(INPUTS | HUGE)),
    weighted=st.booleans(),
    cuts=st.lists(st.integers(0, 3 * ROWS), max_size=6).map(sorted),
    threads=st.sampled_from([1, 2, 5]),
)
def test_bytes_depend_neither_on_threads_nor_on_chunks(
    kind: TensorType, inputs: str, weighted: bool, cuts: list[int], threads: int
) -> None:
    rng = np.random.default_rng(8)
    n = 256
    x = np.concatenate([(INPUTS | HUGE)[inputs](rng, n) for _ in range(3)])
    importance = rng.random(n, np.float32) if weighted else None
    whole = core_quantize(x, TYPES["F32"], kind, n, importance, 1)
    chunks = [core_quantize(c, TYPES["F32"], kind, n, importance, threads) for c in np.split(x, cuts)]
    assert_same_blocks(np.concatenate(chunks), whole, kind, f"{inputs}, {threads} threads, cut at {cuts}")
    decoded = [_core.dequantize(raw(whole), kind.id, n, t) for t in (1, threads)]
    assert_same_floats(*decoded)


@by_type
def test_error_sums_are_the_weighted_squared_error(kind: TensorType) -> None:
    rng = np.random.default_rng(9)
    x, n = np.concatenate([INPUTS["student"](rng, 512) for _ in range(20)]), 512
    for importance in (None, rng.random(n, np.float32)):
        results = [_core.quantize(raw(x), 0, n, kind.id, importance, threads) for threads in (1, 2, 5)]
        decoded = q4hifi.dequantize(results[0][0], kind, x.shape).astype(np.float64)
        w = 1.0 if importance is None else importance.astype(np.float64)
        expected = ((w * (decoded - x) ** 2).sum(), (w * x.astype(np.float64) ** 2).sum())
        assert results[0][1] == pytest.approx(expected, rel=1e-12)
        assert all(sums == results[0][1] for _, sums in results), "sums depend on the threads"


def test_the_two_tables_of_types_are_one() -> None:
    table = [(t.name, t.id, t.block_size, t.block_bytes) for t in KINDS]
    assert sorted(_core.tensor_types()) == sorted(table)
    assert {t for t in TYPES.values() if t.codec} == {*KINDS, Q4_HIFI}


# --- weights that cannot be quantized ------------------------------------------------------------

NOT_FINITE = {  # bits in float32, float16 and bfloat16
    "nan": {"F32": 0x7FC00000, "F16": 0x7E00, "BF16": 0x7FC0},
    "inf": {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80},
    "-inf": {"F32": 0xFF800000, "F16": 0xFC00, "BF16": 0xFF80},
}
TARGETS = [
    *(Format(TYPES[name]) for name in ("F32", "F16", "Q4_0", "Q8_0", "Q4_K", "Q6_K")),
    Format(Q4_HIFI, 8),
    Format(Q4_HIFI, 8, FORK),
]


@pytest.mark.parametrize("source", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 300), (6, 511)])
def test_a_weight_that_is_not_finite_is_refused_with_its_place(
    source: str, value: str, row: int, column: int
) -> None:
    n, first_row = 512, 100
    words = np.zeros((7, n), np.uint32 if source == "F32" else np.uint16)
    words.reshape(-1)[row * n + column :] = NOT_FINITE[value][source]  # the first one is reported
    place = rf"row {first_row + row}, column {column} is NaN or infinite"
    for target in TARGETS:
        for threads in (1, 5):
            with pytest.raises(NotFiniteError, match=place):
                rows.encode(
                    (raw(words),), Format(TYPES[source]), target, n, threads=threads, first_row=first_row
                )
    with pytest.raises(NotFiniteError, match=place):
        rows.check_finite((raw(words),), Format(TYPES[source]), n, first_row=first_row)
    if source in BITS:
        with pytest.raises(NotFiniteError, match=f"row {row}, column {column} "):
            q4hifi.quantize(words.view(BITS[source]), "Q4_K")


SCALES = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    **dict.fromkeys(("IQ4_NL", "IQ4_XS"), (0,)),
}
"""Where a block's f16 fields lie."""


@pytest.mark.parametrize("kind", BLOCKS, ids=str)
def test_a_scale_that_is_not_finite_is_refused_with_its_place(kind: TensorType) -> None:
    n = 1024
    data = q4hifi.quantize(INPUTS["normal"](np.random.default_rng(1), n), kind).data
    form = Format(kind)
    rows.check_finite((raw(data),), form, n)
    for offset in SCALES[kind.name]:
        for value in NOT_FINITE.values():
            for row, block in ((0, 0), (5, n // kind.block_size - 1)):
                bad = data.copy().reshape(ROWS, -1, kind.block_bytes)
                bad[row, block, offset : offset + 2] = value["F16"] & 0xFF, value["F16"] >> 8
                place = f"row {row}, column {block * kind.block_size} "
                with pytest.raises(NotFiniteError, match=place):
                    rows.encode((raw(bad),), form, Format(TYPES["Q4_K"]), n)
                with pytest.raises(NotFiniteError, match=place):
                    rows.check_finite((raw(bad),), form, n)


@pytest.mark.parametrize(
    ("name", "value"),
    [("F16", 65520), ("BF16", 3.4e38), *((kind.name, -1e9) for kind in BLOCKS), ("Q4_HIFI", 1e9)],
)
def test_weights_too_large_for_the_type_are_refused(name: str, value: float) -> None:
    x = np.ones((3, 256), np.float32)
    x[1, 7] = value
    for importance in (None, np.ones(256, np.float32)):
        with pytest.raises(NotFiniteError, match=f"too large for {name}"):
            q4hifi.quantize(x, name, importance=importance)
        q4hifi.quantize(x / 1e6, name, importance=importance)


# --- arrays --------------------------------------------------------------------------------------

X = INPUTS["normal"](np.random.default_rng(2), 512)


def test_layout_and_dtype_of_the_array_do_not_matter() -> None:
    expected = q4hifi.quantize(X, "Q4_K").data
    wide = np.repeat(X, 2, axis=1)
    frozen = X.copy()
    frozen.flags.writeable = False
    same = {
        "every second column": wide[:, ::2],
        "Fortran order": np.asfortranarray(X),
        "backwards": X[::-1].copy()[::-1],
        "read only": frozen,
        "float64": X.astype(np.float64),
        "float64, Fortran order": np.asfortranarray(X.astype(np.float64)),
        "big-endian": X.astype(">f4"),
        "big-endian float64": X.astype(">f8"),
    }
    for what, array in same.items():
        got = q4hifi.quantize(array, "Q4_K")
        assert_same_blocks(got.data, expected, TYPES["Q4_K"], what)
        assert got.shape == X.shape


@pytest.mark.parametrize("dtype", ["<f2", ">f2"])
def test_half_precision_arrays(dtype: str) -> None:
    x = X.astype(np.float16)
    got = q4hifi.quantize(x.astype(dtype), "Q6_K")
    expected = q4hifi.quantize(x.astype(np.float32), "Q6_K")
    assert_same_blocks(got.data, expected.data, TYPES["Q6_K"], dtype)


def peak_of(work) -> int:
    """Bytes that numpy allocated at most while ``work`` ran; what Rust allocates is not counted."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_contiguous_arrays_are_not_copied() -> None:
    x = np.zeros((64, 4096), np.float32)
    quantized = q4hifi.quantize(x, "Q4_HIFI", outliers=4)
    data = q4hifi.quantize(x, "Q8_0").data
    small = 64 * 1024
    assert peak_of(lambda: q4hifi.quantize(x[:, ::2], "Q8_0")) >= x.nbytes // 2  # here a copy is needed
    assert peak_of(lambda: q4hifi.quantize(x, "Q8_0")) < small
    assert peak_of(lambda: q4hifi.quantize(x, "Q4_HIFI", outliers=4)) < small
    assert peak_of(lambda: q4hifi.quantize(x.view(np.float16), "Q8_0")) < small
    assert peak_of(lambda: q4hifi.dequantize(data, "Q8_0", x.shape)) < small
    assert peak_of(lambda: q4hifi.dequantize(memoryview(data.data), "Q8_0", x.shape)) < small
    assert peak_of(quantized.dequantize) < small
    for part, array in zip(
        quantized.parts, (quantized.data, quantized.outlier_index, quantized.outlier_residual), strict=True
    ):
        assert np.shares_memory(part, array)


@pytest.mark.parametrize("shape", [(3, 5, 512), (2, 3, 4, 256), (1, 2, 256)])
@pytest.mark.parametrize(("name", "outliers"), [("Q4_K", 0), ("Q5_0", 0), ("Q4_HIFI", 6)])
def test_a_stack_is_quantized_matrix_by_matrix(shape: tuple[int, ...], name: str, outliers: int) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal(shape, np.float32)
    importance = rng.random((*shape[:-2], shape[-1]), np.float32)
    for w in (importance, importance.astype(np.float64)):
        got = q4hifi.quantize(x, name, importance=w, outliers=outliers)
        assert got.shape == shape and got.dequantize().shape == shape
        for i in np.ndindex(shape[:-2]):
            alone = q4hifi.quantize(x[i], name, importance=importance[i], outliers=outliers)
            assert np.array_equal(got.data[i], alone.data)
            if outliers:
                assert np.array_equal(got.outlier_index[i], alone.outlier_index)
                assert np.array_equal(got.outlier_residual[i], alone.outlier_residual)
    shared = q4hifi.quantize(x, name, importance=importance.reshape(-1, shape[-1])[0], outliers=outliers)
    flat = q4hifi.quantize(
        x.reshape(-1, shape[-1]), name, importance=importance.reshape(-1, shape[-1])[0], outliers=outliers
    )
    assert np.array_equal(shared.data.reshape(flat.data.shape), flat.data)


@pytest.mark.parametrize(
    ("name", "outliers", "bits"),
    [
        *((t.name, 0, 8 * t.block_bytes / t.block_size) for t in KINDS),
        ("Q4_K", 0, 4.5),
        ("q6_k", 0, 6.5625),
        ("Q4_HIFI", 0, 4.5),
        ("q4_hifi", 8, 5.25),
        ("Q4_HIFI", 32, 7.5),
    ],
)
def test_quantized_tensor_describes_itself(name: str, outliers: int, bits: float) -> None:
    for shape in ((512,), (3, 512), (2, 3, 512)):
        got = q4hifi.quantize(np.ones(shape, np.float32), name, outliers=outliers)
        assert got.type == TYPES[name.upper()] and got.shape == shape and got.outliers == outliers
        assert got.bits_per_weight == bits and got.nbytes == bits * np.prod(shape) / 8
        assert got.data.dtype == np.uint8 and got.data.shape[:-1] == shape[:-1]
        assert got.nbytes == sum(part.nbytes for part in got.parts)
        if outliers:
            assert got.outlier_index.shape == got.outlier_residual.shape == (*shape[:-1], 2, outliers)
            assert (got.outlier_index.dtype, got.outlier_residual.dtype) == (np.uint8, np.float16)
        else:
            assert got.outlier_index is None and got.outlier_residual is None
        decoded = got.dequantize()
        assert decoded.shape == shape and decoded.dtype == np.float32
        if not got.format.is_split and name.upper() != "Q4_HIFI":
            assert_same_floats(decoded, q4hifi.dequantize(got.data.tobytes(), name, shape))


@pytest.mark.parametrize("shape", [(0, 256), (3, 0, 256), (0, 3, 256)])
def test_no_rows_are_legal(shape: tuple[int, ...]) -> None:
    importance = np.ones((*shape[:-2], 256), np.float32)
    for outliers in (0, 8):
        for w in (None, importance[..., :]):
            got = q4hifi.quantize(np.zeros(shape, np.float32), "Q4_HIFI", outliers=outliers, importance=w)
            assert got.nbytes == 0 and got.dequantize().shape == shape
    assert q4hifi.dequantize(b"", "Q4_K", shape).shape == shape


BAD_ARGUMENTS = {
    "integers": {"array": X.astype(np.int32)},
    "complex": {"array": X.astype(np.complex64)},
    "bool": {"array": X > 0},
    "0-D": {"array": np.float32(1)},
    "rows of nothing": {"array": X[:, :0]},
    "row length": {"array": X[:, :500]},
    "row length of a legacy type": {"array": X[:, :500], "type": "Q8_0"},
    "type": {"type": "Q9_K"},
    "type without codec": {"type": "IQ2_XS"},
    "33 outliers": {"type": "Q4_HIFI", "outliers": 33},
    "-1 outliers": {"type": "Q4_HIFI", "outliers": -1},
    "outliers of Q4_K": {"outliers": 1},
    "-1 threads": {"threads": -1},
    "importance too short": {"importance": np.ones(511)},
    "importance for each row": {"importance": np.ones(X.shape)},
    "importance without dimension": {"importance": np.float32(1)},
    "importance of another stack": {"array": X.reshape(2, 4, 512), "importance": np.ones((3, 512))},
}


@pytest.mark.parametrize("what", BAD_ARGUMENTS)
def test_arguments_that_do_not_fit_are_refused(what: str) -> None:
    with pytest.raises(BadOptionError):
        q4hifi.quantize(**({"array": X, "type": "Q4_K"} | BAD_ARGUMENTS[what]))


@pytest.mark.parametrize("value", [-1e-9, np.nan, np.inf])
@pytest.mark.parametrize(("name", "outliers"), [("Q4_K", 0), ("F16", 0), ("Q4_HIFI", 4)])
def test_importance_that_is_negative_or_not_finite_is_refused(value: float, name: str, outliers: int) -> None:
    importance = np.ones(512)
    importance[300] = value
    with pytest.raises(Q4HifiError, match="importance at column 300"):
        q4hifi.quantize(X, name, importance=importance, outliers=outliers)


@by_type
def test_bytes_that_are_too_many_or_too_few_are_refused(kind: TensorType) -> None:
    data = q4hifi.quantize(X, kind).data.tobytes()
    for bad in (data[:-1], data + b"\0", b""):
        with pytest.raises(BadOptionError, match=f"{len(bad)} bytes, but {kind}"):
            q4hifi.dequantize(bad, kind, X.shape)
    for shape in ((), (0,), (-1, -512)):
        with pytest.raises(Q4HifiError):
            q4hifi.dequantize(b"", kind, shape)
    for buffer in (bytearray(data), memoryview(data), np.frombuffer(data, np.uint8)):
        assert_same_floats(q4hifi.dequantize(buffer, kind, X.shape), q4hifi.dequantize(data, kind, X.shape))


def test_the_core_refuses_lengths_that_do_not_fit() -> None:
    data = np.zeros(288, np.uint8)
    for source, n in ((data[:287], 256), (data, 255), (data, 0), (data[::2], 256), (data, 2**62)):
        with pytest.raises(ValueError):
            _core.dequantize(source, 12, n, 1)
    with pytest.raises(ValueError, match="importance has 255"):
        _core.quantize(data, 12, 256, 12, np.ones(255, np.float32), 1)
    with pytest.raises(ValueError, match="unknown tensor type"):
        _core.quantize(data, 12, 256, 16, None, 1)


def test_the_interpreter_lock_is_released() -> None:
    """Another thread goes on while one call works: with the lock held it would tick once at most."""
    x = np.random.default_rng(4).standard_normal((1024, 1024), np.float32)
    stop, ticks = threading.Event(), 0

    def tick() -> None:
        nonlocal ticks
        while not stop.is_set():
            ticks += 1
            time.sleep(0.001)

    ticker = threading.Thread(target=tick)
    ticker.start()
    try:
        for call in (
            lambda: q4hifi.quantize(x, "Q4_K", threads=1),
            lambda: q4hifi.quantize(x, "Q4_HIFI", outliers=8, threads=1),
        ):
            most = 0
            for _ in range(20):  # more than once only where the machine gives the other thread no time
                before = ticks
                call()
                most = max(most, ticks - before)
                if most >= 5:
                    break
            assert most >= 5
    finally:
        stop.set()
        ticker.join()
