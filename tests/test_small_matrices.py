"""Stacks of many small matrices: pieces go across them, so that time goes by bytes, not by matrices."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFValueType

import q4hifi
from q4hifi.allocation.sampled_errors import MOST_WEIGHTS, SHORTEST_ROW, SampledTensor, sampled_rows
from q4hifi.codec import rows
from q4hifi.codec.model_file import ModelFile, RowRange, row_ranges
from q4hifi.errors import NotFiniteError
from q4hifi.formats.layout import Format
from q4hifi.formats.types import BF16, F16, F32, TensorType
from q4hifi.pipeline import rewrite, verify
from synthetic import (
    patch,
    random_sums,
    random_weights,
    read_tensors,
    write_imatrix,
    write_model,
    write_stored,
)

NAME = "v.blk.0.0.conv_pw.weight"
PAIRS = [
    ("general.architecture", "clip", GGUFValueType.STRING),
    ("clip.vision.block_count", 1, GGUFValueType.UINT32),
]
SHAPES = [(320, 640, 1, 1), (64, 32, 3, 3), (7, 640, 5, 1), (300, 500, 2, 1), (31, 1000, 1, 7)]


def conv(path: Path, shape: tuple[int, ...], seed: int = 0) -> Path:
    """Write convolutions in F16, as [out, in, height, width]."""
    weights = random_weights(*shape, seed=seed).astype(np.float16)
    return write_stored(path, {NAME: ("F16", shape)}, pairs=PAIRS, data={NAME: weights.tobytes()})


@pytest.mark.parametrize("shape", SHAPES)
def test_small_matrices_are_few_pieces(
    shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of reading, however many matrices there are."""
    path = conv(tmp_path / "in.gguf", shape)
    read: list[RowRange] = []
    read_rows = ModelFile.read_rows

    def counted(model: ModelFile, piece: RowRange) -> rows.Parts:
        read.append(piece)
        return read_rows(model, piece)

    monkeypatch.setattr(ModelFile, "read_rows", counted)
    for work in (
        lambda: q4hifi.quantize_file(path, tmp_path / "a.gguf", "Q4_K_M"),
        lambda: q4hifi.dequantize_file(path, tmp_path / "b.gguf", "F32"),
        lambda: q4hifi.quantize_file(path, tmp_path / "c.gguf", "COPY"),
        lambda: q4hifi.verify_file(path),
    ):
        read.clear()
        work()
        assert len(read) == 1
    before, floats = read_tensors(path)[NAME], read_tensors(tmp_path / "b.gguf")[NAME]
    assert np.array_equal(before.weights(), floats.weights())
    assert read_tensors(tmp_path / "c.gguf")[NAME] == before


