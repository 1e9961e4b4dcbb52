"""Errors measured on a sample of rows: which rows, and how near to what a whole quantization has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import q4hifi
from q4hifi.allocation.candidates import OUTLIERS, candidates
from q4hifi.allocation.sampled_errors import (
    FEWEST_ROWS,
    FEWEST_WEIGHTS,
    MOST_WEIGHTS,
    Sample,
    SampledTensor,
    logit_variance,
    sampled_rows,
)
from q4hifi.codec.model_file import RowRange
from q4hifi.errors import NotFiniteError
from q4hifi.formats.layout import Format
from q4hifi.formats.types import TYPES
from q4hifi.imatrix.file import load_importance
from synthetic import random_sums, random_weights, write_imatrix, write_model

EXPERTS = "blk.0.ffn_down_exps.weight"
COUNTS = [5, 700, 0]
"""The tokens of each expert."""

MATRIX = "blk.0.attn_v.weight"


@pytest.mark.parametrize("n_rows", [1, 63, 64, 1000, 151_936])
@pytest.mark.parametrize("row_length", [32, 1536, 28672])
def test_rows_are_spread_over_the_whole_tensor(n_rows: int, row_length: int) -> None:
    rows = sampled_rows(n_rows, row_length)
    assert rows[0] >= 0 and rows[-1] < n_rows
    assert (np.diff(rows) > 0).all()
    assert rows.size >= min(n_rows, FEWEST_ROWS)
    assert rows.size == n_rows or rows.size * row_length >= FEWEST_WEIGHTS
    assert rows.size * row_length <= max(MOST_WEIGHTS, FEWEST_ROWS * row_length, FEWEST_WEIGHTS + row_length)
    assert np.diff(rows, append=n_rows).max() <= 2 * n_rows / rows.size + 1


def test_sampled_rows_are_of_every_place_in_a_head() -> None:
    places = sampled_rows(4096, 4096) % 64
    assert np.unique(places // 4).size == 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("errors")
    tensors = {MATRIX: random_weights(1500, 512, seed=1), EXPERTS: random_weights(3, 40, 256, seed=2)}
    write_model(folder / "model.gguf", tensors)
    entries = {
        MATRIX: (random_sums(1, 512, [9], seed=3), np.array([9])),
        EXPERTS: (random_sums(3, 256, COUNTS, seed=4), np.array(COUNTS)),
    }
    write_imatrix(folder / "imatrix.gguf", entries)
    return folder


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("name", [MATRIX, EXPERTS])
def test_the_sample_has_the_error_of_the_whole(name: str, weighted: bool, folder: Path) -> None:
    importance = load_importance(folder / "imatrix.gguf") if weighted else None
    formats = candidates(256, stock=False, layout="split")
    assert [f.outliers for f in formats if f.outliers] == list(OUTLIERS)
    with q4hifi.open(folder / "model.gguf") as model:
        tensor, weights = model.tensors[name], model[name].dequantize()
        found = SampledTensor(model, tensor, importance).relative_errors(formats)
        for form, error in zip(formats, found, strict=True):
            matrices = weights.reshape(-1, *weights.shape[-2:])
            columns = importance and importance.weights(name, tensor.row_length, len(matrices))
            routed = (
                np.divide(COUNTS, np.mean(COUNTS)) if weighted and name == EXPERTS else [1] * len(matrices)
            )
            sums = np.zeros(2)
            for number, matrix in enumerate(matrices):
                w = np.ones(tensor.row_length) if columns is None else columns[number]
                made = q4hifi.quantize(
                    matrix, form.type, importance=None if columns is None else w, outliers=form.outliers
                ).dequantize()
                of_matrix = [(w * (made - matrix) ** 2).sum(), (w * matrix.astype(np.float64) ** 2).sum()]
                sums += routed[number] * np.array(of_matrix)
            # experts are small and so measured whole; of the other, a sixth of the rows
            assert error == pytest.approx(sums[0] / sums[1], rel=1e-5 if name == EXPERTS else 0.1)


def test_energy_is_that_of_the_outputs(folder: Path) -> None:
    importance = load_importance(folder / "imatrix.gguf")
    with q4hifi.open(folder / "model.gguf") as model:
        tensor, weights = model.tensors[EXPERTS], model[EXPERTS].dequantize()
        sampled = SampledTensor(model, tensor, importance)
        columns = importance.weights(EXPERTS, 256, 3)
        assert columns is not None
        energy = sampled.output_energy()
        assert energy is not None
        by_expert = (weights**2 * columns[:, None]).sum(axis=(1, 2))
        expected = by_expert @ COUNTS / sum(COUNTS)  # of the expert that a token is routed to
        assert energy.whole == pytest.approx(expected, rel=1e-4)
        assert SampledTensor(model, tensor, None).output_energy() is None
        assert sampled.row_energy().whole == pytest.approx((weights**2).sum(-1).mean(), rel=1e-4)


def test_fisher_information_counts_errors_where_they_are_felt(folder: Path) -> None:
    importance = load_importance(folder / "imatrix.gguf")
    with q4hifi.open(folder / "model.gguf") as model:
        tensor = model.tensors[MATRIX]
        length, sampled = tensor.row_length, SampledTensor(model, tensor, importance)
        weights = importance.weights(tensor.name, length, 1)
        assert weights is not None
        # the importances themselves: half of their sum
        half = float(weights.sum()) / 2
        told = sampled.fisher_sensitivity(weights[0])
        assert told == pytest.approx(half, rel=1e-6)
        # one column: that column's error
        column = np.zeros(length, np.float32)
        column[3] = 2
        told = sampled.fisher_sensitivity(column)
        rows = np.concatenate(
            [model.dequantize_rows(RowRange(tensor, 0, r, 1)) for r in sampled.samples[0].rows]
        )
        decoded = q4hifi.quantize(rows, "Q4_K", importance=weights[0]).dequantize()
        error = np.square(decoded - rows, dtype=np.float64)
        overall = (error @ weights[0]).sum() / (np.square(rows, dtype=np.float64) @ weights[0]).sum()
        assert told == pytest.approx(error[:, 3].sum() / np.square(rows[:, 3]).sum() / overall, rel=1e-4)


def test_massive_activations_are_not_of_ordinary_tokens(tmp_path: Path) -> None:
    """They come from a few columns and go to a few rows, and make all the difference to the whole."""
    weights = random_weights(300, 512, seed=5)
    ones = np.ones(512, np.float32)
    ordinary = (weights**2).sum()
    massive = ones.copy()
    weights[7, 9], massive[9] = 50, 1e5
    write_model(tmp_path / "model.gguf", {MATRIX: weights})
    write_imatrix(tmp_path / "imatrix.gguf", {MATRIX: (massive, np.array([1]))})
    importance = load_importance(tmp_path / "imatrix.gguf")
    with q4hifi.open(tmp_path / "model.gguf") as model:
        tensor = model.tensors[MATRIX]
        sampled = SampledTensor(model, tensor, importance)
        sampled.samples = [Sample(0, tuple(range(300)), model.read_rows(RowRange(tensor, 0, 0, 300)))]
        energy = sampled.output_energy()
    assert energy is not None
    assert energy.ordinary == pytest.approx(ordinary, rel=0.1)
    assert energy.whole > 1000 * ordinary


def test_what_is_not_finite_is_told_with_its_place(tmp_path: Path) -> None:
    weights = random_weights(200, 256)
    weights[150, 3] = np.inf
    write_model(tmp_path / "model.gguf", {MATRIX: weights})
    with (
        q4hifi.open(tmp_path / "model.gguf") as model,
        pytest.raises(NotFiniteError, match="row 150, column 3"),
    ):
        SampledTensor(model, model.tensors[MATRIX], None)


def test_a_type_that_cannot_hold_the_weights_has_an_infinite_error(tmp_path: Path) -> None:
    write_model(tmp_path / "model.gguf", {MATRIX: np.full((4, 256), 1e8)}, kind="BF16")
    with q4hifi.open(tmp_path / "model.gguf") as model:
        tensor = model.tensors[MATRIX]
        formats = [Format(TYPES["Q8_0"]), Format(TYPES["BF16"])]
        first, second = SampledTensor(model, tensor, None).relative_errors(formats)
        assert first == np.inf and second < 1e-4


def test_rows_of_other_lengths_take_other_types() -> None:
    def names(row_length: int, stock: bool) -> list[str]:
        return [form.type.name for form in candidates(row_length, stock=stock, layout="split")]

    assert "Q4_HIFI" in names(512, False)
    assert "Q4_HIFI" not in names(512, True)
    assert {"Q4_K", "Q5_K", "Q6_K", "Q8_0"} <= set(names(512, True))
    assert names(96, False) == names(96, True)
    assert {"Q4_0", "Q5_0", "Q8_0"} <= set(names(96, False))
    assert names(40, False) == ["F16"]


def test_logits_vary_by_the_norms_gain_and_the_columns(tmp_path: Path) -> None:
    """Of vectors as long as the norm makes them, in any direction."""
    rng = np.random.default_rng(6)
    output, gain = random_weights(250, 64, seed=5), rng.uniform(0.5, 4, 64).astype(np.float32)
    tensors = {"token_embd.weight": random_weights(250, 64, seed=6), "output_norm.weight": gain}
    write_model(tmp_path / "tied.gguf", tensors)
    write_model(tmp_path / "untied.gguf", {**tensors, "output.weight": output})
    vectors = rng.standard_normal((4000, 64))
    vectors *= 8 / np.linalg.norm(vectors, axis=1, keepdims=True)
    for name, matrix in (("untied", output), ("tied", tensors["token_embd.weight"])):
        with q4hifi.open(tmp_path / f"{name}.gguf") as model:
            logits = (vectors * gain) @ matrix.T
            assert logit_variance(model) == pytest.approx(logits.var(axis=1).mean(), rel=0.03)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"output_norm.weight": np.ones(64)},
        {"token_embd.weight": np.ones((9, 64))},
        {"token_embd.weight": np.ones((9, 64)), "output_norm.weight": np.ones(32)},
        {"token_embd.weight": np.ones((9, 64)), "output_norm.weight": np.ones(64)},
        {"token_embd.weight": random_weights(9, 64), "output_norm.weight": np.full(64, np.nan)},
    ],
    ids=["nothing", "no matrix", "no norm", "another length", "all rows alike", "no number"],
)
def test_where_weights_do_not_tell_the_logits_variance(
    tensors: dict[str, np.ndarray], tmp_path: Path
) -> None:
    write_model(tmp_path / "model.gguf", tensors)
    with q4hifi.open(tmp_path / "model.gguf") as model:
        assert logit_variance(model) is None
