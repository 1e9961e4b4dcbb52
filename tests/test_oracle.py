"""The oracle itself: it must agree with the ``gguf`` package wherever both know a format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

import oracle

MODEL = Path(__file__).parent.parent / "examples" / "tiny-qwen3-f16.gguf"

BOTH_QUANTIZE = [Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0]
K_QUANTS = [Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K]
TABLES = [Type.IQ4_NL, Type.IQ4_XS]
WEIGHTED = [Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, *K_QUANTS, *TABLES]

RNG = np.random.default_rng(11)
ROWS = RNG.standard_normal((6, 512), dtype=np.float32)
IMPORTANCE = RNG.exponential(size=512).astype(np.float32)


@pytest.mark.parametrize("kind", BOTH_QUANTIZE, ids=lambda kind: kind.name)
def test_quantizes_as_gguf_does(kind: Type) -> None:
    expected = quantize(ROWS, kind).view(np.uint8)
    assert np.array_equal(oracle.ggml_quantize(kind, ROWS), expected)


@pytest.mark.parametrize("kind", BOTH_QUANTIZE + K_QUANTS + TABLES, ids=lambda kind: kind.name)
def test_dequantizes_as_gguf_does(kind: Type) -> None:
    data = oracle.ggml_quantize(kind, ROWS)
    assert np.array_equal(oracle.ggml_dequantize(kind, data, 512), dequantize(data, kind))


@pytest.mark.parametrize("kind", WEIGHTED, ids=lambda kind: kind.name)
def test_importance_lowers_the_weighted_error(kind: Type) -> None:
    def error(importance: np.ndarray | None) -> float:
        restored = oracle.ggml_dequantize(kind, oracle.ggml_quantize(kind, ROWS, importance), 512)
        return float((IMPORTANCE * (restored - ROWS) ** 2).sum())

    assert error(IMPORTANCE) < error(None)


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.BF16, Type.Q8_0], ids=lambda kind: kind.name)
def test_importance_changes_nothing_where_ggml_ignores_it(kind: Type) -> None:
    assert np.array_equal(oracle.ggml_quantize(kind, ROWS, IMPORTANCE), oracle.ggml_quantize(kind, ROWS))


def test_the_engine_generates_the_same_text_each_time(capfd: pytest.CaptureFixture[str]) -> None:
    text = oracle.llama_generate(MODEL, "Once upon a time", 8)
    assert text.strip() and text.isprintable()
    assert oracle.llama_generate(MODEL, "Once upon a time", 8, threads=1) == text
    assert capfd.readouterr() == ("", "")


def test_the_engine_says_why_it_refuses(tmp_path: Path) -> None:
    assert oracle.llama_loads(MODEL) and oracle.llama_load_error(MODEL) is None
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(MODEL.read_bytes()[: -(2**20)])
    assert not oracle.llama_loads(cut)
    assert "not within the file bounds" in str(oracle.llama_load_error(cut))
    with pytest.raises(RuntimeError, match=r"absent\.gguf does not load: .*No such file"):
        oracle.llama_generate(tmp_path / "absent.gguf", "Once", 1)