@pytest.mark.parametrize("weights", [1, 1000, 4096, 1 << 22])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M", "F32", "BF16"])
def test_the_bytes_do_not_depend_on_the_pieces(
    kind: str, weights: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {"blk.0.ffn_up_exps.weight": random_weights(5, 6, 256), NAME: random_weights(40, 9, 3, 3)}
    path = write_model(tmp_path / "in.gguf", tensors, architecture="clip")
    q4hifi.quantize_file(path, tmp_path / "a.gguf", kind)
    monkeypatch.setattr(rewrite, "row_ranges", partial(row_ranges, weights=weights))
    q4hifi.quantize_file(path, tmp_path / "b.gguf", kind)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("n_rows", [1, 3], ids=["one row for all", "a row for each"])
def test_every_matrix_is_encoded_under_its_own_importance(n_rows: int, tmp_path: Path) -> None:
    name = "blk.0.ffn_up_exps.weight"
    weights = random_weights(3, 8, 256)
    path = write_model(tmp_path / "in.gguf", {name: weights if n_rows == 3 else weights.reshape(24, 256)})
    sums = random_sums(n_rows, 256, [9] * n_rows, seed=1)
    imatrix = write_imatrix(tmp_path / "i.gguf", {name: (sums, np.full(n_rows, 9))})
    q4hifi.quantize_file(path, tmp_path / "out.gguf", "Q4_K_M", imatrix=imatrix)
    importance = q4hifi.load_importance(imatrix).weights(name, 256, n_rows)
    assert importance is not None
    made = [
        q4hifi.quantize(matrix, "Q4_K", importance=importance[i]).data
        for i, matrix in enumerate(weights.reshape(n_rows, -1, 256))
    ]
    assert read_tensors(tmp_path / "out.gguf")[name].data == b"".join(m.tobytes() for m in made)


@pytest.mark.parametrize("row_length", [1, 2, 3, 5, 31, 100, 255, 256, 300])
@pytest.mark.parametrize("target", [F32, F16, BF16])
@pytest.mark.parametrize("source", [F32, F16, BF16])
def test_short_rows_encode_to_the_same_numbers(
    source: TensorType, target: TensorType, row_length: int
) -> None:
    values = random_weights(101 * row_length)
    (data,), _ = rows.encode((values.view(np.uint8),), Format(F32), Format(source), row_length)
    (made,), sums = rows.encode((data,), Format(source), Format(target), row_length)
    decoded = rows.decode((made,), Format(target), row_length)
    assert np.array_equal(decoded.reshape(-1), values)  # every one is exact in all types
    assert sums.error == 0 and sums.reference == pytest.approx((values.astype(np.float64) ** 2).sum())


@pytest.mark.parametrize("place", [0, 500, 5049])
def test_the_place_in_short_rows_is_found(place: int, tmp_path: Path) -> None:
    shape = (10, 101, 1, 5)
    path = conv(tmp_path / "in.gguf", shape)
    with q4hifi.open(path) as model:
        patch(path, model.tensors[NAME].parts[0].offset + 2 * place, b"\0\x7e")
    where = f"row {place // 5}, column {place % 5} is NaN"
    (finding,) = q4hifi.verify_file(path)
    assert where in finding.message
    for kind in ("F32", "BF16", "COPY"):
        with pytest.raises(NotFiniteError, match=where):
            q4hifi.quantize_file(path, tmp_path / "out.gguf", kind)


def test_damage_is_found_in_any_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = conv(tmp_path / "in.gguf", (9, 9, 3, 3))
    with q4hifi.open(path) as model:
        patch(path, model.tensors[NAME].parts[0].offset + 2 * 700, b"\0\x7c")
    monkeypatch.setattr(verify, "row_ranges", partial(row_ranges, weights=50))
    (finding,) = q4hifi.verify_file(path)
    assert f"row {700 // 3}, column {700 % 3}" in finding.message


# ---- measuring -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [*SHAPES, (50_000, 2, 32)])
def test_a_sample_of_small_matrices_is_one(shape: tuple[int, ...], tmp_path: Path) -> None:
    with q4hifi.open(conv(tmp_path / "in.gguf", shape)) as model:
        tensor, weights = model.tensors[NAME], model[NAME].dequantize().reshape(-1, shape[-1])
        (sample,) = SampledTensor(model, tensor, None).samples
        decoded = rows.decode(sample.parts, tensor.format, tensor.row_length)
        assert np.array_equal(decoded, weights[list(sample.rows)])
        assert list(sample.rows) == sampled_rows(tensor.n_rows, tensor.row_length).tolist()


@pytest.mark.parametrize("row_length", [1, 3, 31])
def test_of_rows_too_short_for_blocks_few_are_measured(row_length: int) -> None:
    assert sampled_rows(10**8, row_length).size <= MOST_WEIGHTS // SHORTEST_ROW


def test_a_sample_keeps_experts_apart_that_have_importance(tmp_path: Path) -> None:
    name = "blk.0.ffn_up_exps.weight"
    path = write_model(tmp_path / "in.gguf", {name: random_weights(3, 40, 256)})
    sums = random_sums(3, 256, [5, 6, 7], seed=1)
    write_imatrix(tmp_path / "i.gguf", {name: (sums, np.array([5, 6, 7]))})
    importance = q4hifi.load_importance(tmp_path / "i.gguf")
    with q4hifi.open(path) as model:
        samples = SampledTensor(model, model.tensors[name], importance).samples
        assert [s.matrix for s in samples] == [0, 1, 2]
        assert [s.rows for s in samples] == [tuple(range(40 * i, 40 * i + 40)) for i in range(3)]
