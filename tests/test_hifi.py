"""Q4_HIFI: what every encoded block must satisfy, in both layouts, and its golden bytes."""

from __future__ import annotations

import json
import runpy
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import q4hifi
from inputs import HUGE, IMPORTANCE, INPUTS, Floats
from q4hifi import BadFileError, Format, NotFiniteError, QuantizedTensor, _core
from q4hifi.codec import rows
from q4hifi.formats.layout import FORK, SPLIT
from q4hifi.formats.types import F32, MAX_OUTLIERS, Q4_HIFI

MAKE_GOLDEN = runpy.run_path(str(Path(__file__).parent / "golden" / "make_q4_hifi.py"))

FORK_BLOCK = np.dtype(
    [
        ("base", "u1", 144),
        ("index", "u1", 32),
        ("value", "<f2", 32),
        ("count", "u1"),
        ("padding", "u1", 3),
    ]
)

properties = settings(derandomize=True, deadline=None, max_examples=60)
cases = {
    "inputs": st.sampled_from(sorted(INPUTS)),
    "weighting": st.sampled_from(sorted(IMPORTANCE)),
    "outliers": st.integers(0, MAX_OUTLIERS),
    "seed": st.integers(0, 2**16),
}


def case(inputs: str, weighting: str, seed: int, n: int = 512) -> tuple[Floats, Floats | None]:
    rng = np.random.default_rng(seed)
    return (INPUTS | HUGE)[inputs](rng, n), IMPORTANCE[weighting](rng, n)


def raw(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8)


def hifi(x: Floats, outliers: int, importance: Floats | None = None) -> QuantizedTensor:
    return q4hifi.quantize(x, "Q4_HIFI", outliers=outliers, importance=importance)


def core_hifi(x: Floats, outliers: int, importance: Floats | None, threads: int = 0) -> QuantizedTensor:
    """As :func:`hifi`, also where the public function refuses the result."""
    *parts, _ = _core.quantize_hifi(raw(x), F32.id, x.shape[-1], outliers, importance, threads)
    return QuantizedTensor.from_parts(tuple(parts), Format(Q4_HIFI, outliers), x.shape)


def core_fork(x: Floats, outliers: int, importance: Floats | None = None, threads: int = 0) -> np.ndarray:
    """Blocks of the fork layout, [number of blocks]."""
    data, _ = _core.quantize_hifi_fork(raw(x), F32.id, x.shape[-1], outliers, importance, threads)
    return data.view(FORK_BLOCK)


def base_values(data: np.ndarray) -> Floats:
    """What Q4_K blocks decode to, by the gguf package: float32 [blocks, 256]."""
    blocks = np.ascontiguousarray(data).reshape(-1, 144)
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q4_K).reshape(-1, 256)


def block_errors(x: Floats, decoded: Floats, importance: Floats | None) -> np.ndarray:
    """Importance-weighted squared error of each block."""
    w = np.ones(x.shape[-1]) if importance is None else importance.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        return (w * (x.astype(np.float64) - decoded) ** 2).reshape(-1, 256).sum(axis=1)


def rounding_error(x: Floats, importance: Floats | None) -> np.ndarray:
    """What a block's error may grow by because sums are rounded to float32."""
    return block_errors(x * np.float32(2**-23), np.zeros_like(x), importance)


def assert_no_worse_than_q4_k(x: Floats, decoded: Floats, importance: Floats | None) -> None:
    plain = _core.dequantize(*plain_q4_k(x, importance), 0).reshape(x.shape)
    limit = block_errors(x, plain, importance) * (1 + 1e-6) + rounding_error(x, importance)
    comparable = np.isfinite(plain).reshape(-1, 256).all(axis=1)
    worse = ~(block_errors(x, decoded, importance) <= limit) & comparable
    assert not worse.any(), f"blocks {np.flatnonzero(worse)[:8]} are worse than in Q4_K"


