"""Tensors of no elements and of no dimensions: read, listed, carried and checked by everything."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFValueType

import oracle
import q4hifi
from command import Run
from q4hifi.formats.layout import StoredTensor
from q4hifi.formats.types import F32, TYPES
from q4hifi.gguf_io.header import header_bytes
from q4hifi.gguf_io.reader import GgufFile, Metadata
from synthetic import read_tensors, write_stored

NUMBER, NONE, COLUMNS, BLOCKS, LAST = "blk.0.scale", "blk.0.flag", "blk.0.flag2", "blk.0.q.weight", "z.end"
PAIRS = [
    ("general.architecture", "llama", GGUFValueType.STRING),
    ("llama.block_count", 1, GGUFValueType.UINT32),
]
MATRIX = "blk.0.attn_v.weight"
STORED = {
    MATRIX: ("F16", (8, 256)),
    NUMBER: ("F32", ()),
    NONE: ("F32", (0,)),
    COLUMNS: ("F16", (0, 256)),
    BLOCKS: ("Q8_0", (4, 0, 64)),
    "blk.0.attn_q.weight": ("F16", (8, 0)),
    "v.weight": ("F32", (32,)),
    LAST: ("F32", (0, 2)),
}
SHAPES = {NUMBER: (), NONE: (0,), COLUMNS: (0, 256), BLOCKS: (4, 0, 64), LAST: (0, 2)}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("empty") / "in.gguf"
    weights = np.random.default_rng(0).standard_normal((8, 256)).astype(np.float16)
    data = {MATRIX: weights.tobytes(), NUMBER: np.float32(0.25).tobytes()}
    return write_stored(path, STORED, pairs=PAIRS, data=data)


class _Params(ctypes.Structure):
    """``struct gguf_init_params``."""

    _fields_ = [("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p)]


def sizes_by_ggml(path: Path) -> list[int]:
    """Return the bytes of each tensor as the reference reads the file, [] where it refuses it."""
    lib = oracle.library()
    lib.gguf_init_from_file.restype = ctypes.c_void_p
    lib.gguf_init_from_file.argtypes = [ctypes.c_char_p, _Params]
    file = lib.gguf_init_from_file(str(path).encode(), _Params(True, None))
    if not file:
        return []
    lib.gguf_get_tensor_size.restype = ctypes.c_size_t
    lib.gguf_get_tensor_size.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    lib.gguf_get_n_tensors.restype = ctypes.c_int64
    lib.gguf_get_n_tensors.argtypes = [ctypes.c_void_p]
    sizes = [lib.gguf_get_tensor_size(file, i) for i in range(lib.gguf_get_n_tensors(file))]
    lib.gguf_free.argtypes = [ctypes.c_void_p]
    lib.gguf_free(file)
    return sizes


def test_sizes_are_the_references(source: Path) -> None:
    with GgufFile.open(source) as model:
        assert [t.nbytes for t in model.tensors.values()] == sizes_by_ggml(source)
        number, none = model.tensors[NUMBER], model.tensors[COLUMNS]
        assert (number.row_length, number.n_rows, number.n_elements, number.nbytes) == (1, 1, 1, 4)
        assert (none.row_length, none.n_rows, none.n_elements, none.nbytes) == (256, 0, 0, 0)
        assert model.read(none).shape == (0, 512)


def test_they_are_arrays_of_their_shapes(source: Path) -> None:
    with q4hifi.open(source) as model:
        for name, shape in SHAPES.items():
            tensor = model[name]
            assert tensor.shape == shape
            assert tensor.dequantize().shape == shape
            assert tensor.dequantize().dtype == np.float32
        assert model[NUMBER].dequantize() == np.float32(0.25)
        assert model[NUMBER].nbytes == 4


def test_an_empty_tensor_of_many_rows_takes_no_time(tmp_path: Path) -> None:
    shape = (1 << 58, 0)
    path = write_stored(tmp_path / "in.gguf", {"w.weight": ("F32", shape)}, pairs=PAIRS)
    assert q4hifi.verify_file(path) == []
    with q4hifi.open(path) as model:
        assert model["w.weight"].dequantize().shape == shape
    q4hifi.quantize_file(path, tmp_path / "out.gguf", "Q8_0")
    assert read_tensors(tmp_path / "out.gguf") == read_tensors(path)


@pytest.mark.parametrize("recipe", ["COPY", "F32", "F16", "BF16", "Q8_0", "Q4_K_M", "Q4_HIFI", "IQ4_XS"])
@pytest.mark.parametrize("layout", ["split", "fork"])
def test_every_recipe_carries_them(recipe: str, layout: str, source: Path, tmp_path: Path) -> None:
    plan = q4hifi.plan_file(source, recipe, layout=layout)
    q4hifi.quantize_file(source, tmp_path / "out.gguf", recipe, layout=layout)
    before, after = read_tensors(source), read_tensors(tmp_path / "out.gguf")
    for name in STORED:
        if name != MATRIX:
            assert after[name] == before[name]
    assert q4hifi.verify_file(tmp_path / "out.gguf") == []
    assert plan.file_bytes == (tmp_path / "out.gguf").stat().st_size
    if (recipe, layout) != ("Q4_HIFI", "fork"):  # which the reference does not read
        assert sizes_by_ggml(tmp_path / "out.gguf") == [len(t.data) for t in after.values()]


def test_dequantizing_leaves_no_blocks_even_of_nothing(source: Path, tmp_path: Path) -> None:
    q4hifi.dequantize_file(source, tmp_path / "out.gguf")
    after = read_tensors(tmp_path / "out.gguf")
    assert (after[BLOCKS].type_name, after[BLOCKS].shape) == ("F16", (64, 0, 4))
    assert after[NUMBER] == read_tensors(source)[NUMBER]
    assert q4hifi.verify_file(tmp_path / "out.gguf") == []


@pytest.mark.parametrize("kind", ["drop", "q8_0", "f16", "fork"])
def test_exports_carry_them(kind: str, source: Path, tmp_path: Path) -> None:
    hifi, out = tmp_path / "hifi.gguf", tmp_path / "out.gguf"
    q4hifi.quantize_file(source, hifi)
    q4hifi.export_file(hifi, out, **({"layout": "fork"} if kind == "fork" else {"as_": kind}))
    assert q4hifi.verify_file(out) == []
    before, after = read_tensors(hifi), read_tensors(out)
    assert all(after[name] == before[name] for name in (*SHAPES, "v.weight"))


def test_they_are_split_and_merged(source: Path, tmp_path: Path) -> None:
    report = q4hifi.quantize_file(source, tmp_path / "out.gguf", "COPY", split_max_size=128)
    assert len(report.destination) > 1
    assert all(q4hifi.verify_file(path) == [] for path in report.destination)
    kept = q4hifi.quantize_file(report.destination[0], tmp_path / "kept.gguf", "COPY", keep_split=True)
    assert len(kept.destination) == len(report.destination)
    q4hifi.quantize_file(kept.destination[0], tmp_path / "merged.gguf", "COPY")
    before, after = read_tensors(source), read_tensors(tmp_path / "merged.gguf")
    assert {name: after[name] for name in before} == before


def test_inspect_lists_them(source: Path, run: Run) -> None:
    outcome = run("inspect", source, "--tensors")
    assert (outcome.status, outcome.err) == (0, "")
    assert "single number" in outcome.out and "64 x 0 x 4" in outcome.out
    listed = json.loads(run("inspect", source, "--json").out)["tensors"]
    assert {t["name"]: (t["shape"], t["bytes"]) for t in listed if t["name"] in SHAPES} == {
        NUMBER: ([], 4),
        NONE: ([0], 0),
        COLUMNS: ([256, 0], 0),
        BLOCKS: ([64, 0, 4], 0),
        LAST: ([2, 0], 0),
    }
    assert run("plan", source, "Q8_0", "--tensors").status == 0


def test_a_file_of_nothing_but_empty_tensors(tmp_path: Path) -> None:
    path = tmp_path / "in.gguf"
    tensors = [StoredTensor("a", (0,), F32), StoredTensor("b", (256, 0), TYPES["Q4_K"])]
    for alignment in (1, 32):  # the padding before the data, of which there is none, may be left out
        path.write_bytes(header_bytes(Metadata(), tensors, alignment))
        assert q4hifi.verify_file(path) == []
        q4hifi.quantize_file(path, tmp_path / "out.gguf", "Q8_0", overwrite=True)
        assert read_tensors(tmp_path / "out.gguf") == read_tensors(path)


def test_empty_q4_hifi_tensors(tmp_path: Path) -> None:
    """Of both layouts: a base and companions without blocks."""
    split = {
        "w": ("Q4_K", (0, 256)),
        "w.outlier_index": ("I8", (0, 1, 8)),
        "w.outlier_residual": ("F16", (0, 1, 8)),
    }
    path = write_stored(tmp_path / "split.gguf", split, pairs=PAIRS)
    assert q4hifi.verify_file(path) == []
    with q4hifi.open(path) as model:
        assert (model["w"].type.name, model["w"].dequantize().shape) == ("Q4_HIFI", (0, 256))
    q4hifi.export_file(path, tmp_path / "out.gguf", as_="q8_0")
    assert read_tensors(tmp_path / "out.gguf")["w"].type_name == "Q8_0"


def test_shapes_count_as_ggml_counts() -> None:
    assert StoredTensor("w", (), F32).nbytes == 4
    assert StoredTensor("w", (64, 0), TYPES["Q8_0"]).nbytes == 0
    assert StoredTensor("w", (0, 1 << 40), TYPES["Q8_0"]).nbytes == 0
