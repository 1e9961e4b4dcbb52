"""Q4_HIFI models brought into other forms, and quantized models back to 16 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import oracle
import q4hifi
from q4hifi.errors import BadOptionError, UnsupportedModelError
from q4hifi.export import EXPORTS
from q4hifi.gguf_file import GgufFile
from q4hifi.types import TYPES
from synthetic import EXAMPLE, names_in, patch, random_weights, read_tensors, write_model, write_small_model

HIFI = "blk.0.attn_v.weight", "blk.0.ffn_down.weight", "blk.1.attn_v.weight"
"""The tensors of the small model that its recipe makes Q4_HIFI."""

PROMPT, TEXT = "To install the package, run", " the package.\nThe package is a package that is a"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("small") / "in.gguf")


@pytest.fixture(scope="module", params=["split", "fork"])
def hifi(small: Path, request: pytest.FixtureRequest) -> Path:
    """The small model as Q4_HIFI in either layout, with another number of outliers than is usual."""
    path = small.with_name(f"{request.param}.gguf")
    q4hifi.quantize_file(small, path, layout=request.param, outliers=5, ffn_down_coverage=0.5)
    return path


# ---- for stock llama.cpp -------------------------------------------------------------------------


@pytest.mark.parametrize("form", [*EXPORTS, "Q6_K"])
def test_q4_hifi_tensors_take_the_type_and_the_others_stay(form: str, hifi: Path, tmp_path: Path) -> None:
    dst = tmp_path / "out.gguf"
    report = q4hifi.export_file(hifi, dst, as_=form)
    assert q4hifi.verify_file(dst) == []
    assert report.file_bytes == dst.stat().st_size
    kind = EXPORTS[form.lower()]
    before, after = read_tensors(hifi), read_tensors(dst)
    with q4hifi.open(hifi) as model:
        assert list(after) == list(model)
        for name, tensor in after.items():
            if name not in HIFI:
                assert tensor == before[name]
                continue
            assert (tensor.type_name, tensor.shape) == (kind.name, before[name].shape)
            if form != "drop":
                weights = model[name].dequantize()
                assert tensor.data == oracle.ggml_quantize(kind.id, weights).tobytes()


def test_dropping_keeps_the_bytes_of_the_bases(hifi: Path, tmp_path: Path) -> None:
    q4hifi.export_file(hifi, tmp_path / "out.gguf", as_="drop")
    before, after = read_tensors(hifi), read_tensors(tmp_path / "out.gguf")
    for name in HIFI:
        if before[name].type_name == "Q4_K":
            assert after[name].data == before[name].data
        else:
            blocks = np.frombuffer(before[name].data, np.uint8).reshape(-1, 244)
            assert after[name].data == blocks[:, :144].tobytes()


@pytest.mark.parametrize("form", EXPORTS)
def test_nothing_of_q4_hifi_is_left_in_the_metadata(form: str, hifi: Path, tmp_path: Path) -> None:
    q4hifi.export_file(hifi, tmp_path / "out.gguf", as_=form)
    with GgufFile.open(hifi) as source, GgufFile.open(tmp_path / "out.gguf") as written:
        assert written.metadata["general.file_type"] == 14
        kept = [key for key in source.metadata if not key.startswith("q4_hifi.")]
        assert sorted(written.metadata) == sorted(kept)
        for key in set(kept) - {"general.file_type"}:
            assert written.metadata.raw(key) == source.metadata.raw(key)


@pytest.mark.parametrize("form", EXPORTS)
def test_the_stock_engine_runs_the_export(form: str, tmp_path: Path) -> None:
    q4hifi.quantize_file(EXAMPLE, tmp_path / "hifi.gguf")
    q4hifi.export_file(tmp_path / "hifi.gguf", tmp_path / "out.gguf", as_=form)
    text = oracle.llama_generate(tmp_path / "out.gguf", PROMPT, 12, threads=1)
    assert text == TEXT or (form == "drop" and text)  # what is dropped may change the text


def test_a_model_without_outliers_has_nothing_to_export(small: Path, tmp_path: Path) -> None:
    q4hifi.quantize_file(small, tmp_path / "none.gguf", outliers=0)
    with pytest.raises(
        UnsupportedModelError, match=r"none\.gguf: has no Q4_HIFI tensors; it loads in llama.cpp as it is"
    ):
        q4hifi.export_file(tmp_path / "none.gguf", tmp_path / "out.gguf", as_="drop")


# ---- layouts -------------------------------------------------------------------------------------


def test_the_fork_layout(small: Path, tmp_path: Path) -> None:
    source, fork = tmp_path / "split.gguf", tmp_path / "fork.gguf"
    q4hifi.quantize_file(small, source, outliers=5)
    report = q4hifi.export_file(source, fork, layout="fork")
    assert q4hifi.verify_file(fork) == []
    before, after = read_tensors(source), read_tensors(fork)
    with q4hifi.open(source) as split, q4hifi.open(fork) as model:
        assert model.layout == "fork"
        assert model.metadata["general.file_type"] == 42
        assert model.metadata["q4_hifi.layout"] == "fork"
        assert model.metadata["q4_hifi.outliers"] == 5
        assert list(after) == list(split) == list(model)
        for name, tensor in after.items():
            if name not in HIFI:
                assert tensor == before[name]
                continue
            assert (tensor.type_id, len(tensor.data)) == (41, 244 * np.prod(tensor.shape) // 256)
            blocks = np.frombuffer(tensor.data, np.uint8).reshape(-1, 244)
            assert (blocks[:, 240] == 5).all()
            index = np.frombuffer(before[name + ".outlier_index"].data, np.uint8).reshape(-1, 5)
            assert np.array_equal(blocks[:, 144:149], index)
            # the value is stored, not what is to be added: it is rounded to f16 once more
            expected, got = split[name].dequantize(), model[name].dequantize()
            changed = expected != got
            assert changed.sum() <= index.size
            assert np.array_equal(got[changed], expected[changed].astype(np.float16).astype(np.float32))
    assert report.file_bytes == fork.stat().st_size


def test_from_the_fork_layout_and_back(small: Path, tmp_path: Path) -> None:
    fork, split, again = (tmp_path / f"{name}.gguf" for name in ("fork", "split", "again"))
    q4hifi.quantize_file(small, fork, layout="fork", outliers=7)
    q4hifi.export_file(fork, split, layout="split")
    q4hifi.export_file(split, again, layout="fork")
    assert q4hifi.verify_file(split) == []
    with q4hifi.open(fork) as a, q4hifi.open(split) as b, q4hifi.open(again) as c:
        assert (b.layout, b.metadata["general.file_type"], b.metadata["q4_hifi.layout"]) == (
            "split",
            14,
            "split",
        )
        for name in HIFI:
            assert b[name].outliers == 7
            # a residual is rounded to f16: half a unit of what is added to the base
            largest = np.abs(a[name].dequantize()).max()
            assert np.abs(a[name].dequantize() - b[name].dequantize()).max() <= largest * 2**-10
            assert np.array_equal(
                b[name].data, a[name].data.reshape(-1, 244)[:, :144].reshape(b[name].data.shape)
            )
            assert c[name].data.shape == a[name].data.shape
    stored = read_tensors(fork)
    assert {k: v for k, v in read_tensors(again).items() if k not in HIFI} == {
        k: v for k, v in stored.items() if k not in HIFI
    }


def test_blocks_with_fewer_outliers_are_filled_up(small: Path, tmp_path: Path) -> None:
    """The branch may write fewer in a block than its tensor has; the split layout needs all."""
    fork, split = tmp_path / "fork.gguf", tmp_path / "split.gguf"
    q4hifi.quantize_file(small, fork, layout="fork", outliers=3)
    with GgufFile.open(fork) as model:
        block = model.tensors[HIFI[0]].offset + 244 * 4
    patch(fork, block + 144, bytes([9]).ljust(32, b"\0"))
    patch(fork, block + 240, b"\1")
    assert q4hifi.verify_file(fork) == []
    q4hifi.export_file(fork, split, layout="split")
    with q4hifi.open(fork) as a, q4hifi.open(split) as b:
        index, residual = b[HIFI[0]].outlier_index, b[HIFI[0]].outlier_residual
        assert index is not None and residual is not None
        assert index[4, 0].tolist() == [0, 1, 9]
        assert residual[4, 0, :2].tolist() == [0, 0]
        assert np.allclose(a[HIFI[0]].dequantize(), b[HIFI[0]].dequantize(), atol=2**-12)


def test_a_fork_tensor_without_outliers_becomes_plain_q4_k(small: Path, tmp_path: Path) -> None:
    fork, split = tmp_path / "fork.gguf", tmp_path / "split.gguf"
    q4hifi.quantize_file(small, fork, layout="fork")
    with GgufFile.open(fork) as model:
        tensor = model.tensors[HIFI[0]]
    for block in range(tensor.nbytes // 244):
        patch(fork, tensor.offset + 244 * block + 144, bytes(100))
    q4hifi.export_file(fork, split, layout="split")
    assert q4hifi.verify_file(split) == []
    with q4hifi.open(fork) as a, q4hifi.open(split) as b:
        assert b[HIFI[0]].type.name == "Q4_K"
        assert np.array_equal(a[HIFI[0]].dequantize(), b[HIFI[0]].dequantize())


@pytest.mark.parametrize("layout", ["split", "fork"])
def test_exporting_to_the_same_layout_changes_nothing(layout: str, small: Path, tmp_path: Path) -> None:
    q4hifi.quantize_file(small, tmp_path / "in.gguf", layout=layout)
    q4hifi.export_file(tmp_path / "in.gguf", tmp_path / "out.gguf", layout=layout)
    assert read_tensors(tmp_path / "in.gguf") == read_tensors(tmp_path / "out.gguf")
    with q4hifi.open(tmp_path / "in.gguf") as a, q4hifi.open(tmp_path / "out.gguf") as b:
        assert dict(a.metadata) == dict(b.metadata)


def test_experts_change_their_layout(tmp_path: Path) -> None:
    name = "blk.0.ffn_down_exps.weight"
    source = write_model(tmp_path / "in.gguf", {name: random_weights(3, 4, 512)})
    q4hifi.quantize_file(source, tmp_path / "split.gguf", ffn_down_coverage=1.0)
    q4hifi.export_file(tmp_path / "split.gguf", tmp_path / "fork.gguf", layout="fork")
    with q4hifi.open(tmp_path / "split.gguf") as split, q4hifi.open(tmp_path / "fork.gguf") as fork:
        assert split[name].shape == fork[name].shape == (3, 4, 512)
        assert np.allclose(split[name].dequantize(), fork[name].dequantize(), atol=2**-12)


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "choose one of `as_` and `layout`"),
        ({"as_": "drop", "layout": "fork"}, "choose one of `as_` and `layout`"),
        ({"as_": "q3_k"}, "cannot export as 'q3_k'; choose one of drop, q5_k"),
        ({"layout": "spoon"}, "unknown layout 'spoon'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, str], match: str, hifi: Path, tmp_path: Path) -> None:
    with pytest.raises(BadOptionError, match=match):
        q4hifi.export_file(hifi, tmp_path / "out.gguf", **options)  # type: ignore[arg-type]
    assert names_in(tmp_path) == set()


def test_a_model_without_q4_hifi_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedModelError,
        match=r"tiny-qwen3-f16\.gguf: has no Q4_HIFI tensors; it loads in llama.cpp as it is",
    ):
        q4hifi.export_file(EXAMPLE, tmp_path / "out.gguf", as_="drop")


def test_the_destination_is_guarded(hifi: Path, tmp_path: Path) -> None:
    before = hifi.read_bytes()
    with pytest.raises(BadOptionError, match="is the source"):
        q4hifi.export_file(hifi, hifi, as_="drop", overwrite=True)
    (tmp_path / "out.gguf").write_bytes(b"precious")
    with pytest.raises(BadOptionError, match="exists already"):
        q4hifi.export_file(hifi, tmp_path / "out.gguf", as_="drop")
    assert (hifi.read_bytes(), (tmp_path / "out.gguf").read_bytes()) == (before, b"precious")
    q4hifi.export_file(hifi, tmp_path / "out.gguf", as_="drop", overwrite=True, threads=1)


# ---- back to floats ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["F16", "bf16", "F32"])
def test_dequantized_models_hold_what_the_blocks_say(kind: str, hifi: Path, tmp_path: Path) -> None:
    report = q4hifi.dequantize_file(hifi, tmp_path / "out.gguf", kind)
    target = TYPES[kind.upper()]
    with q4hifi.open(hifi) as model:
        after = read_tensors(tmp_path / "out.gguf")
        assert list(after) == list(model)
        for name, tensor in after.items():
            stored = target if len(tensor.shape) > 1 else TYPES["F32"]
            weights = np.atleast_2d(model[name].dequantize())
            assert (tensor.type_name, tensor.shape[0]) == (stored.name, weights.shape[1])
            assert tensor.data == oracle.ggml_quantize(stored.id, weights).tobytes()
    with q4hifi.open(tmp_path / "out.gguf") as model:
        assert model.layout is None
        assert model.metadata["general.file_type"] == {"F32": 0, "F16": 1, "BF16": 32}[target.name]
        assert not [key for key in model.metadata if key.startswith("q4_hifi.")]
    assert report.file_bytes == (tmp_path / "out.gguf").stat().st_size


def test_any_quantized_model_can_be_dequantized(small: Path, tmp_path: Path) -> None:
    q4hifi.quantize_file(small, tmp_path / "in.gguf", "Q5_K_M")
    q4hifi.dequantize_file(tmp_path / "in.gguf", tmp_path / "out.gguf", "F32")
    before = read_tensors(tmp_path / "in.gguf")
    for name, tensor in read_tensors(tmp_path / "out.gguf").items():
        assert tensor.type_name == "F32"
        assert np.array_equal(tensor.weights(), before[name].weights())


def test_dequantizing_to_blocks_is_refused(hifi: Path, tmp_path: Path) -> None:
    with pytest.raises(BadOptionError, match="cannot dequantize to 'Q8_0'; choose one of F32, F16, BF16"):
        q4hifi.dequantize_file(hifi, tmp_path / "out.gguf", "Q8_0")