def plain_q4_k(x: Floats, importance: Floats | None) -> tuple[np.ndarray, int, int]:
    """(bytes, type id, row length) of Q4_K rows."""
    data, _ = _core.quantize(raw(x), F32.id, x.shape[-1], 12, importance, 0)
    return data, 12, x.shape[-1]


# --- every block ---------------------------------------------------------------------------------


@properties
@given(**cases)
def test_a_block_is_its_base_plus_residuals(inputs: str, weighting: str, outliers: int, seed: int) -> None:
    x, importance = case(inputs, weighting, seed)
    got = hifi(x, outliers, importance)
    assert got.outliers == outliers and got.data.shape == (len(x), 2 * 144)
    expected = base_values(got.data)
    if outliers:
        assert got.outlier_index.shape == got.outlier_residual.shape == (len(x), 2, outliers)
        assert (got.outlier_index.dtype, got.outlier_residual.dtype) == (np.uint8, np.float16)
        assert (np.diff(got.outlier_index.astype(int), axis=-1) > 0).all()
        assert np.isfinite(got.outlier_residual).all()
        index = got.outlier_index.reshape(-1, outliers).astype(int)
        residual = got.outlier_residual.reshape(-1, outliers).astype(np.float32)
        expected[np.arange(len(index))[:, None], index] += residual
    assert np.array_equal(got.dequantize(), expected.reshape(x.shape))


@properties
@given(**cases)
def test_no_block_is_worse_than_in_q4_k(inputs: str, weighting: str, outliers: int, seed: int) -> None:
    x, importance = case(inputs, weighting, seed)
    assert_no_worse_than_q4_k(x, hifi(x, outliers, importance).dequantize(), importance)


@pytest.mark.parametrize("weighting", IMPORTANCE)
@pytest.mark.parametrize("inputs", INPUTS | HUGE)
def test_no_block_of_any_kind_is_worse_than_in_q4_k(inputs: str, weighting: str) -> None:
    x, importance = case(inputs, weighting, seed=1)
    for outliers in (1, 8, 32):
        got = core_hifi(x, outliers, importance)
        assert (np.diff(got.outlier_index.astype(int), axis=-1) > 0).all()
        assert_no_worse_than_q4_k(x, got.dequantize(), importance)


@pytest.mark.parametrize("weighting", IMPORTANCE)
def test_without_outliers_it_is_q4_k(weighting: str) -> None:
    for inputs in INPUTS:
        x, importance = case(inputs, weighting, seed=2)
        got = hifi(x, 0, importance)
        assert got.outlier_index is None and got.outlier_residual is None
        assert np.array_equal(got.data, q4hifi.quantize(x, "Q4_K", importance=importance).data)


@pytest.mark.parametrize("weighting", ["none", "random"])
@pytest.mark.parametrize("inputs", ["normal", "student"])
def test_more_outliers_leave_less_error(inputs: str, weighting: str) -> None:
    rng = np.random.default_rng(3)
    x = np.concatenate([INPUTS[inputs](rng, 1024) for _ in range(4)])
    importance = IMPORTANCE[weighting](rng, 1024)
    errors = [
        block_errors(x, hifi(x, n, importance).dequantize(), importance).sum()
        for n in (0, 1, 2, 4, 8, 16, 32)
    ]
    assert all(more < fewer for fewer, more in pairwise(errors)), errors
    assert errors[-1] < errors[0] * (0.6 if inputs == "normal" else 0.1)


@pytest.mark.parametrize("outliers", [1, 8, 32])
def test_zeros_stay_zeros(outliers: int) -> None:
    x = INPUTS["zero"](np.random.default_rng(4), 512)
    got = hifi(x, outliers)
    assert not got.data[..., :4].any() and not got.dequantize().any()
    assert (got.outlier_index == np.arange(outliers)).all()
    blocks = core_fork(x, outliers)
    assert not blocks["value"].any()


# --- which weights, and what they leave behind ---------------------------------------------------


