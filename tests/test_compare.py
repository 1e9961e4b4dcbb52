"""Comparisons of models: figures, the table, the plot."""

from __future__ import annotations

import builtins
import io
import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import q4hifi
from q4hifi import BadOptionError, Comparison, Estimate, NotFiniteError, UnsupportedModelError
from q4hifi import compare as compare_models
from q4hifi.cli.evaluation_tables import comparison_table, short_names
from q4hifi.cli.plot import check_plot, plot_comparison
from q4hifi.evaluate.bench import model_facts
from stand_ins import toy
from synthetic import EXAMPLE, names_in

LETTERS = "".join(chr(48 + i * 7 % 50) for i in range(200))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny-Q4_K_M.gguf"
    q4hifi.quantize_file(EXAMPLE, path, "Q4_K_M")
    return path


@pytest.fixture(scope="module")
def found() -> Comparison:
    """A reference, itself, and two that are further and further off."""
    models = [toy(noise=noise, path=EXAMPLE) for noise in (0, 0.1, 0.5)]
    return compare_models(toy(path=EXAMPLE), models, LETTERS, n_ctx=16, dataset="letters.txt")


def test_a_model_does_not_differ_from_itself(found: Comparison) -> None:
    same = found.models[0].quality
    assert same is not None
    assert (same.mean_kld.value, same.rms_delta_p.value) == (0, 0)
    assert (same.same_top.value, same.ppl_ratio.value, same.correlation) == (1, 1, pytest.approx(1))
    assert same.ppl_ratio.error == 0


def test_a_worse_model_differs_more(found: Comparison) -> None:
    near, far = (model.quality for model in found.models[1:])
    assert near is not None and far is not None
    assert 0 < near.mean_kld.value < far.mean_kld.value / 10
    assert near.same_top.value > far.same_top.value
    assert near.kld_quantile(0.5).value < near.mean_kld.value < near.kld_quantile(0.999).value


def test_figures_are_those_of_perplexity(found: Comparison) -> None:
    alone = q4hifi.perplexity(toy(noise=0.1), LETTERS, n_ctx=16)
    np.testing.assert_allclose(found.models[1].perplexity.nll, alone.nll, rtol=1e-6)
    base = q4hifi.perplexity(toy(), LETTERS, n_ctx=16)
    np.testing.assert_allclose(found.reference.perplexity.nll, base.nll, rtol=1e-6)


def test_it_equals_the_way_over_a_base_file(small: Path, tmp_path: Path) -> None:
    text = (EXAMPLE.parents[1] / "tests/golden/text.txt").read_text()
    compared = compare_models(EXAMPLE, [small], text, n_ctx=64, n_chunks=5, threads=2)
    quality = compared.models[0].quality
    q4hifi.perplexity(EXAMPLE, text, n_ctx=64, n_chunks=5, threads=2, save_log_probs=tmp_path / "base.kld")
    stored = q4hifi.kl_divergence(small, tmp_path / "base.kld", threads=2)
    assert quality is not None
    assert quality.mean_kld.value == pytest.approx(stored.mean_kld.value, rel=0.02)
    assert quality.ppl_ratio.value == pytest.approx(stored.ppl_ratio.value, rel=1e-4)
    assert quality.same_top == stored.same_top
    model = compared.models[0]
    assert model.facts.file_bytes == small.stat().st_size
    with q4hifi.open(small) as file:
        assert model.facts.n_params == sum(t.n_elements for t in file.tensors.values()) == 5_772_544
    assert model.prompt_speed.value > 0 and model.decode_speed.value > 0


def test_other_vocabularies_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"another vocabulary \(51 tokens\)"):
        compare_models(toy(50), [toy(51)], LETTERS, n_ctx=16)
    names = {"tokenizer.ggml.tokens": ["a", "b"]}
    with pytest.raises(UnsupportedModelError, match="another vocabulary"):
        compare_models(toy(), [toy(metadata=names)], LETTERS, n_ctx=16)


