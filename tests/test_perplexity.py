"""Perplexity and divergence: the protocol, known values, and llama-perplexity's own output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import q4hifi
from q4hifi import BadFileError, BadOptionError, NotFiniteError, open_model
from q4hifi import kl_divergence as measure_divergence
from q4hifi import perplexity as measure_perplexity
from q4hifi.cli.evaluation_tables import final_divergence, final_perplexity, running_perplexity
from q4hifi.evaluate.log_probs_file import HEAD, MAGIC, LogProbsFile
from q4hifi.evaluate.logits import codes_per_row
from stand_ins import ToyModel, toy
from synthetic import EXAMPLE, ROOT, names_in, patch

GOLDEN: dict[str, Any] = json.loads((ROOT / "tests/golden/llama_evaluation.json").read_text())
CUT = {name: GOLDEN[name] for name in ("n_ctx", "n_chunks")}
TEXT = (ROOT / "tests/golden/text.txt").read_text().removesuffix("\n")
LETTERS = "".join(chr(48 + i * 7 % 50) for i in range(100))


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with the weights of its Q4_K_M, in F16."""
    folder = tmp_path_factory.mktemp("models")
    q4hifi.quantize_file(EXAMPLE, folder / "q4_k_m.gguf", "Q4_K_M")
    q4hifi.dequantize_file(folder / "q4_k_m.gguf", folder / "coarse.gguf", "F16")
    return folder / "coarse.gguf"


# ---- the protocol --------------------------------------------------------------------------------


def test_uniform_logits_have_the_vocabulary_as_perplexity() -> None:
    found = measure_perplexity(ToyModel(np.full((50, 50), 1.5, np.float32)), LETTERS, n_ctx=8)
    assert found.ppl.value == pytest.approx(50, rel=1e-12)
    assert found.ppl.error == pytest.approx(0, abs=1e-6)


def test_the_text_is_cut_as_llama_perplexity_cuts_it() -> None:
    model = toy(bos=1)
    tokens = model.tokenizer.encode(LETTERS)
    found = measure_perplexity(model, LETTERS, n_ctx=16)
    chunks = [tokens[i : i + 16] for i in range(0, 96, 16)]
    assert len(tokens) == 101 and found.n_chunks == 6
    # BOS in place of the first token, and nothing is asked after the last but one
    assert model.read == [[1, *chunk[1:15]] for chunk in chunks]
    x = model.table.astype(np.float64)
    log_probs = x - np.log(np.exp(x).sum(1, keepdims=True))
    expected = [-log_probs[chunk[i], chunk[i + 1]] for chunk in chunks for i in range(8, 15)]
    np.testing.assert_allclose(found.nll, expected, rtol=1e-6)
    error = np.std(expected) / np.sqrt(len(expected) - 1)
    assert found.ppl.value == pytest.approx(np.exp(np.mean(expected)))
    assert found.ppl.error == pytest.approx(np.exp(np.mean(expected)) * error)
    assert found.running[1] == pytest.approx(np.exp(np.mean(expected[:14])))


def test_fewer_chunks_and_odd_contexts() -> None:
    found = measure_perplexity(toy(), LETTERS, n_ctx=9, n_chunks=3)
    assert (found.n_chunks, found.nll.size) == (3, 3 * 4)


def test_pieces_do_not_matter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = measure_perplexity(toy(), LETTERS, n_ctx=32, save_log_probs=tmp_path / "whole.kld")
    monkeypatch.setattr("q4hifi.evaluate.chunks.PIECE_LOGITS", 50 * 4)
    pieces = measure_perplexity(toy(), LETTERS, n_ctx=32, save_log_probs=tmp_path / "pieces.kld")
    np.testing.assert_array_equal(whole.nll, pieces.nll)
    assert (tmp_path / "whole.kld").read_bytes() == (tmp_path / "pieces.kld").read_bytes()
    found = measure_divergence(toy(), tmp_path / "whole.kld")
    assert found.mean_kld.value == pytest.approx(0, abs=1e-5)


def test_a_text_that_is_too_short_is_told_with_its_tokens() -> None:
    with pytest.raises(BadOptionError, match=r"notes.txt has only 11 tokens.* 512 needs at least 1024"):
        measure_perplexity(toy(bos=1), "0123456789", dataset="notes.txt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_ctx": 3}, "context of 3"),
        ({"n_chunks": 0}, "0 chunks"),
    ],
)
def test_bad_options(options: dict[str, int], message: str) -> None:
    with pytest.raises(BadOptionError, match=message):
        measure_perplexity(toy(), LETTERS, **{"n_ctx": 8, **options})