def with_outliers(rng: np.random.Generator, places: np.ndarray, values: np.ndarray) -> Floats:
    """A row of small weights with large ones at ``places``."""
    x = rng.uniform(-1, 1, 256).astype(np.float32)
    x[places] = values
    return x[None]


def test_huge_weights_become_outliers() -> None:
    rng = np.random.default_rng(5)
    huge = 40 + 32 * np.arange(7)
    x = with_outliers(rng, huge, 1000 * rng.choice([1, -1], 7))
    for outliers in (7, 8, 32):
        got = hifi(x, outliers)
        assert set(huge) <= set(got.outlier_index.reshape(-1))
        assert np.delete(np.abs(got.dequantize() - x), huge).max() < 0.1


@pytest.mark.parametrize("value", [0.3, -0.3, 7, -1])
@pytest.mark.parametrize("outliers", [1, 8, 32])
def test_equal_weights_keep_the_first_places(value: float, outliers: int) -> None:
    got = hifi(np.full((1, 256), value, np.float32), outliers)
    assert got.outlier_index.tolist() == [[list(range(outliers))]]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("counts", [[1], [0, 6, 2], [6, 6, 6, 5, 4, 3, 2]])
def test_the_base_does_not_depend_on_the_outliers_values(counts: list[int], weighted: bool) -> None:
    """``counts``: how many there are in each sub-block."""
    rng = np.random.default_rng(6)
    importance = rng.random(256, np.float32) + np.float32(0.1) if weighted else None
    chosen = [32 * j + rng.choice(32, count, replace=False) for j, count in enumerate(counts)]
    places = np.sort(np.concatenate(chosen))
    outliers = len(places)
    values = rng.uniform(30, 60, outliers) * rng.choice([1, -1], outliers)
    state = rng.bit_generator.state
    scales, rest = [], []
    for scale in (1, 3, 50, 1000, -1):
        rng.bit_generator.state = state
        x = with_outliers(rng, places, values * scale)
        got = hifi(x, outliers, importance)
        assert got.outlier_index.tolist() == [[places.tolist()]]
        assert not np.array_equal(got.data, q4hifi.quantize(x, "Q4_K", importance=importance).data)
        scales.append(got.data[0, :16])
        rest.append(np.delete(base_values(got.data), places))
    assert all(np.array_equal(a, scales[0]) for a in scales)
    assert all(np.array_equal(a, rest[0]) for a in rest)


@pytest.mark.parametrize("outliers", [1, 8, 32])
@pytest.mark.parametrize("value", [1e9, -3e38])
def test_weights_too_large_for_the_format_are_refused(value: float, outliers: int) -> None:
    x = np.ones((3, 256), np.float32)
    x[1, 7] = value
    for layout in (SPLIT, FORK):
        with pytest.raises(NotFiniteError, match="too large for Q4_HIFI"):
            rows.encode((raw(x),), Format(F32), Format(Q4_HIFI, outliers, layout), 256)


@properties
@given(
    **cases,
    cuts=st.lists(st.integers(0, 8), max_size=4).map(sorted),
    threads=st.sampled_from([1, 2, 5]),
)
def test_bytes_depend_neither_on_threads_nor_on_chunks(
    inputs: str, weighting: str, outliers: int, seed: int, cuts: list[int], threads: int
) -> None:
    x, importance = case(inputs, weighting, seed)
    whole = core_hifi(x, outliers, importance, 1)
    chunks = [core_hifi(chunk, outliers, importance, threads).parts for chunk in np.split(x, cuts)]
    for part, *pieces in zip(whole.parts, *chunks, strict=True):
        assert np.array_equal(np.concatenate(pieces), part)
    fork = core_fork(x, outliers, importance, 1)
    chunks = [core_fork(chunk, outliers, importance, threads) for chunk in np.split(x, cuts)]
    assert np.array_equal(np.concatenate(chunks), fork)


