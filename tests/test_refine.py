"""Refined blocks: never worse than the plain encoder's, legal, and the same however they are made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
import q4hifi
from command import Run
from inputs import IMPORTANCE, INPUTS, Floats
from q4hifi import BadFileError, BadOptionError, QuantizedTensor
from q4hifi.allocation.candidates import STOCK, STOCK_OF_32
from q4hifi.codec import rows
from q4hifi.codec.input_correlations import Hessian, correlations_of, known_inputs
from q4hifi.formats.layout import SPLIT, Format
from q4hifi.formats.types import F32, Q4_HIFI, TYPES
from synthetic import EXAMPLE

REFINED = ["Q4_K", "Q5_K", "Q6_K"]
OUTLIERS = [("Q4_K", 0), ("Q5_K", 0), ("Q6_K", 0), ("Q4_HIFI", 1), ("Q4_HIFI", 8), ("Q4_HIFI", 32)]

by_case = pytest.mark.parametrize(("kind", "outliers"), OUTLIERS)


def block_errors(x: Floats, tensor: QuantizedTensor, importance: Floats | None) -> np.ndarray:
    """Squared error of each block, weighted by importance · √(2 mean x² + x²)."""
    difference = (x.astype(np.float64) - tensor.dequantize()).reshape(-1, 256)
    squares = np.square(x, dtype=np.float64).reshape(-1, 256)
    mean = squares.mean(axis=1, keepdims=True)
    weights = np.where((mean >= 1e-30) & (mean < 1e30), np.sqrt(2 * mean + squares), 1.0)
    if importance is not None:
        weights *= np.broadcast_to(importance, x.shape).reshape(-1, 256)
    return (difference**2 * weights).sum(axis=1)


@by_case
@pytest.mark.parametrize("inputs", INPUTS)
def test_no_block_is_worse(kind: str, outliers: int, inputs: str) -> None:
    rng = np.random.default_rng(7)
    x = INPUTS[inputs](rng, 768)
    for name, make in IMPORTANCE.items():
        w = make(rng, 768)
        plain, refined = (
            q4hifi.quantize(x, kind, importance=w, outliers=outliers, refine=refine)
            for refine in (False, True)
        )
        before, after = (block_errors(x, tensor, w) for tensor in (plain, refined))
        assert (after <= before * (1 + 1e-9)).all(), f"{name}: {after} after {before}"


@by_case
def test_bell_shaped_weights_gain(kind: str, outliers: int) -> None:
    rng = np.random.default_rng(8)
    x, w = INPUTS["normal"](rng, 1024), IMPORTANCE["heavy"](rng, 1024)
    plain, refined = (
        block_errors(x, q4hifi.quantize(x, kind, importance=w, outliers=outliers, refine=refine), w).sum()
        for refine in (False, True)
    )
    assert refined < 0.97 * plain


@pytest.mark.parametrize("kind", REFINED)
@pytest.mark.parametrize("inputs", INPUTS)
def test_ggml_decodes_the_same(kind: str, inputs: str) -> None:
    x = INPUTS[inputs](np.random.default_rng(9), 512)
    tensor = q4hifi.quantize(x, kind, refine=True)
    decoded = oracle.ggml_dequantize(tensor.type.id, tensor.data, x.shape[1])
    assert np.array_equal(decoded, tensor.dequantize())


@by_case
@settings(derandomize=True, deadline=None, max_examples=15)
@given(
    cuts=st.lists(st.integers(1, 15), max_size=3, unique=True).map(sorted),
    threads=st.sampled_from([1, 2, 5]),
    weighted=st.booleans(),
)
def test_bytes_depend_neither_on_threads_nor_on_chunks(
    kind: str, outliers: int, cuts: list[int], threads: int, weighted: bool
) -> None:
    rng = np.random.default_rng(10)
    x = rng.standard_normal((16, 768)).astype(np.float32)
    w = np.exp(rng.standard_normal(768)).astype(np.float32) if weighted else None

    def encode(rows: Floats) -> list[np.ndarray]:
        tensor = q4hifi.quantize(rows, kind, importance=w, outliers=outliers, refine=True, threads=threads)
        return [part.reshape(len(rows), -1) for part in tensor.parts]

    pieces = [encode(rows) for rows in np.split(x, cuts)]
    for whole, *parts in zip(encode(x), *pieces, strict=True):
        assert np.array_equal(whole, np.concatenate(parts))


def test_types_without_refinement_stay_as_they_are() -> None:
    x = np.random.default_rng(11).standard_normal((2, 256)).astype(np.float32)
    for kind in ("Q4_0", "Q5_1", "Q8_0", "F16"):
        plain, refined = (q4hifi.quantize(x, kind, refine=refine).data for refine in (False, True))
        assert np.array_equal(plain, refined), kind


def test_a_refined_file_has_less_error_and_stock_llama_cpp_runs_it(tmp_path: Path) -> None:
    plain = q4hifi.quantize_file(EXAMPLE, tmp_path / "plain.gguf", "Q4_K_M")
    refined = q4hifi.quantize_file(EXAMPLE, tmp_path / "refined.gguf", "Q4_K_M", refine=True)
    assert refined.file_bytes == plain.file_bytes
    for role, error in refined.error_by_role.items():
        assert error.relative < 0.97 * plain.error_by_role[role].relative, role
    assert oracle.llama_loads(tmp_path / "refined.gguf")


def test_the_command_refines(run: Run, short_model: Path, tmp_path: Path) -> None:
    expected = tmp_path / "expected.gguf"
    q4hifi.quantize_file(short_model, expected, "Q4_K_S", refine=True)
    got = tmp_path / "got.gguf"
    result = run("quantize", short_model, got, "Q4_K_S", "--refine")
    assert result.status == 0, result.err
    assert got.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("type", ["Q4_HIFI", "Q4_K_S"])
def test_q4_hifi_is_refined_unless_told_otherwise_and_stock_mixes_are_not(
    type: str, short_model: Path, tmp_path: Path
) -> None:
    data = {}
    for refine in (None, False, True):
        q4hifi.quantize_file(short_model, tmp_path / f"{refine}.gguf", type, refine=refine)
        data[refine] = (tmp_path / f"{refine}.gguf").read_bytes()
    assert data[True] != data[False]
    assert data[None] == data[type == "Q4_HIFI"]


@pytest.mark.parametrize(
    "form",
    [*(Format(TYPES[kind]) for kind in (*STOCK, *STOCK_OF_32)), Format(Q4_HIFI, 8, SPLIT)],
    ids=lambda form: form.type.name,
)
def test_errors_cancel_where_inputs_are_correlated(form: Format) -> None:
    """Where inputs lie in a few directions the output's error falls by much of what they share."""
    n = 480 if form.type.block_size == 32 else 512
    generator = np.random.default_rng(5)
    x, u = (generator.standard_normal(shape).astype(np.float32) for shape in ((40, n), (n, 4)))
    h = u @ u.T + np.diag(generator.uniform(0.5, 4.0, n).astype(np.float32))
    w = np.diag(h).copy()

    def errors(inputs: Hessian | None) -> np.ndarray:
        parts, _ = rows.encode((raw(x),), Format(F32), form, n, w, refine=True, inputs=inputs)
        return rows.decode(parts, form, n).astype(np.float64) - x

    def cost(inputs: Hessian | None) -> float:
        e = errors(inputs)
        return float(np.sum(e @ h * e))

    plain = errors(None)
    products = h[np.triu_indices(n, 1)]
    known = known_inputs(w, correlations_of(products, w), 1e6)
    assert cost(known) < 0.7 * cost(None)
    assert cost(known) < cost(known_inputs(w, correlations_of(products, w), 2e3)) < cost(None)
    # without ggml's blocks to start from they are others, as good; so they are of what nobody believes
    for nowhere in (known_inputs(w), known_inputs(w, correlations_of(products, w), 9)):
        assert np.sum(w * errors(nowhere) ** 2) == pytest.approx(np.sum(w * plain**2), rel=0.01)


def raw(x: Floats) -> rows.Bytes:
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8)


def test_inputs_must_be_of_all_columns() -> None:
    x, w = np.ones((1, 256), np.float32), np.ones(256, np.float32)
    with pytest.raises(BadFileError, match="correlations"):
        known_inputs(w, np.zeros(5, np.int8), 1e4)
    inputs = known_inputs(np.ones(512, np.float32))
    with pytest.raises(BadOptionError, match="importance"):
        rows.encode((raw(x),), Format(F32), Format(TYPES["Q4_K"]), 256, w, refine=True, inputs=inputs)