def test_tokens_serve_as_a_text_if_they_are_in_the_vocabulary() -> None:
    tokens = toy().tokenizer.encode(LETTERS)
    found = measure_perplexity(toy(), tokens, n_ctx=8)
    np.testing.assert_array_equal(found.nll, measure_perplexity(toy(), LETTERS, n_ctx=8).nll)
    for wrong in ([50] * 20, [-1] * 20, [0.5] * 20):
        with pytest.raises(BadOptionError, match="from 0 to 49"):
            measure_perplexity(toy(), wrong, n_ctx=8)
    for wrong in (b"a text", None, 5, ["a"], [tokens]):
        with pytest.raises(BadOptionError, match=f"is {type(wrong).__name__}; give a str, or a sequence"):
            measure_perplexity(toy(), wrong, n_ctx=8)


def test_logits_that_are_not_finite_are_told_with_model_and_chunk() -> None:
    model = toy()
    model.table[model.tokenizer.encode(LETTERS)[30], 0] = np.nan
    with pytest.raises(NotFiniteError, match=r"toy.gguf: chunk 2 of the text: .*not finite"):
        measure_perplexity(model, LETTERS, n_ctx=16)


def test_progress_and_results_so_far() -> None:
    calls, so_far = [], []
    found = measure_perplexity(
        toy(), LETTERS, n_ctx=25, progress=lambda *call: calls.append(call), on_chunk=so_far.append
    )
    assert calls == [(25 * i, 100, f"chunk {i + 1} of 4") for i in range(4)]
    assert [one.n_chunks for one in so_far] == [1, 2, 3, 4]
    np.testing.assert_allclose([one.ppl.value for one in so_far], found.running)


# ---- llama.cpp -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["q4hifi", "llama.cpp"])
def models(request: pytest.FixtureRequest, coarse: Path) -> tuple[Any, Any]:
    """The example and its coarse form, run by one engine or by the other."""
    exact, rough = (open_model(path, engine=request.param, threads=2) for path in (EXAMPLE, coarse))
    return exact, rough


def test_perplexity_is_llama_perplexitys(models: tuple[Any, Any]) -> None:
    for model, name in zip(models, ("F16", "coarse"), strict=True):
        found = measure_perplexity(model, TEXT, **CUT)
        np.testing.assert_allclose(found.running, GOLDEN[name]["running"], rtol=5e-4)
        assert [found.ppl.value, found.ppl.error] == pytest.approx(GOLDEN[name]["ppl"], rel=5e-4)


def test_divergence_is_llama_perplexitys(models: tuple[Any, Any], tmp_path: Path) -> None:
    exact, rough = models
    measure_perplexity(exact, TEXT, **CUT, save_log_probs=tmp_path / "base.kld")
    found = measure_divergence(rough, tmp_path / "base.kld")
    tolerances = {"Cor": 0.01, "ln(PPL": 1e-4, ")/PPL": 1e-4, "PPL": 5e-3, "KLD": 3e-5, "Δp": 0.02}
    tolerances["top"] = 0.6  # one token of 186
    printed = labelled(final_divergence(found))
    assert printed.keys() == GOLDEN["divergence"].keys()
    for label, values in GOLDEN["divergence"].items():
        part, tolerance = next(item for item in tolerances.items() if item[0] in label)
        assert printed[label] == pytest.approx(values, abs=tolerance, rel=0.03 * (part in "KLD Δp")), label


def labelled(printed: str) -> dict[str, list[float]]:
    """Label -> the numbers of llama-perplexity's closing lines."""
    pairs = (line.rsplit(": ", 1) for line in printed.splitlines() if ": " in line)
    return {
        " ".join(label.split()): [float(v) for v in values.replace("%", "").split("±")]
        for label, values in pairs
    }


def test_what_is_printed_on_the_way() -> None:
    found = measure_perplexity(toy(), LETTERS, n_ctx=16)
    assert final_perplexity(found) == f"Final estimate: PPL = {found.ppl.value:.4f} +/- {found.ppl.error:.5f}"
    assert running_perplexity(found) == f"[6]{found.ppl.value:.4f},"