@pytest.mark.parametrize("layout", [SPLIT, FORK])
def test_error_sums_are_the_weighted_squared_error(layout: str) -> None:
    x, importance = case("student", "random", seed=7)
    form = Format(Q4_HIFI, 6, layout)
    for w in (None, importance):
        parts, sums = rows.encode((raw(x),), Format(F32), form, 512, w)
        expected = block_errors(x, rows.decode(parts, form, 512), w).sum()
        assert sums.error == pytest.approx(expected, rel=1e-12 if layout == SPLIT else 1e-3)
        assert sums.reference == pytest.approx(block_errors(x, np.zeros_like(x), w).sum(), rel=1e-12)


# --- the fork's layout ---------------------------------------------------------------------------


def levels(base: np.ndarray) -> np.ndarray:
    """The 16 values that each weight of Q4_K blocks can take: float32 [blocks, 256, 16]."""
    d, dmin = (base[:, i : i + 2].copy().view("<f2").astype(np.float32) for i in (0, 2))
    scales, mins = gguf.quants.Q4_K.get_scale_min(base[:, 4:16])
    steps, deducted = ((a * b.astype(np.float32))[..., None] for a, b in ((d, scales), (dmin, mins)))
    return np.repeat(steps * np.arange(16, dtype=np.float32) - deducted, 32, axis=1)


@properties
@given(**cases)
def test_fork_blocks(inputs: str, weighting: str, outliers: int, seed: int) -> None:
    x, importance = case(inputs, weighting, seed)
    x = x.astype(np.float16).astype(np.float32)  # so that the weights themselves fit
    blocks = core_fork(x, outliers, importance)
    split = hifi(x, outliers, importance)
    assert blocks.itemsize == 244 and len(blocks) == x.size // 256
    assert (blocks["count"] == outliers).all() and not blocks["padding"].any()
    assert not blocks["index"][:, outliers:].any() and not blocks["value"][:, outliers:].any()
    index = blocks["index"][:, :outliers].astype(int)
    at = np.arange(len(blocks))[:, None], index
    if outliers:
        assert np.array_equal(index, split.outlier_index.reshape(-1, outliers))
    assert np.array_equal(blocks["value"][:, :outliers], x.reshape(-1, 256)[at].astype(np.float16))

    # the base is the split layout's, but at the outliers it is as near to zero as it can be
    base = base_values(blocks["base"])
    nearest = np.abs(levels(blocks["base"])).min(axis=-1)
    assert (np.abs(base[at]) <= nearest[at] * (1 + 1e-5)).all()
    expected = base_values(split.data)
    expected[at] = base[at]
    assert np.array_equal(base, expected)
    assert np.array_equal(blocks["base"][:, :16], split.data.reshape(-1, 144)[:, :16])

    expected[at] = blocks["value"][:, :outliers]
    decoded = _core.dequantize_hifi_fork(raw(blocks), 512, 0)
    assert np.array_equal(decoded, expected.reshape(-1))
    assert np.array_equal(q4hifi.dequantize(raw(blocks), "Q4_HIFI", x.shape), decoded.reshape(x.shape))


def test_fork_blocks_are_near_zero_under_the_outliers() -> None:
    """The branch's dot product adds the weight to the base there."""
    x, _ = case("normal", "none", seed=8)
    blocks = core_fork(x, 8)
    at = np.arange(len(blocks))[:, None], blocks["index"][:, :8].astype(int)
    values = levels(blocks["base"])
    steps = values[..., 1] - values[..., 0]
    assert (np.abs(base_values(blocks["base"])[at]) <= steps[at] * 0.50001).all()


@pytest.mark.parametrize("outliers", [1, 8, 32])
def test_no_fork_block_is_much_worse_than_in_q4_k(outliers: int) -> None:
    """Nor where a weight is too large for its f16 slot, unless it is refused."""
    x, _ = case("student", "none", seed=9)
    for largest in (0, 6e4, 1e6):
        x[:, 17] = max(largest, x[0, 17])
        form = Format(Q4_HIFI, outliers, FORK)
        try:
            parts, _ = rows.encode((raw(x),), Format(F32), form, 512)
        except NotFiniteError:
            assert largest > 65504
            continue
        plain = _core.dequantize(*plain_q4_k(x, None), 0).reshape(x.shape)
        kept = block_errors(x, rows.decode(parts, form, 512), None)
        slack = block_errors(x * np.float32(2**-11), np.zeros_like(x), None)
        assert (kept <= block_errors(x, plain, None) + slack).all()


