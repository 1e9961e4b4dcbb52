"""Models read by tensor name, the Q4_HIFI ones whole, in both layouts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gguf import GGUFValueType

import q4hifi
from q4hifi.codec.model_file import row_ranges
from q4hifi.errors import BadFileError, UnsupportedModelError
from synthetic import (
    EXAMPLE,
    Floats,
    Stored,
    random_weights,
    read_tensors,
    write_model,
    write_small_model,
    write_stored,
)

HIFI = "blk.0.attn_v.weight", "blk.0.ffn_down.weight", "blk.1.attn_v.weight"
"""The tensors of the small model that its recipe makes Q4_HIFI."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The small model, as it was and as Q4_HIFI in both layouts, with five outliers per block."""
    folder = tmp_path_factory.mktemp("files")
    source = write_small_model(folder / "in.gguf")
    for layout in ("split", "fork"):
        q4hifi.quantize_file(source, folder / f"{layout}.gguf", outliers=5, layout=layout)
    return SimpleNamespace(source=source, split=folder / "split.gguf", fork=folder / "fork.gguf")


def decoded_split(stored: dict[str, Stored], name: str) -> Floats:
    """Add the residuals to the base, in numpy."""
    values = stored[name].weights()
    n, blocks, _ = stored[name + ".outlier_index"].shape
    index = np.frombuffer(stored[name + ".outlier_index"].data, np.uint8).reshape(-1, n)
    residual = np.frombuffer(stored[name + ".outlier_residual"].data, np.float16).reshape(-1, n)
    flat = values.reshape(-1, 256).copy()
    assert len(flat) == len(index) == blocks * values.shape[0]
    np.put_along_axis(
        flat, index.astype(np.intp), np.take_along_axis(flat, index.astype(np.intp), 1) + residual, 1
    )
    return flat.reshape(values.shape)


def decoded_fork(stored: dict[str, Stored], name: str) -> Floats:
    """Put the values over the base, in numpy."""
    tensor = stored[name]
    blocks = np.frombuffer(tensor.data, np.uint8).reshape(-1, 244)
    base = Stored("Q4_K", 12, (256, len(blocks)), blocks[:, :144].tobytes()).weights().copy()
    assert (blocks[:, 240] == 5).all() and not blocks[:, 241:].any()
    for values, block in zip(base, blocks, strict=True):
        values[block[144:149]] = block[176:240].view(np.float16)[:5]
        assert not block[149:176].any() and not block[186:240].any()
    return base.reshape(tensor.shape[::-1])


@pytest.mark.parametrize("layout", ["split", "fork"])
def test_q4_hifi_tensors_are_read_whole(layout: str, files: SimpleNamespace) -> None:
    path: Path = getattr(files, layout)
    stored = read_tensors(path)
    expected = decoded_split if layout == "split" else decoded_fork
    with q4hifi.open(path) as model, q4hifi.open(files.source) as source:
        assert model.layout == layout
        assert set(model) == set(source)
        assert [name for name, t in model.tensors.items() if t.type.name == "Q4_HIFI"] == list(HIFI)
        for name in HIFI:
            info, tensor = model.tensors[name], model[name]
            assert (info.outliers, info.n_rows * info.row_length) == (5, tensor.dequantize().size)
            assert tensor.type.name == "Q4_HIFI"
            assert tensor.shape == source[name].shape == info.shape[::-1]
            assert tensor.nbytes == info.nbytes
            assert np.array_equal(tensor.dequantize(), expected(stored, name))
        assert all(info.outliers == 0 for name, info in model.tensors.items() if name not in HIFI)


def test_outliers_are_arrays_by_block(files: SimpleNamespace) -> None:
    with q4hifi.open(files.split) as split, q4hifi.open(files.fork) as fork:
        tensor = split["blk.0.ffn_down.weight"]
        assert tensor.outlier_index is not None and tensor.outlier_residual is not None
        assert tensor.outlier_index.shape == tensor.outlier_residual.shape == (96, 2, 5)
        assert (tensor.outlier_index.dtype, tensor.outlier_residual.dtype) == (np.uint8, np.float16)
        assert (np.diff(tensor.outlier_index.astype(int), axis=-1) > 0).all()
        assert tensor.data.shape == (96, 288)
        assert fork["blk.0.ffn_down.weight"].outlier_index is None
        assert fork["blk.0.ffn_down.weight"].data.shape == (96, 488)


def test_other_tensors_are_read_as_they_are(files: SimpleNamespace) -> None:
    stored = read_tensors(files.split)
    with q4hifi.open(files.split) as model:
        for name in set(model) - set(HIFI):
            assert model[name].data.tobytes() == stored[name].data
            assert model[name].type.name == stored[name].type_name
            assert np.array_equal(model[name].dequantize(), stored[name].weights())
    with q4hifi.open(EXAMPLE) as model:
        assert model.layout is None
        assert len(model) == 90 and "output_norm.weight" in model
        assert model["blk.0.ffn_down.weight"].shape == (256, 512)
        assert model["output_norm.weight"].shape == (256,)
        assert model.metadata["qwen3.block_count"] == 8


@pytest.mark.parametrize("weights", [1, 700, 1 << 20])
@pytest.mark.parametrize("layout", ["source", "split", "fork"])
def test_pieces_make_the_whole(layout: str, weights: int, files: SimpleNamespace) -> None:
    with q4hifi.open(getattr(files, layout)) as model:
        for name, tensor in model.tensors.items():
            pieces = [model.dequantize_rows(rows) for rows in row_ranges(tensor, weights)]
            whole = model[name].dequantize()
            assert np.array_equal(np.concatenate(pieces), np.atleast_2d(whole))


