"""Q4_HIFI models brought into other forms, and quantized models back to 16 bits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFValueType

import oracle
import q4hifi
from q4hifi.errors import BadOptionError, NotFiniteError, UnsupportedModelError
from q4hifi.formats.types import TYPES
from q4hifi.gguf_io.reader import GgufFile
from q4hifi.pipeline.export import EXPORTS
from synthetic import (
    EXAMPLE,
    names_in,
    patch,
    random_weights,
    read_tensors,
    write_model,
    write_small_model,
    write_stored,
)

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


OLD = {
    "token_embd.weight": ("Q8_0", (16, 256)),
    "blk.0.attn_q.weight": ("Q5_0", (8, 64)),
    "blk.0.ffn_gate_inp.weight": ("Q8_0", (4, 256)),  # a router
    "position_embd.weight": ("Q4_K", (4, 256)),
    "blk.0.ssm_conv1d.weight": ("Q4_0", (4, 32)),
    "img_in.proj": ("Q6_K", (4, 256)),  # not a name in "weight"
    "v.patch_embd.bias": ("Q8_0", (32,)),
    "blk.0.attn_q.weight.lora_a": ("IQ4_NL", (2, 32)),
    "blk.0.ffn_exps": ("MXFP4", (2, 3, 4, 32)),
    "norm": ("TQ2_0", (256,)),
}
FLOATS = {
    "output.weight": ("BF16", (4, 64)),
    "blk.0.attn_norm.weight": ("F16", (64,)),
    "position_ids": ("I32", (64,)),
    "table.weight": ("I8", (4, 64)),
    "exact.weight": ("F64", (4, 4)),
    "rope_freqs.weight": ("F32", (32,)),
}


@pytest.mark.parametrize("kind", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("adapter", [False, True], ids=["model", "adapter"])
def test_no_tensor_of_blocks_is_left(kind: str, adapter: bool, tmp_path: Path) -> None:
    """Whatever its name, whether or not a recipe would change it."""
    pairs = [("general.type", "adapter" if adapter else "model", GGUFValueType.STRING)]
    path = write_stored(tmp_path / "in.gguf", {**OLD, **FLOATS}, pairs=pairs)
    q4hifi.dequantize_file(path, tmp_path / "out.gguf", kind)
    before, after = read_tensors(path), read_tensors(tmp_path / "out.gguf")
    assert set(after) == set(before)
    for name, (_, shape) in OLD.items():
        assert after[name].type_name == (kind if len(shape) > 1 else "F32"), name
        assert after[name].shape == shape[::-1]
        assert np.array_equal(after[name].weights(), before[name].weights())
    for name in FLOATS:
        assert name == "output.weight" or after[name] == before[name]
    assert after["output.weight"].type_name == kind
    assert q4hifi.verify_file(tmp_path / "out.gguf") == []


def test_weights_too_large_for_f16_are_refused_with_the_tensor(tmp_path: Path) -> None:
    data = {"w.weight": bytes([200, *([0x77] * 16)]) * 2}  # 2^72 and more
    path = write_stored(tmp_path / "in.gguf", {"w.weight": ("MXFP4", (2, 32))}, data=data)
    with pytest.raises(NotFiniteError, match=r"w\.weight: its weights are too large for F16"):
        q4hifi.dequantize_file(path, tmp_path / "out.gguf")
    q4hifi.dequantize_file(path, tmp_path / "out.gguf", "BF16")


@pytest.mark.parametrize("n_bytes", [46, 47, 63])
def test_names_too_long_for_companions_stay_in_the_fork_layout(n_bytes: int, tmp_path: Path) -> None:
    name = "blk.0.attn_v.weight".rjust(n_bytes, "x")
    pairs = [("llama.attention.head_count", 4, GGUFValueType.UINT32)]
    source = write_model(tmp_path / "in.gguf", {name: random_weights(8, 256)}, pairs=pairs)
    q4hifi.quantize_file(source, tmp_path / "fork.gguf", layout="fork")
    if n_bytes == 46:
        q4hifi.export_file(tmp_path / "fork.gguf", tmp_path / "split.gguf", layout="split")
        assert q4hifi.verify_file(tmp_path / "split.gguf") == []
        return
    with pytest.raises(
        UnsupportedModelError, match=r"more than 63 bytes in the split layout; export .* `as_=...`"
    ):
        q4hifi.export_file(tmp_path / "fork.gguf", tmp_path / "split.gguf", layout="split")
    q4hifi.export_file(tmp_path / "fork.gguf", tmp_path / "stock.gguf", as_="q8_0")
    report = q4hifi.quantize_file(source, tmp_path / "split.gguf")
    assert [t.type.name for t in report.plan.tensors] == ["Q4_K"]
    assert name in report.plan.warnings[0] and name in json.dumps(report.as_dict()["plan"]["warnings"])
    assert q4hifi.verify_file(tmp_path / "split.gguf") == []
    measured = q4hifi.quantize_file(source, tmp_path / "m.gguf", target_bpw=9.0)
    assert measured.plan.measured and "Q4_HIFI" not in measured.plan.by_type
    assert name in measured.plan.warnings[0]
    stock = q4hifi.plan_file(source, target_bpw=9.0, stock=True)
    assert name not in " ".join(stock.warnings) and stock.fallbacks == ()