@properties
@given(**cases)
def test_from_layout_to_layout_and_back(inputs: str, weighting: str, outliers: int, seed: int) -> None:
    x, importance = case(inputs, weighting, seed)
    split, n = hifi(x, outliers, importance), x.shape[1]
    (fork,) = rows.relayout(split.parts, split.format, FORK, n)
    form = Format(Q4_HIFI, outliers, FORK)
    again = QuantizedTensor.from_parts(rows.relayout((fork,), form, SPLIT, n), split.format, x.shape)

    values, fork_values, back = (
        a.reshape(-1, 256) for a in (split.dequantize(), rows.decode((fork,), form, n), again.dequantize())
    )
    blocks = fork.view(FORK_BLOCK)
    assert (blocks["count"] == outliers).all() and not blocks["padding"].any()
    exact = np.ones(values.shape, bool)
    if outliers:
        assert np.array_equal(again.outlier_index, split.outlier_index)
        at = np.arange(len(blocks))[:, None], split.outlier_index.reshape(-1, outliers).astype(int)
        exact[at] = False
        assert np.array_equal(fork_values[at], values[at].astype(np.float16).astype(np.float32))
        residual = np.abs(again.outlier_residual.reshape(-1, outliers).astype(np.float32))
        rounding = (np.abs(values[at]) + residual) * 2**-11 + 2**-24
        assert (np.abs(back[at] - values[at]) <= rounding).all()
    assert np.array_equal(fork_values[exact], values[exact]) and np.array_equal(back[exact], values[exact])
    once_more = rows.relayout(again.parts, split.format, FORK, n)[0].view(FORK_BLOCK)
    assert all(np.array_equal(once_more[field], blocks[field]) for field in ("base", "index", "count"))


def test_fork_blocks_with_fewer_outliers_are_filled_up() -> None:
    x, _ = case("student", "none", seed=10)
    blocks = core_fork(x, 3)
    fewer = core_fork(x, 1)
    blocks[::2] = fewer[::2]
    for outliers in (3, 8, 32):
        parts = _core.fork_to_split(raw(blocks), 512, outliers)
        got = QuantizedTensor.from_parts(parts, Format(Q4_HIFI, outliers), x.shape)
        assert (np.diff(got.outlier_index.astype(int), axis=-1) > 0).all()
        decoded = _core.dequantize_hifi_fork(raw(blocks), 512, 0).reshape(x.shape)
        np.testing.assert_allclose(got.dequantize(), decoded, rtol=2**-10, atol=2**-10)
        assert np.count_nonzero(got.outlier_residual[0, 0]) <= 1
    with pytest.raises(ValueError, match="block 1: more outliers"):
        _core.fork_to_split(raw(blocks), 512, 2)


# --- malformed blocks ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("places", "good"),
    [([3, 7, 250], True), ([7, 3, 250], False), ([3, 3, 250], False), ([0, 0, 0], False)],
)
def test_places_must_be_strictly_increasing(places: list[int], good: bool) -> None:
    x, _ = case("normal", "none", seed=11)
    split = hifi(x, 3)
    split.outlier_index[4, 1] = places
    fork = core_fork(x, 3)
    fork["index"][4 * 2 + 1, :3] = places
    form = Format(Q4_HIFI, 3, FORK)
    readers = [
        split.dequantize,
        lambda: rows.relayout(split.parts, split.format, FORK, 512),
        lambda: rows.check_finite(split.parts, split.format, 512),
        lambda: rows.encode(split.parts, split.format, Format(F32), 512),
        lambda: q4hifi.dequantize(raw(fork), "Q4_HIFI", x.shape),
        lambda: rows.relayout((raw(fork),), form, SPLIT, 512),
        lambda: rows.check_finite((raw(fork),), form, 512),
        lambda: rows.base_of((raw(fork),), form, 512),
    ]
    for read in readers:
        if good:
            read()
        else:
            with pytest.raises(BadFileError, match=r"block 9: .* not strictly increasing"):
                read()