# ---- base files ----------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base file: 3 chunks of 32 tokens, vocabulary of 51."""
    measure_perplexity(toy(51, bos=1), LETTERS, n_ctx=32, save_log_probs=tmp_path / "base.kld")
    return tmp_path / "base.kld"


def test_a_base_file_holds_the_text_and_the_answers(base: Path) -> None:
    file = LogProbsFile.open(base)
    tokens = toy(51, bos=1).tokenizer.encode(LETTERS)
    assert file.tokens.reshape(-1).tolist() == tokens[:96]
    assert base.stat().st_size == 20 + 4 * 96 + 2 * 3 * 15 * (52 + 4)
    found = measure_divergence(toy(51, bos=1), base)
    assert (found.n_ctx, found.n_chunks) == (32, 3)
    assert found.mean_kld.value == pytest.approx(0, abs=1e-5)
    assert found.same_top.value == 1
    assert found.ppl.value == pytest.approx(found.ppl_base.value, rel=1e-4)


def test_other_models_diverge_the_more_the_worse_they_are(base: Path) -> None:
    klds = [measure_divergence(toy(51, noise=noise, bos=1), base).mean_kld.value for noise in (0.01, 0.1, 1)]
    assert 0 < klds[0] < klds[1] / 10 < klds[2] / 100
    assert measure_divergence(toy(51, bos=1), base, n_chunks=2).n_chunks == 2


def test_an_existing_base_file_is_not_replaced_unasked(base: Path) -> None:
    before = base.read_bytes()
    with pytest.raises(BadOptionError, match="exists already"):
        measure_perplexity(toy(), LETTERS, n_ctx=32, save_log_probs=base)
    assert base.read_bytes() == before
    measure_perplexity(toy(), LETTERS, n_ctx=32, save_log_probs=base, overwrite=True)
    assert base.read_bytes() != before


def test_a_run_that_fails_leaves_no_base_file(tmp_path: Path) -> None:
    model = toy()
    model.table[:] = np.nan
    with pytest.raises(NotFiniteError):
        measure_perplexity(model, LETTERS, n_ctx=32, save_log_probs=tmp_path / "base.kld")
    assert names_in(tmp_path) == set()


def test_another_vocabulary_is_refused(base: Path) -> None:
    with pytest.raises(BadOptionError, match=r"51 tokens in its vocabulary.*has 50"):
        measure_divergence(toy(50), base)


@pytest.mark.parametrize(
    ("offset", "data", "message"),
    [
        (0, b"_logitz_", "not a file of log-prob"),
        (8, HEAD.pack(MAGIC, -1, 0, 0)[8:12], "context of -1"),
        (8, (2**31 - 1).to_bytes(4, "little"), "bytes, but"),
        (12, (0).to_bytes(4, "little"), "0 tokens in the vocabulary"),
        (12, (53).to_bytes(4, "little"), "vocabulary of 53 take"),
        (16, (0).to_bytes(4, "little"), "0 chunks"),
        (16, (2**31 - 1).to_bytes(4, "little"), "2147483647 chunks"),
        (20 + 40, (51).to_bytes(4, "little"), "outside its vocabulary"),
        (20 + 40, (2**32 - 1).to_bytes(4, "little"), "outside its vocabulary"),
        (20 + 4 * 96, b"\0\0\xc0\x7f", "chunk 1 are damaged"),
        (20 + 4 * 96 + 2 * 20 * codes_per_row(51), b"\0\0\x80\xbf", "chunk 2 are damaged"),
    ],
)
def test_damaged_base_files_are_refused(base: Path, offset: int, data: bytes, message: str) -> None:
    patch(base, offset, data)
    with pytest.raises(BadFileError, match=message):
        measure_divergence(toy(51, bos=1), base)


@pytest.mark.parametrize("size", [0, 7, 19, 20, 300, 403, 404, -1])
def test_truncated_base_files_are_refused(base: Path, size: int) -> None:
    data = base.read_bytes()
    base.write_bytes(data[:size])
    with pytest.raises(BadFileError, match="make it again"):
        measure_divergence(toy(51, bos=1), base)
    base.write_bytes(data + b"\0")
    with pytest.raises(BadFileError, match="make it again"):
        measure_divergence(toy(51, bos=1), base)


def test_a_base_file_that_is_not_there(tmp_path: Path) -> None:
    for path, fault in ((tmp_path / "none.kld", "No such file"), (tmp_path, "not a file but a folder")):
        with pytest.raises(BadFileError, match=fault):
            LogProbsFile.open(path)