def test_the_model_that_fails_is_named() -> None:
    broken = toy(path=Path("broken.gguf"))
    broken.table[:] = np.nan
    with pytest.raises(NotFiniteError, match=r"broken.gguf: chunk 1"):
        compare_models(toy(), [broken], LETTERS, n_ctx=16)


def test_progress_counts_the_tokens_of_all_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("q4hifi.evaluate.chunks.PIECE_LOGITS", 50 * 4)
    calls: list[tuple[int, int, str]] = []
    models = [toy(path=EXAMPLE), toy(path=EXAMPLE)]
    compare_models(models[0], models[1:], LETTERS, n_ctx=40, progress=lambda *call: calls.append(call))
    assert [done for done, _, _ in calls] == sorted(done for done, _, _ in calls)
    assert (calls[0], calls[-1]) == ((0, 400, "chunk 1 of 5"), (400, 400, "speed of writing"))
    assert (240, 400, "chunk 4 of 5") in calls


def test_results_are_plain_json(found: Comparison) -> None:
    plain = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert plain["reference"]["quality"] is None
    assert plain["models"][1]["quality"]["mean_kld"]["value"] > 0
    assert plain["n_chunks"] == 12


# ---- the table -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "tables"), [(100, 1), (80, 2), (70, 2)])
def test_the_table_fits_in_the_terminal(found: Comparison, width: int, tables: int) -> None:
    fast = [replace(m, prompt_speed=Estimate(10582.55, 124.7)) for m in found.models]
    reference = replace(found.reference, prompt_speed=Estimate(79.34, 0.4), decode_speed=Estimate(2429, 3))
    models = tuple(replace(m, decode_speed=Estimate(1046.444, 39.8)) for m in fast)
    console = Console(width=width, file=io.StringIO())
    console.print(comparison_table(replace(found, reference=reference, models=models), width))
    printed = console.file.getvalue()
    assert max(map(len, printed.splitlines())) <= width
    assert "…" not in printed
    for head in ("size", "PPL", "KLD", "99.9 %", "top %", "Δp %", "t/s"):
        assert head in printed
    assert printed.count("tiny-qwen3-f16") == 4 * tables
    quality = found.models[1].quality
    assert quality is not None
    for text in (f"{quality.mean_kld.value:.5f}", f"±{quality.mean_kld.error:.5f}", "16.01"):
        assert text in printed


def test_names_are_as_short_as_tells_them_apart() -> None:
    assert short_names(["a/x-Q4_K_M.gguf", "b/x-Q8_0.gguf"]) == ["x-Q4_K_M", "x-Q8_0"]
    assert short_names(["r/one/x.gguf", "r/two/x.gguf"]) == ["one/x.gguf", "two/x.gguf"]
    assert short_names(["x.gguf", "x.gguf"]) == ["x", "x"]


def test_the_facts_of_a_model() -> None:
    facts = model_facts(toy(path=EXAMPLE, metadata={"general.architecture": "qwen3"}))
    assert facts.description == "qwen3 ?B F16"
    assert facts.file_bytes == EXAMPLE.stat().st_size


# ---- the plot ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_plot_is_written(found: Comparison, tmp_path: Path, ending: str, magic: bytes) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"plot.{ending}"
    plot_comparison(found, path)
    assert path.read_bytes().startswith(magic)
    assert names_in(tmp_path) == {path.name}
    with pytest.raises(BadOptionError, match="exists already"):
        plot_comparison(found, path)
    plot_comparison(found, path, overwrite=True)


def test_a_plot_names_every_model_and_the_axes(found: Comparison, tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot_comparison(found, tmp_path / "plot.svg")
    root = ET.parse(tmp_path / "plot.svg").getroot()
    words = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert words.count("tiny-qwen3-f16") == len(found.models)
    assert "file size, MiB" in words and any("KL divergence" in word for word in words)


def test_without_matplotlib_it_is_told_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = builtins.__import__

    def missing(name: str, *arguments: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(BadOptionError, match=r"pip install matplotlib"):
        check_plot(tmp_path / "plot.png")


def test_bad_plot_names_are_told_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(BadOptionError, match="must end in"):
        check_plot(tmp_path / "plot.doc")
