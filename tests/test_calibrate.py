"""Sensitivities: a matrix replaced, a text taken up in the middle, and what is measured with both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import q4hifi
from command import Run
from q4hifi import BadFileError, BadOptionError, Estimate, Model, NotFiniteError, calibrate
from q4hifi.allocation.calibration_file import Calibration, Setting
from q4hifi.allocation.calibration_path import calibration_file
from q4hifi.evaluate.chunks import read_text
from q4hifi.evaluate.logits import divergence
from synthetic import EXAMPLE, ROOT, names_in, random_sums, random_weights, write_imatrix, write_runnable

TEXT = (ROOT / "tests/golden/text.txt").read_text()
TOKENS = np.random.default_rng(5).integers(0, 320, 150).astype(np.uint32)
CUT: Any = {"n_ctx": 32, "n_chunks": 2}
N_MATRICES = 57
"""Of the example model: seven in each of eight layers, and the embeddings."""


def quantized(model: Model, name: str, kind: str = "Q4_K") -> q4hifi.QuantizedTensor:
    with q4hifi.open(model.path) as file:
        return q4hifi.quantize(file[name].dequantize(), kind)


# ---- the runtime ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """A model with windows and all norms whose embeddings serve as output, and one without."""
    folder = tmp_path_factory.mktemp("models")
    norms = ("attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm")
    tied = write_runnable(folder / "tied.gguf", "gemma3", tied=True, norms=norms)
    apart = write_runnable(folder / "apart.gguf", "qwen2", biases=("attn_q", "ffn_down"))
    return {"tied": Model(tied), "apart": Model(apart)}


PARTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
NAMES = ("token_embd.weight", "output.weight", *(f"blk.1.{part}.weight" for part in PARTS))


@pytest.mark.parametrize(
    ("which", "name"),
    [
        (which, name)
        for which in ("tied", "apart")
        for name in NAMES
        if (which, name) != ("tied", "output.weight")
    ],
)
def test_a_replaced_matrix_is_as_one_in_the_file(
    which: str, name: str, models: dict[str, Model], tmp_path: Path
) -> None:
    model = models[which]
    path = tmp_path / "model.gguf"
    # not the recipe's own type for any matrix, so that only this one changes
    types = [(f"^{name.replace('.', '[.]')}$", "q4_k"), ("", "f32")]
    q4hifi.quantize_file(model.path, path, "Q4_0", tensor_types=types)
    expected = Model(path).logits(TOKENS)
    replaced = model.replaced(name, quantized(model, name))
    assert np.array_equal(replaced.logits(TOKENS), expected)
    assert not np.array_equal(model.logits(TOKENS), expected)
    first = model.first_layer(name)
    assert (first is None) == (name == "token_embd.weight")
    if first is not None:
        assert np.array_equal(replaced.resume(model.trace(TOKENS), first), expected)


@pytest.mark.parametrize("which", ["tied", "apart"])
def test_a_text_may_be_taken_up_at_any_layer(which: str, models: dict[str, Model]) -> None:
    model = models[which]
    whole = model.logits(TOKENS)
    trace = model.trace(TOKENS)
    for layer in range(model.n_layer + 1):
        assert np.array_equal(model.resume(trace, layer), whole)


def test_q4_hifi_may_take_the_place(models: dict[str, Model]) -> None:
    model, name = models["apart"], "blk.2.ffn_down.weight"
    with q4hifi.open(model.path) as file:
        weights = file[name].dequantize()
    hifi = q4hifi.quantize(weights, "Q4_HIFI", outliers=8)
    decoded = q4hifi.quantize(hifi.dequantize(), "F32")
    reference, kld = model.replaced(name, decoded).logits(TOKENS), []
    for tensor in (hifi, q4hifi.quantize(weights, "Q4_0")):
        kld.append(divergence(model.replaced(name, tensor).logits(TOKENS), reference, TOKENS).kld.mean())
    assert kld[0] < kld[1] / 10  # what activations in eight bits leave


def test_what_cannot_be_replaced_or_taken_up(models: dict[str, Model]) -> None:
    model, other = models["apart"], models["tied"]
    down = quantized(model, "blk.0.ffn_down.weight")
    for name, tensor, message in (
        ("blk.9.ffn_down.weight", down, "there is no tensor blk.9"),
        ("blk.0.ffn_up.weight", down, "blk.0.ffn_up.weight cannot be replaced: it has 256 rows of 512"),
        ("output_norm.weight", q4hifi.quantize(random_weights(1, 256), "F32"), "no place"),
    ):
        with pytest.raises(BadOptionError, match=message):
            model.replaced(name, tensor)
    with pytest.raises(BadOptionError, match="513 tokens to follow, at most 512"):
        model.trace([1] * 513)
    with pytest.raises(BadOptionError, match="not in the vocabulary"):
        model.trace([320])
    trace = model.trace(TOKENS)
    for layer in (4, -1):
        with pytest.raises(BadOptionError):
            model.resume(trace, layer)
    with pytest.raises(BadOptionError, match="another shape"):
        other.resume(trace, 0)


# ---- measuring -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibration") / "found.json"
    calibrate(EXAMPLE, TEXT, path, **CUT)
    return path


def test_sensitivities_are_divergence_over_error(measured: Path) -> None:
    model, name = Model(EXAMPLE), "blk.7.attn_v.weight"
    with q4hifi.open(EXAMPLE) as file:
        weights = file[name].dequantize()
    tensor = q4hifi.quantize(weights, "Q4_K")
    error = ((tensor.dequantize() - weights) ** 2).sum(dtype=np.float64) / (weights**2).sum(dtype=np.float64)
    tokens = np.asarray(model.tokenize(TEXT), np.uint32)
    klds = []
    for first in (0, round(0.618033988749895 * (tokens.size - 32))):
        chunk = tokens[first : first + 32]
        logits = model.replaced(name, tensor).logits(chunk)
        klds.append(divergence(logits[16:], model.logits(chunk)[16:], chunk[16:]).kld)
    found = calibrate(EXAMPLE, TEXT, measured, **CUT)
    assert found.n_chunks == 2 and len(found.sensitivities) == N_MATRICES
    roots = np.sqrt(np.concatenate(klds))
    stored = json.loads(measured.read_text())
    noted = {n: np.mean(matrix["divergences"], axis=0) for n, matrix in stored["matrices"].items()}
    assert noted[name] == pytest.approx([(roots**2).mean(), roots.mean()], rel=1e-6)
    spread = np.median([mean / root**2 for mean, root in noted.values()])
    assert 1 < spread < 4
    kld = spread * roots.mean() ** 2
    assert found.klds[name].value == pytest.approx(kld, rel=1e-6)
    assert found.klds[name].error == pytest.approx(2 * kld * roots.std() / roots.mean() / 31**0.5, rel=1e-5)
    assert found.sensitivities[name].value == pytest.approx(kld / error, rel=1e-4)
    assert stored["sensitivities"] == {name: value.value for name, value in found.sensitivities.items()}


def test_divergences_add_up(measured: Path, tmp_path: Path) -> None:
    path = tmp_path / "q4.gguf"
    q4hifi.quantize_file(EXAMPLE, path, "Q4_K_S", pure=True)
    model, pure = Model(EXAMPLE), Model(path)
    tokens = np.asarray(model.tokenize(TEXT), np.uint32)
    klds = []
    for first in (0, round(0.618033988749895 * (tokens.size - 32))):
        chunk = tokens[first : first + 32]
        klds.append(divergence(pure.logits(chunk)[16:], model.logits(chunk)[16:], chunk[16:]).kld)
    found = calibrate(EXAMPLE, TEXT, measured, **CUT)
    total = sum(kld.value for kld in found.klds.values())
    assert total == pytest.approx(np.concatenate(klds).mean(), rel=0.2)


def test_it_goes_on_where_it_was(measured: Path, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    seen: list[tuple[int, int, str]] = []

    def stop(done: int, total: int, what: str) -> None:
        seen.append((done, total, what))
        if len(seen) == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(EXAMPLE, TEXT, path, progress=stop, **CUT)
    assert "sensitivities" not in json.loads(path.read_text())  # not before all have met a chunk
    assert len(Calibration.load(path).matrices) == 19
    again: list[tuple[int, int, str]] = []
    calibrate(EXAMPLE, TEXT, path, progress=lambda *args: again.append(args), **CUT)
    assert again[0][2] == seen[-1][2] and len(again) == 2 * N_MATRICES - 19
    assert 0 == again[0][0] < again[-1][0] < again[0][1] < seen[0][1]
    assert json.loads(path.read_text()) == json.loads(measured.read_text())
    assert names_in(tmp_path) == {"found.json"}


def test_further_chunks_sharpen_what_is_there(measured: Path, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    first = calibrate(EXAMPLE, TEXT, path, n_ctx=32, n_chunks=2, seconds=0)
    assert first.n_chunks == 1  # no second one was begun
    both = calibrate(EXAMPLE, TEXT, path, **CUT)
    assert both.n_chunks == 2
    assert json.loads(path.read_text()) == json.loads(measured.read_text())


def test_groups_share_their_divergence(measured: Path, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    found = calibrate(EXAMPLE, TEXT, path, **CUT, group=3)
    assert len(found.sensitivities) == N_MATRICES
    groups = ((0,), (1, 2, 3), (4, 5, 6), (7,))
    names = [[f"blk.{i}.ffn_up.weight" for i in layers] for layers in groups]
    same = [{round(found.sensitivities[name].value, 9) for name in group} for group in names]
    assert [len(values) for values in same] == [1, 1, 1, 1] and len(set.union(*same)) == 4
    alone = calibrate(EXAMPLE, TEXT, measured, **CUT).klds
    for role in ("ffn_up", "ffn_down"):
        for layers in groups:
            members = [f"blk.{i}.{role}.weight" for i in layers]
            together = sum(found.klds[name].value for name in members)
            assert together == pytest.approx(sum(alone[n].value for n in members), rel=0.15)
    # what is written to the stream counts by its size
    matrices = Calibration.load(path).matrices
    with q4hifi.open(EXAMPLE) as file:
        norms = {i: (file[f"blk.{i}.ffn_down.weight"].dequantize() ** 2).sum() for i in (1, 2)}
    sizes = {i: matrices[f"blk.{i}.ffn_down.weight"].error * norms[i] for i in (1, 2)}
    klds = {i: found.klds[f"blk.{i}.ffn_down.weight"].value for i in (1, 2)}
    assert klds[1] / klds[2] == pytest.approx(sizes[1] / sizes[2], rel=1e-4)


def test_importance_weighs_the_error(tmp_path: Path) -> None:
    name = "blk.3.ffn_up.weight"
    sums = random_sums(1, 256, [100], seed=3)
    imatrix = write_imatrix(tmp_path / "imatrix.gguf", {name: (sums, np.array([100]))})
    path = tmp_path / "found.json"
    calibrate(EXAMPLE, TEXT, path, imatrix=imatrix, **CUT)
    with q4hifi.open(EXAMPLE) as file:
        weights = file[name].dequantize().astype(np.float64)
    tensor = q4hifi.quantize(weights.astype(np.float32), "Q4_K", importance=sums[0] / 100)
    error = (sums * (tensor.dequantize() - weights) ** 2).sum() / (sums * weights**2).sum()
    assert Calibration.load(path).matrices[name].error == pytest.approx(error, rel=1e-4)
    with pytest.raises(BadOptionError, match="was measured with an importance matrix; remove or rename it"):
        calibrate(EXAMPLE, TEXT, path, **CUT)


def test_a_file_gives_back_what_was_noted(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    noted = Calibration(Setting(model="m", text="t", importance=None, n_ctx=4, group=1))
    noted.add("a", "Q4_0", 0.5, 2.0, 1.0)
    noted.add("a", "Q4_0", 0.5, 6.0, 1.0)
    noted.add("zeros", "Q4_0", 0.0, 0.0, 0.0)
    noted.save(path, ["a", "zeros"])
    found = Calibration.load(path)
    assert found == noted
    # the root's standard error over 2 chunks of 2 tokens is sqrt((4 - 1) / 3)
    assert found.sensitivities(["a"])["a"] == Estimate(8.0, pytest.approx(16.0))
    assert found.sensitivities(["a", "zeros"]) == {
        "a": Estimate(4.0, pytest.approx(8.0)),  # of the one chunk that both have met
        "zeros": Estimate(0.0, 0.0),
    }


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda found: found.update(version=2), "version 2, and this q4hifi knows 1"),
        (lambda found: found.pop("matrices"), "is no calibration, or a damaged one"),
        (lambda found: found["matrices"]["blk.0.attn_q.weight"].update(error=-1), "is no calibration"),
        (lambda found: found["matrices"]["blk.0.attn_q.weight"].update(divergences=[[1]]), "is no"),
        (lambda found: found.clear(), "is no calibration"),
    ],
)
def test_damaged_files(damage: Any, message: str, measured: Path, tmp_path: Path) -> None:
    found = json.loads(measured.read_text())
    damage(found)
    path = tmp_path / "found.json"
    path.write_text(json.dumps(found))
    with pytest.raises(BadFileError, match=message):
        calibrate(EXAMPLE, TEXT, path, **CUT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": "short"}, "2 chunks of 32 need 64"),
        ({"n_ctx": 513}, "choose 2 to 512"),
        ({"n_chunks": 0}, "`n_chunks` 0"),
        ({"group": 0}, "`group` 0"),
        ({"file": EXAMPLE}, "is the source"),
        ({"file": "no/folder/found.json"}, "there is no folder"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    arguments = {"model": EXAMPLE, "text": TEXT, **CUT, **options}
    with pytest.raises(BadOptionError, match=message):
        calibrate(**arguments)


def test_another_text_or_model_needs_another_file(measured: Path, tmp_path: Path) -> None:
    differs = r"another text, \d+ tokens per chunk, not 16; remove or rename it.* or use it as it is, with"
    with pytest.raises(BadOptionError, match=differs):
        calibrate(EXAMPLE, TEXT[100:], measured, n_ctx=16, n_chunks=1)
    other = tmp_path / "bf16.gguf"
    q4hifi.dequantize_file(EXAMPLE, other, "BF16")
    with pytest.raises(BadOptionError, match=r"another model; remove or rename it to measure again$"):
        calibrate(other, TEXT, measured, **CUT)


# ---- the command ---------------------------------------------------------------------------------


def test_command(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    arguments = ("calibrate", EXAMPLE, "-f", "text.txt", "-c", 32, "--chunks", 1, "--group", 6)
    outcome = run(*arguments, "-o", "found.json")
    assert (outcome.status, outcome.err) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in outcome.out.splitlines() if line}
    assert rows["ffn_down"][0] == "8" and rows["57"] == ["matrices:", "wrote", "found.json"]
    assert "all matrices at about 4 bits: KLD 0.0" in outcome.out and "1 chunk of 32 tokens" in outcome.out
    found = json.loads(run(*arguments, "-o", "found.json", "--json").out)
    least, most = (float(cell) for cell in rows["ffn_down"][-2:])
    values = [found["matrices"][f"blk.{i}.ffn_down.weight"]["sensitivity"]["value"] for i in range(8)]
    assert (min(values), max(values)) == (pytest.approx(least, abs=1e-4), pytest.approx(most, abs=1e-4))
    assert (found["n_chunks"], found["file"]) == (1, "found.json")


def test_a_calibration_that_quantize_cannot_continue_has_a_remedy_there(
    run: Run, short_model: Path, tmp_path: Path
) -> None:
    """'quantize' has no option for the tokens of a chunk, nor for the file."""
    model, text = tmp_path / "model.gguf", tmp_path / "text.txt"
    shutil.copy(short_model, model)
    text.write_text(TEXT * 3)
    kept = tmp_path / "model.gguf.sensitivity.json"
    calibrate(model, read_text(text), kept, group=9, **CUT)
    for command in (["quantize", model, tmp_path / "out.gguf"], ["plan", model]):
        outcome = run(*command, "--like", "Q4_K_M", "--calibrate", text)
        differences = "32 tokens per chunk, not 256, groups of 9 layers, not 1"
        assert outcome.err == (
            f"Error: {kept}: was measured with {differences}; remove or rename it to measure again,"
            " or use it as it is, with 'q4hifi quantize --sensitivities'\n"
        )
        assert run(*command, "--like", "Q4_K_M", "--sensitivities", kept).status == 0
    text.write_text(TEXT[:200])
    kept.unlink()
    short = run("plan", model, "--calibrate", text)
    assert (
        short.status == 2
        and "give a longer text, or measure fewer or shorter chunks with 'q4hifi" in short.err
    )


def test_quantizing_measures_once_and_uses_it(short_model: Path, tmp_path: Path) -> None:
    model, text = tmp_path / "model.gguf", tmp_path / "text.txt"
    shutil.copy(short_model, model)
    text.write_text(TEXT * 3)
    seen: list[str] = []

    def plan() -> q4hifi.Plan:
        seen.clear()
        return q4hifi.plan_file(
            model, like="Q4_K_M", calibrate=text, progress=lambda done, total, what: seen.append(what)
        )

    first = plan()
    kept = tmp_path / "model.gguf.sensitivity.json"
    assert first.measured is not None and first.measured.sensitivities == str(kept)
    assert any(what.startswith("chunk 4: ") for what in seen)
    assert plan() == first
    assert not any(what.startswith("chunk") for what in seen)
    assert q4hifi.plan_file(model, like="Q4_K_M", sensitivities=kept) == first
    with pytest.raises(BadOptionError, match="`sensitivities` and `calibrate` cannot go together"):
        q4hifi.plan_file(model, calibrate=text, sensitivities=kept)


def test_bad_entries_that_are_left_out_are_not_measured_with(tmp_path: Path) -> None:
    """With another part of the imatrix it is another measurement, in a file of another name."""
    good, bad = "blk.3.ffn_up.weight", "blk.3.attn_v.weight"
    sums = {good: random_sums(1, 256, [100], seed=3), bad: np.full((1, 256), np.nan)}
    sums |= {f"blk.{i}.ffn_gate.weight": random_sums(1, 256, [100], seed=i) for i in range(8)}
    sums |= {f"blk.{i}.attn_q.weight": random_sums(1, 256, [100], seed=i) for i in range(8)}
    imatrix = write_imatrix(tmp_path / "i.gguf", {name: (s, np.array([100])) for name, s in sums.items()})
    path, part = tmp_path / "found.json", {"exclude_weights": ["attn_v"]}
    with pytest.raises(NotFiniteError, match=rf"leave it out with `exclude_weights={bad}`"):
        calibrate(EXAMPLE, TEXT, path, imatrix=imatrix, **CUT)
    calibrate(EXAMPLE, TEXT, path, imatrix=imatrix, **part, **CUT)
    with pytest.raises(
        BadOptionError, match="with another importance matrix or part of it; remove or rename"
    ):
        calibrate(EXAMPLE, TEXT, path, imatrix=imatrix, include_weights=["ffn_up"], **CUT)
    names = {calibration_file("m", "i", **parts) for parts in ({}, part, {"include_weights": ["attn_v"]})}
    assert len(names) == 3 and "i.sensitivity.json" in names