def test_pieces_cross_experts_only_where_they_may(tmp_path: Path) -> None:
    name = "blk.0.ffn_up_exps.weight"
    write_model(tmp_path / "moe.gguf", {name: random_weights(3, 5, 256)})
    with q4hifi.open(tmp_path / "moe.gguf") as model:
        tensor = model.tensors[name]
        pieces = [(p.matrix, p.first, p.count) for p in row_ranges(tensor, 2 * 256, by_matrix=True)]
        assert pieces == [(i, 5 * i + row, n) for i in range(3) for row, n in ((0, 2), (2, 2), (4, 1))]
        pieces = [(p.matrix, p.first, p.count) for p in row_ranges(tensor, 4 * 256)]
        assert pieces == [(0, 0, 4), (0, 4, 4), (1, 8, 4), (2, 12, 3)]
        assert model[name].shape == (3, 5, 256)


def test_names_that_are_not_there_are_key_errors(files: SimpleNamespace) -> None:
    with q4hifi.open(files.split) as model:
        for name in ("no.such.tensor", HIFI[0] + ".outlier_index", HIFI[0] + ".outlier_residual"):
            assert name not in model
            with pytest.raises(KeyError, match=name):
                model[name]
        assert model.get("no.such.tensor") is None


def test_a_closed_model_cannot_be_read(files: SimpleNamespace) -> None:
    with q4hifi.open(files.split) as model:
        kept = model[HIFI[0]]
    with pytest.raises(ValueError, match="closed"):
        model[HIFI[0]]
    assert np.isfinite(kept.dequantize()).all()
    assert model.tensors[HIFI[0]].outliers == 5
    model.close()


def test_a_refused_model_leaves_no_file_open(tmp_path: Path, files: SimpleNamespace) -> None:
    """pytest turns a file that was not closed into a failure (filterwarnings = error)."""
    tensors = {"w": random_weights(2, 256), "w.outlier_index": random_weights(2, 1, 5)}
    write_model(tmp_path / "bad.gguf", tensors)
    with pytest.raises(BadFileError, match=r"bad\.gguf: tensor w: it has outliers, but there is no tensor"):
        q4hifi.open(tmp_path / "bad.gguf")


def test_a_later_version_of_q4_hifi_is_refused(tmp_path: Path) -> None:
    pairs = [("q4_hifi.version", 2, GGUFValueType.UINT32)]
    path = write_model(tmp_path / "new.gguf", {"w": random_weights(2, 256)}, pairs=pairs)
    with pytest.raises(UnsupportedModelError, match=r"new\.gguf: q4_hifi\.version is 2"):
        q4hifi.open(path)


def test_types_that_nothing_decodes_are_read_but_not_decoded(tmp_path: Path) -> None:
    path = write_stored(tmp_path / "in.gguf", {"blk.0.attn_q.weight": ("Q8_K", (2, 256))})
    with q4hifi.open(path) as model:
        tensor = model["blk.0.attn_q.weight"]
        assert (tensor.type.name, tensor.data.shape) == ("Q8_K", (2, 292))
        with pytest.raises(UnsupportedModelError, match="Q8_K is a type that q4hifi cannot decode"):
            tensor.dequantize()


# ---- companions that contradict their base -------------------------------------------------------

NAME = "blk.0.attn_v.weight"
GOOD = {
    NAME: ("Q4_K", (3, 512)),
    NAME + ".outlier_index": ("I8", (3, 2, 4)),
    NAME + ".outlier_residual": ("F16", (3, 2, 4)),
}


def test_companions_may_stand_in_any_order(tmp_path: Path) -> None:
    path = write_stored(tmp_path / "a.gguf", dict(reversed(GOOD.items())))
    with q4hifi.open(path) as model:
        assert list(model) == [NAME]
        assert not model[NAME].dequantize().any()


@pytest.mark.parametrize(
    ("suffix", "changed", "match"),
    [
        (".outlier_index", None, "it has outliers, but there is no tensor .*outlier_index"),
        (".outlier_residual", None, "it has outliers, but there is no tensor .*outlier_residual"),
        (".outlier_index", ("I16", (3, 2, 4)), r"outlier_index is I16 .*, not I8 of shape \[4, 2, 3\]"),
        (".outlier_residual", ("F32", (3, 2, 4)), "outlier_residual is F32 .*, not F16"),
        (".outlier_index", ("I8", (3, 2, 5)), r"outlier_residual is F16 of shape \[4, 2, 3\], not .*\[5,"),
        (".outlier_residual", ("F16", (3, 1, 4)), r"of shape \[4, 1, 3\], not F16 of shape \[4, 2, 3\]"),
        (".outlier_index", ("I8", (2, 3, 4)), r"of shape \[4, 3, 2\], not I8 of shape \[4, 2, 3\]"),
        (".outlier_index", ("I8", (3, 2, 33)), "it is Q4_K with 33"),
        ("", ("Q8_0", (3, 512)), "it has outliers, so it must be Q4_K .*but it is Q8_0 with 4"),
        ("", ("Q4_K", (3, 256)), r"not I8 of shape \[4, 1, 3\]"),
    ],
)
def test_companions_that_do_not_fit_are_refused(
    suffix: str, changed: tuple[str, tuple[int, ...]] | None, match: str, tmp_path: Path
) -> None:
    stored = dict(GOOD)
    if changed is None:
        del stored[NAME + suffix]
    else:
        stored[NAME + suffix] = changed
    path = write_stored(tmp_path / "bad.gguf", stored)
    with pytest.raises(BadFileError, match=match) as raised:
        q4hifi.open(path)
    assert f"bad.gguf: tensor {NAME}: " in str(raised.value)