@pytest.mark.parametrize("count", [33, 255])
def test_more_than_32_outliers_are_refused(count: int) -> None:
    x, _ = case("normal", "none", seed=12)
    fork = core_fork(x, 32)
    fork["count"][[5, 9]] = count
    for threads in (1, 5):
        with pytest.raises(BadFileError, match="block 5: more than 32 outliers"):
            q4hifi.dequantize(raw(fork), "Q4_HIFI", x.shape, threads=threads)
    with pytest.raises(ValueError, match="block 5: more than 32 outliers"):
        _core.fork_to_split(raw(fork), 512, 32)


def test_lengths_that_do_not_fit_are_refused() -> None:
    x = np.zeros((4, 512), np.float32)
    base, index, residual = hifi(x, 3).parts
    fork = raw(core_fork(x, 3))
    calls = [
        lambda: _core.dequantize_hifi(base[:-1], index, residual, 512, 3, 1),
        lambda: _core.dequantize_hifi(base, index[:-1], residual, 512, 3, 1),
        lambda: _core.dequantize_hifi(base, index, residual[:-1], 512, 3, 1),
        lambda: _core.dequantize_hifi(base, index, residual, 512, 4, 1),
        lambda: _core.dequantize_hifi(base, index, residual, 512, 33, 1),
        lambda: _core.dequantize_hifi(base, index, residual, 500, 3, 1),
        lambda: _core.split_to_fork(base[:-1], index, residual, 512, 3),
        lambda: _core.split_to_fork(base, index[:-1], residual, 512, 3),
        lambda: _core.split_to_fork(base, index, residual[:-1], 512, 3),
        lambda: _core.fork_to_split(fork[:-1], 512, 3),
        lambda: _core.fork_to_split(fork, 512, 33),
        lambda: _core.fork_to_split(fork, 0, 3),
        lambda: _core.dequantize_hifi_fork(fork[:-1], 512, 1),
        lambda: _core.dequantize_hifi_fork(fork, 511, 1),
        lambda: _core.quantize_hifi(raw(x)[:-1], 0, 512, 3, None, 1),
        lambda: _core.quantize_hifi(raw(x), 0, 512, 33, None, 1),
        lambda: _core.quantize_hifi(raw(x), 0, 512, 3, np.ones(256, np.float32), 1),
        lambda: _core.quantize_hifi_fork(raw(x), 0, 512, 33, None, 1),
        lambda: _core.quantize_hifi_fork(raw(x), 0, 128, 3, None, 1),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(ValueError):
            pytest.fail(f"call {number} gave {call()}")


# --- golden bytes --------------------------------------------------------------------------------

blocks_v1 = json.loads(MAKE_GOLDEN["BLOCKS"].read_text())
encoder = json.loads(MAKE_GOLDEN["ENCODER"].read_text())


@pytest.mark.parametrize("number", range(len(blocks_v1["encoded"])))
def test_blocks_of_version_1_decode_to_the_same_values(number: int) -> None:
    entry = blocks_v1["encoded"][number]
    assert MAKE_GOLDEN["decode"](entry["blocks"], entry["outliers"]) == entry["decoded"]


@pytest.mark.parametrize("number", range(len(encoder["encoded"])))
def test_the_encoder_writes_the_recorded_bytes(number: int) -> None:
    """If this fails on purpose: python tests/golden/make_q4_hifi.py"""
    entry = encoder["encoded"][number]
    weights = blocks_v1["weights"][entry["weights"]]
    importance = blocks_v1["importance"] if entry["importance"] else None
    assert MAKE_GOLDEN["encode"](weights, importance, entry["outliers"]) == entry["blocks"]
