"""llama.cpp as an engine: what it shows of models, and how it fails."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGUFValueType

import q4hifi
from architectures import ARCHITECTURES, ENCODERS, VOCAB, E, write_architecture
from command import Run
from q4hifi import BadOptionError, LlamaModel, UnavailableError, UnsupportedModelError
from q4hifi.engines.llama import self_test
from q4hifi.engines.llama.abi import struct_offsets
from q4hifi.engines.llama.library import Blob, has_rpc, is_causal, library_path, load_library
from q4hifi.evaluate.noise_trials import fisher_by_noise
from q4hifi.formats.tensor_names import group_of
from q4hifi.imatrix.file import load_importance
from synthetic import EXAMPLE, ROOT, write_model, write_runnable, write_stored

TOKENS = np.random.default_rng(0).integers(0, VOCAB, 64).astype(np.uint32)
TEXT = (ROOT / "tests/golden/text.txt").read_text()
OWN_TOO = {"qwen3moe"}
"""Architectures that our own runtime runs, too."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("architectures")
    return {name: write_architecture(folder / f"{name}.gguf", name) for name in ARCHITECTURES}


@pytest.fixture
def example() -> Iterator[LlamaModel]:
    with LlamaModel(EXAMPLE, n_ctx=256, threads=2) as model:
        yield model


# ---- what it shows -------------------------------------------------------------------------------


def test_inputs_are_those_of_our_own_runtime(example: LlamaModel) -> None:
    own = q4hifi.Model(EXAMPLE, threads=2)
    tokens = own.tokenizer.encode_array(TEXT, limit=200)
    ours, theirs = own.input_sums(), example.input_sums()
    own.sequence().evaluate(tokens, "none", sums=ours)
    example.sequence().evaluate(tokens, "none", sums=theirs)
    assert theirs.all().keys() == ours.all().keys() == set(example.matrices) == set(own.matrices)
    assert theirs.same_inputs() == ours.same_inputs()
    for name, (squares, counts) in ours.all().items():
        found, n = theirs.all()[name]
        assert n.tolist() == counts.tolist() == [200]
        np.testing.assert_allclose(found, squares, rtol=3e-3)
    assert theirs.products().keys() == ours.products().keys()
    for name, products in ours.products().items():
        np.testing.assert_allclose(theirs.products()[name], products, atol=2e-3 * np.abs(products).max())


@pytest.mark.parametrize("expert_correlations", [False, True])
def test_a_mixtures_inputs_are_those_of_our_own_runtime(
    models: dict[str, Path], expert_correlations: bool
) -> None:
    """Experts and routers, too: names, tokens of every expert, squares, products."""
    own = q4hifi.open_model(models["qwen3moe"], threads=2, expert_correlations=expert_correlations)
    assert isinstance(own, q4hifi.Model)
    ours, n_used = own.input_sums(), 2
    own.sequence().evaluate(TOKENS, "none", sums=ours)
    with LlamaModel(
        models["qwen3moe"], n_ctx=64, threads=2, expert_correlations=expert_correlations
    ) as other:
        theirs = other.input_sums()
        np.testing.assert_allclose(
            other.sequence().evaluate(TOKENS, "all", sums=theirs), own.logits(TOKENS), atol=0.02
        )
        assert set(other.matrices) == set(own.matrices)
    inside = {name for name in own.matrices if name != "token_embd.weight"}
    assert theirs.all().keys() == ours.all().keys() >= inside | {"blk.0.ffn_gate_inp.weight"}
    assert theirs.same_inputs() == ours.same_inputs()
    for name, (squares, counts) in ours.all().items():
        found, n = theirs.all()[name]
        assert n.tolist() == counts.tolist() and n.sum() == len(TOKENS) * (n_used if "_exps" in name else 1)
        np.testing.assert_allclose(found, squares, rtol=3e-3, atol=1e-3 * squares.max())
    assert theirs.products().keys() == ours.products().keys()
    assert ("blk.0.ffn_down_exps.weight" in ours.products()) == expert_correlations
    sizes = [squares.size for squares, _ in ours.all().values()], [p.size for p in ours.products().values()]
    assert ours.expected_bytes[0] == 8 * sum(sizes[0]) + 4 * sum(sizes[1])
    for name, products in ours.products().items():
        np.testing.assert_allclose(theirs.products()[name], products, atol=5e-3 * np.abs(products).max())


def test_logits_in_pieces_are_those_of_the_whole(example: LlamaModel) -> None:
    own = q4hifi.Model(EXAMPLE, threads=2)
    tokens = own.tokenizer.encode_array(TEXT, limit=100)
    whole = example.logits(tokens)
    assert whole.shape == (100, own.n_vocab)
    np.testing.assert_allclose(whole, own.logits(tokens), atol=0.02)
    sequence = example.sequence()
    assert sequence.evaluate(tokens[:60], "none") is None
    last = sequence.evaluate(tokens[60:])
    assert last is not None and sequence.length == 100
    np.testing.assert_allclose(last, whole[-1], atol=0.02)
    sequence.truncate(60)
    again = sequence.evaluate(tokens[60:], "all", sums=example.input_sums())
    np.testing.assert_allclose(again, whole[60:], atol=0.02)
    sequence.reset()
    assert sequence.length == 0


@pytest.mark.parametrize("limit", [None, 5, 300])
def test_tokens_are_those_of_our_own_tokenizer(example: LlamaModel, limit: int | None) -> None:
    own = q4hifi.Model(EXAMPLE, threads=2).tokenizer
    text = TEXT + "\udcf0\udc8d <|im_end|> "
    found = example.tokenizer.encode_array(text * 3, limit=limit)
    np.testing.assert_array_equal(found, own.encode_array(text * 3, limit=limit))
    assert (example.tokenizer.add_bos, example.tokenizer.n_vocab) == (own.add_bos, own.n_vocab)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_matrix_of_an_architecture_is_measured_and_quantized(
    architecture: str, models: dict[str, Path], tmp_path: Path
) -> None:
    """The imatrix has all matrices, files are made with it, and llama.cpp runs these and finds them close."""
    source, engine = models[architecture], "auto"
    if architecture in OWN_TOO:
        engine = "llama.cpp"
    else:
        with pytest.raises(UnsupportedModelError, match="which cannot be run"):
            q4hifi.open_model(source, engine="q4hifi")
    out, imatrix = tmp_path / "out.gguf", tmp_path / "imatrix.gguf"
    with q4hifi.open_model(source, engine=engine, threads=2, n_ctx=64, expert_correlations=True) as model:
        assert isinstance(model, LlamaModel)
        text = np.tile(TOKENS, 4)
        q4hifi.collect_importance(model, text, n_ctx=64, output=imatrix)
        importance = load_importance(imatrix)
        inside = {name for name in model.matrices if name.startswith("blk.")}
        assert inside <= set(importance.names)
        correlated = {name for name in inside if importance.is_correlated(name)}
        with q4hifi.open(source) as file:
            assert correlated == {name for name in inside if file[name].shape[-1] % 32 == 0}
        report = q4hifi.quantize_file(source, out, "Q4_K_M", imatrix=imatrix, refine=True, threads=2)
        assert not q4hifi.verify_file(out)
        rough = tmp_path / "rough.gguf"
        q4hifi.quantize_file(source, rough, "Q2_K", imatrix=imatrix, threads=2)
        with LlamaModel(out, n_ctx=64, threads=2) as ours, LlamaModel(rough, n_ctx=64, threads=2) as coarse:
            found = q4hifi.compare(model, [ours, coarse], text, n_ctx=64, threads=2)
    fine, bad = (model.quality.mean_kld.value for model in found.models if model.quality is not None)
    assert 0 < fine < bad, report


@pytest.mark.parametrize("architecture", ENCODERS)
def test_encoders_are_quantized_with_an_imatrix_and_predict_nothing(
    architecture: str, tmp_path: Path, run: Run
) -> None:
    source = write_architecture(tmp_path / "encoder.gguf", architecture, vocabulary=True)
    text, imatrix, out = tmp_path / "text.txt", tmp_path / "i.gguf", tmp_path / "out.gguf"
    text.write_text(TEXT)
    options = ("-f", text, "-c", "64", "--chunks", "2")
    made = run("imatrix", source, *options, "-o", imatrix)
    assert made.status == 0 and "is an encoder: it has no perplexity" in made.err, made
    importance = load_importance(imatrix)
    with LlamaModel(source, n_ctx=64) as model:
        inside = {name for name in model.matrices if "blk." in name}
        assert len(inside) == 2 * (6 if architecture == "bert" else 7) and inside <= set(importance.names)
        assert not model.has_logits and model.reads_whole_texts
        with pytest.raises(UnsupportedModelError, match="is an encoder, which predicts no tokens"):
            model.logits(TOKENS)
    assert run("quantize", source, out, "Q4_K_M", "--imatrix", imatrix, "--refine").status == 0
    with LlamaModel(out, n_ctx=64) as model:
        model.sequence().evaluate(TOKENS, "none", sums=model.input_sums())
    for command in (["perplexity", *options], ["compare", out, *options], ["calibrate", *options]):
        refused = run(command[0], source, *command[1:])
        assert refused.status == 1 and "encoder, which predicts no tokens" in refused.err, refused
    for command in (["generate", "-p", "The", "-n", "2"], ["bench", "-p", "8", "-n", "2"]):
        refused = run(command[0], source, *command[1:])
        assert refused.status == 1 and "token by token" in refused.err, refused
    assert run("bench", source, "-p", "8", "-n", "0", "-r", "1").status == 0


def test_a_text_is_given_at_once_to_a_model_that_reads_in_both_directions(tmp_path: Path, run: Run) -> None:
    """Longer texts than a batch, too. What it collects does not depend on whether predictions are scored."""
    source = write_architecture(tmp_path / "dream.gguf", "dream", vocabulary=True)
    with LlamaModel(source, n_ctx=600) as model:
        assert model.reads_whole_texts and model.has_logits
        tokens = np.resize(TOKENS, 1200)
        whole = model.input_sums()
        for chunk in (tokens[:600], tokens[600:]):
            model.sequence().evaluate(chunk, "none", sums=whole)
        for score in (True, False):
            found = q4hifi.collect_importance(model, tokens, n_ctx=600, score=score, fisher_chunks=0)
            for name, sums in found.tensors.items():
                np.testing.assert_allclose(sums.squares, whole.all()[name][0], rtol=1e-5)
        sequence = model.sequence()
        sequence.evaluate(TOKENS)
        with pytest.raises(UnsupportedModelError, match="nothing can be appended"):
            sequence.evaluate(TOKENS)
        early, late = TOKENS.copy(), TOKENS.copy()
        late[-1] += 1
        assert np.abs(model.logits(early)[0] - model.logits(late)[0]).max() > 1e-4, "no token sees later ones"
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    options = ("-f", text, "-c", "64", "--chunks", "2")
    compared = run("compare", source, source, *options)
    assert compared.status == 0 and "its perplexity says little" in compared.err
    assert run("generate", source, "-p", "The", "-n", "2").status == 1


@pytest.mark.parametrize("stored", [False, True])
def test_old_libraries_know_diffusion_models_alone(stored: bool, models: dict[str, Path]) -> None:
    """They lack the function that tells the direction of a context: the file does, in other models."""

    class Old:
        def __getattr__(self, name: str) -> Any:
            if name == "llama_get_causal_attn":
                raise AttributeError(name)
            return getattr(load_library(library_path()), name)

    for name in ("dream", "mamba"):
        with LlamaModel(models[name], n_ctx=64) as model:
            context = model._context
            found = is_causal(Old(), context._model, context._context, stored=stored)  # type: ignore[arg-type]
        assert found == (stored and name == "mamba")


def test_our_own_runtime_leaves_models_that_read_in_both_directions_to_llama_cpp(tmp_path: Path) -> None:
    pairs = {"attention.causal": (False, q4hifi.formats.gguf_constants.GGUFValueType.BOOL)}
    path = write_runnable(tmp_path / "both.gguf", "llama", pairs=pairs)
    with q4hifi.open_model(path, n_ctx=64) as model:
        assert isinstance(model, LlamaModel) and model.reads_whole_texts
    with pytest.raises(UnsupportedModelError, match="in both directions"):
        q4hifi.Model(path)


def test_texts_longer_than_the_positions_of_a_model_are_refused(tmp_path: Path) -> None:
    source = write_architecture(tmp_path / "bert.gguf", "bert")
    with pytest.raises(BadOptionError, match="embeddings for 512 positions"):
        LlamaModel(source, n_ctx=513)


@pytest.mark.parametrize(
    ("architecture", "kind", "said"),
    [("clip", None, "a projector of images or sound"), ("llama", "adapter", "an adapter .LoRA. of a model")],
)
def test_parts_of_models_are_refused(architecture: str, kind: str | None, said: str, tmp_path: Path) -> None:
    tensors = {"v.blk.0.attn_q.weight": np.ones((256, 256), np.float32)}
    pairs = [("general.type", kind, q4hifi.formats.gguf_constants.GGUFValueType.STRING)] if kind else []
    path = write_model(tmp_path / "part.gguf", tensors, architecture=architecture, pairs=pairs)
    with pytest.raises(
        UnsupportedModelError, match=f"this is {said}.*, which does not read a text by itself"
    ):
        q4hifi.open_model(path)


def test_a_model_with_encoder_and_decoder_is_refused(tmp_path: Path) -> None:
    source = write_architecture(tmp_path / "t5.gguf", "t5")
    with pytest.raises(UnsupportedModelError, match="an encoder and a decoder, which q4hifi does not run"):
        LlamaModel(source)
    assert q4hifi.quantize_file(source, tmp_path / "out.gguf", "Q4_K_M", threads=2)


def test_gates_of_one_row_have_sums_as_in_llama_imatrix(models: dict[str, Path]) -> None:
    with LlamaModel(models["qwen3next"], n_ctx=64) as model:
        sums = model.input_sums()
        model.sequence().evaluate(TOKENS, "none", sums=sums)
    squares, counts = sums.all()["blk.0.ffn_gate_inp_shexp.weight"]
    assert counts.tolist() == [64]
    np.testing.assert_array_equal(squares, sums.all()["blk.0.ffn_gate_inp.weight"][0])


def test_unused_matrices_are_named_wherever_they_are(tmp_path: Path, run: Run) -> None:
    """Also those outside the layers: here a projection for embeddings."""
    source = write_architecture(tmp_path / "lfm2.gguf", "lfm2", vocabulary=True, more={"dense_2": (E, E)})
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    made = run("imatrix", source, "-f", text, "-c", "64", "--chunks", "2", "-o", tmp_path / "i.gguf")
    assert made.status == 0 and "note: 1 matrix received no inputs: dense_2.weight\n" in made.err


def test_experts_get_the_inputs_of_the_tokens_that_are_routed_to_them(tmp_path: Path) -> None:
    """A dense layer that is cut into two experts, both of them used, has the sums of the dense layer."""
    dense = write_runnable(
        tmp_path / "dense.gguf", "qwen3", n_layer=1, norms=("attn_q_norm", "attn_k_norm"), kind="F16"
    )
    mixture = _cut_into_experts(dense, tmp_path / "mixture.gguf")
    sums = []
    for path in (dense, mixture):
        with LlamaModel(path, n_ctx=64, threads=1, expert_correlations=True) as model:
            collected = model.input_sums()
            model.sequence().evaluate(TOKENS, "none", sums=collected)
            sums.append((collected.all(), collected.products()))
    (whole, whole_products), (parts, products) = sums
    for role in ("gate", "up"):
        squares, counts = parts[f"blk.0.ffn_{role}_exps.weight"]
        assert counts.tolist() == [64, 64]
        np.testing.assert_allclose(squares, np.tile(whole[f"blk.0.ffn_{role}.weight"][0], (2, 1)), rtol=1e-3)
    pooled = products["blk.0.ffn_gate_exps.weight"]
    _close(pooled, 2 * whole_products["blk.0.ffn_gate.weight"])  # a token counts once for each expert
    squares, counts = parts["blk.0.ffn_down_exps.weight"]
    assert counts.tolist() == [64, 64]
    np.testing.assert_allclose(squares.reshape(1, -1), whole["blk.0.ffn_down.weight"][0], rtol=2e-2)
    full = np.zeros((512, 512), np.float32)
    full[np.triu_indices(512, 1)] = whole_products["blk.0.ffn_down.weight"][0]
    upper = np.triu_indices(256, 1)
    own = [full[:256, :256][upper], full[256:, 256:][upper]]
    _close(products["blk.0.ffn_down_exps.weight"], np.stack(own))


def _close(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> None:
    np.testing.assert_allclose(found, expected, atol=5e-3 * np.abs(expected).max())


def _cut_into_experts(dense: Path, path: Path) -> Path:
    """Write a mixture of two experts, each with half of the dense model's hidden units, both always used."""
    with q4hifi.open(dense) as file:
        tensors = {name: file[name].dequantize() for name in file.tensors}
        keys = {k.removeprefix("qwen3."): v for k, v in file.metadata.items() if k.startswith("qwen3.")}
    for role in ("gate", "up"):
        tensors[f"blk.0.ffn_{role}_exps.weight"] = tensors.pop(f"blk.0.ffn_{role}.weight").reshape(2, 256, -1)
    down = tensors.pop("blk.0.ffn_down.weight")
    tensors["blk.0.ffn_down_exps.weight"] = 2 * np.stack([down[:, :256], down[:, 256:]])
    tensors["blk.0.ffn_gate_inp.weight"] = np.zeros((2, 256), np.float32)
    keys |= {"expert_count": 2, "expert_used_count": 2, "expert_feed_forward_length": 256}
    keys.pop("block_count")
    types = {int: q4hifi.formats.gguf_constants.GGUFValueType.UINT32}
    pairs = [
        (
            f"qwen3moe.{key}",
            value,
            types.get(type(value), q4hifi.formats.gguf_constants.GGUFValueType.FLOAT32),
        )
        for key, value in keys.items()
    ]
    none = ("tokenizer.ggml.model", "none", q4hifi.formats.gguf_constants.GGUFValueType.STRING)
    return write_model(path, tensors, architecture="qwen3moe", pairs=[*pairs, none], kept=_router)


def _router(name: str) -> bool:
    return "_inp." in name


def test_q4_hifi_is_run_from_a_copy_in_types_that_llama_cpp_knows(tmp_path: Path) -> None:
    hifi = tmp_path / "hifi.gguf"
    q4hifi.quantize_file(EXAMPLE, hifi, "Q4_HIFI", threads=2)
    tokens = np.arange(100, 150)
    with LlamaModel(hifi, n_ctx=64, threads=2) as model:
        assert model.path == hifi
        found = model.logits(tokens)
    q4hifi.export_file(hifi, tmp_path / "f16.gguf", as_="f16")
    with LlamaModel(tmp_path / "f16.gguf", n_ctx=64, threads=2) as model:
        np.testing.assert_array_equal(found, model.logits(tokens))


def test_sensitivities_are_those_of_our_own_runtime(example: LlamaModel) -> None:
    """Weights are replaced in llama.cpp's memory; afterwards, the model is as it was."""
    tokens = np.arange(200, 260)
    trials = [model.trial(tokens) for model in (example, q4hifi.Model(EXAMPLE, threads=2))]
    np.testing.assert_allclose(trials[0].reference, trials[1].reference, atol=0.02)
    with q4hifi.open(EXAMPLE) as file:
        for name in ("blk.0.attn_k.weight", "blk.5.ffn_down.weight", "token_embd.weight"):
            rough = q4hifi.quantize(file[name].dequantize(), "Q2_K").dequantize()
            coarse = q4hifi.quantize(rough, "F16")  # the runtimes multiply Q2_K differently
            ours, theirs = (trial.logits({name: coarse}) for trial in trials)
            np.testing.assert_allclose(ours, theirs, atol=0.02)
            assert np.abs(ours - trials[0].reference).max() > 0.05
    np.testing.assert_array_equal(example.logits(tokens), trials[0].reference)
    with pytest.raises(UnsupportedModelError, match="does not multiply with blk"):
        trials[0].logits({"blk.99.attn_k.weight": coarse})


def test_matrices_of_another_kind_are_measured_apart(tmp_path: Path) -> None:
    """Only neighbouring layers are measured together; there each has a share by its error."""
    source = write_architecture(tmp_path / "rwkv.gguf", "rwkv7", vocabulary=True)
    found = q4hifi.calibrate(source, TEXT, n_ctx=32, n_chunks=1, group=2, threads=2).sensitivities
    in_layer = [value.value for name, value in found.items() if name.startswith("blk.1.")]
    assert len(set(in_layer)) == len(in_layer) == 6


def test_layers_for_multi_token_prediction_get_typical_sensitivities(tmp_path: Path, run: Run) -> None:
    source = write_architecture(tmp_path / "mtp.gguf", "glm4moe", vocabulary=True, mtp=1)
    text, file, out = tmp_path / "text.txt", tmp_path / "cal.json", tmp_path / "out.gguf"
    text.write_text(TEXT)
    found = q4hifi.calibrate(source, TEXT, file, n_ctx=32, n_chunks=1, threads=2)
    names = ["attn_q", "attn_k", "attn_v", "attn_output", "nextn.eh_proj"]
    names += [f"ffn_{part}_{kind}" for part in ("gate", "up", "down") for kind in ("exps", "shexp")]
    assert found.typical.keys() == {f"blk.2.{name}.weight" for name in names}
    same = found.sensitivities["blk.1.ffn_down_exps.weight"]
    assert found.typical["blk.2.ffn_down_exps.weight"] == same
    with LlamaModel(source, n_ctx=64) as model:
        assert model.n_layer == 2
    quantized = run("quantize", source, out, "--like", "Q4_K_M", "--stock", "--sensitivities", file)
    assert quantized.status == 0, quantized
    made = run("imatrix", source, "-f", text, "-c", "64", "--chunks", "2", "-o", tmp_path / "i.gguf")
    assert made.status == 0 and "note: 11 matrices received no inputs: blk.2." in made.err


def test_sensitivities_of_a_mixture(tmp_path: Path) -> None:
    source = write_architecture(tmp_path / "moe.gguf", "qwen3next", vocabulary=True)
    found = q4hifi.calibrate(source, TEXT, n_ctx=32, n_chunks=1, group=2, threads=2)
    with LlamaModel(source, n_ctx=32) as model:
        assert set(found.sensitivities) == set(model.matrices)
    assert all(value.value > 0 for value in found.sensitivities.values())


@pytest.mark.parametrize(
    ("architecture", "writers"),
    [
        ("granitehybrid", {"attn_output", "ffn_down_exps", "ffn_down_shexp", "ssm_out"}),
        ("lfm2", {"attn_output", "ffn_down", "shortconv.out_proj"}),
        ("deepseek2", {"attn_output", "ffn_down", "ffn_down_exps", "ffn_down_shexp"}),
        ("mamba", {"ssm_out"}),
        ("rwkv7", {"time_mix_output", "channel_mix_value"}),  # the embeddings are normalized first
        ("nemotron_h_moe", {"attn_output", "ffn_down_shexp", "ffn_latent_up", "ssm_out"}),
        ("kimi-linear", {"attn_output", "ffn_down", "ffn_down_exps", "ffn_down_shexp"}),
    ],
)
def test_the_graph_shows_what_writes_to_the_residual_stream(
    models: dict[str, Path], architecture: str, writers: set[str]
) -> None:
    with LlamaModel(models[architecture], n_ctx=64) as model:
        trial = model.trial(TOKENS)
    assert {name.split(".", 2)[2].removesuffix(".weight") for name in trial.writers} == writers
    assert set(trial.used) >= set(model.matrices)


def test_noise_gives_the_fisher_information_of_our_own_runtime(example: LlamaModel) -> None:
    own = q4hifi.Model(EXAMPLE, threads=2)
    tokens = own.tokenizer.encode_array(TEXT, limit=256)
    sums = own.input_sums()
    own.sequence().evaluate(tokens, "none", sums=sums)
    found = fisher_by_noise(example, tokens, sums.all(), first=128, seed=1, threads=2)
    exact = own.fisher(tokens, first=128, seed=1)
    assert found.keys() == exact.keys()
    totals: dict[tuple[str, int | None], list[float]] = {}
    for name, columns in found.items():
        assert columns.shape == exact[name].shape and (columns >= 0).all()
        total = totals.setdefault(group_of(name, own.n_layer), [0.0, 0.0])
        total[0] += columns.sum()
        total[1] += exact[name].sum()
    ratios = [noise / gradients for noise, gradients in totals.values()]
    assert 0.6 < np.median(ratios) < 1.6 and min(ratios) > 0.2 and max(ratios) < 5


def test_fisher_information_of_a_mixture_is_measured_by_noise(tmp_path: Path) -> None:
    """In our own runtime, too, which has gradients: they do not see that other experts are chosen."""
    path = write_architecture(tmp_path / "moe.gguf", "qwen3moe", vocabulary=True)
    own = q4hifi.Model(path, n_ctx=64)
    found = q4hifi.collect_importance(own, np.tile(TOKENS, 2), n_ctx=64).fisher
    with LlamaModel(path, n_ctx=64) as other:
        expected = q4hifi.collect_importance(other, np.tile(TOKENS, 2), n_ctx=64).fisher
    assert own.has_fisher and found.keys() == expected.keys() >= {"blk.1.ffn_down_exps.weight"}
    ratios = [sums.squares.sum() / expected[name].squares.sum() for name, sums in found.items()]
    assert 0.8 < np.median(ratios) < 1.25 and min(ratios) > 0.4 and max(ratios) < 2.5


def test_noise_needs_weights_that_are_stored_well_enough(tmp_path: Path) -> None:
    q4hifi.quantize_file(EXAMPLE, tmp_path / "q4.gguf", "Q4_0", pure=True)
    with LlamaModel(tmp_path / "q4.gguf", n_ctx=64) as model:
        assert fisher_by_noise(model, TOKENS % model.n_vocab, {}, first=32, seed=1, threads=2) == {}


def test_text_is_that_of_our_own_runtime(example: LlamaModel) -> None:
    own = q4hifi.Model(EXAMPLE, n_ctx=256, threads=2)
    ours, theirs = example.tokenizer, own.tokenizer
    assert (ours.bos, ours.eos, ours.add_eos) == (theirs.bos, theirs.eos, theirs.add_eos)
    for token in (0, 65, 200, 3000, own.n_vocab - 1):
        assert ours.piece(token) == theirs.piece(token)
        assert ours.is_end_of_generation(token) == theirs.is_end_of_generation(token)
    with pytest.raises(BadOptionError, match="is not in the vocabulary"):
        ours.piece(own.n_vocab)
    shielded = ours.shield("a <|endoftext|> b")
    assert shielded != "a <|endoftext|> b"
    assert len(ours.encode("a <|endoftext|> b", parse_special=True)) < len(
        ours.encode(shielded, parse_special=True, shield=q4hifi.runtime.tokenizer.SHIELD)
    )
    texts = [
        "".join(q4hifi.generate(model, "Once upon a time", n=20, temperature=0)) for model in (example, own)
    ]
    assert texts[0] == texts[1] and texts[0]
    chat = q4hifi.Chat(example, q4hifi.Sampler(seed=1), template="{{ messages[0].content }}: ")
    assert "".join(chat.answer("Hello", 5))


# ---- how it is chosen ----------------------------------------------------------------------------


def test_a_model_of_every_engine_can_be_used_in_a_with_statement() -> None:
    for engine in ("q4hifi", "llama.cpp"):
        with q4hifi.open_model(EXAMPLE, engine=engine, n_ctx=64) as model:
            assert model.engine == engine


def test_auto_takes_our_own_runtime_where_it_runs_the_model(models: dict[str, Path]) -> None:
    assert isinstance(q4hifi.open_model(EXAMPLE), q4hifi.Model)
    with q4hifi.open_model(EXAMPLE, library=library_path(), n_ctx=64) as model:
        assert isinstance(model, LlamaModel)
    with pytest.raises(BadOptionError, match="`gpu_layers` is an option of the engine"):
        q4hifi.open_model(EXAMPLE, engine="q4hifi", gpu_layers=1)
    with pytest.raises(BadOptionError, match="there is no `engine` 'cuda'"):
        q4hifi.open_model(EXAMPLE, engine="cuda")


def test_models_are_compared_with_one_engine(models: dict[str, Path]) -> None:
    from q4hifi.engines.opening import open_alike

    for paths, engine in (([EXAMPLE, EXAMPLE], "q4hifi"), ([EXAMPLE, models["olmoe"]], "llama.cpp")):
        with open_alike(paths, n_ctx=64, threads=2) as opened:
            assert [model.engine for model in opened] == [engine] * 2


def test_a_mixture_at_the_command_line(tmp_path: Path, run: Run) -> None:
    source = write_architecture(tmp_path / "moe.gguf", "olmoe", vocabulary=True)
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    options = ("-f", text, "-c", "64", "--chunks", "3")
    made = run("imatrix", source, *options, "-o", tmp_path / "i.gguf")
    assert made.status == 0 and "engine: llama.cpp" in made.err
    assert load_importance(tmp_path / "i.gguf").fisher_names
    refused = run("imatrix", source, *options, "-o", tmp_path / "j.gguf", "--engine", "q4hifi")
    assert refused.status == 1 and "the architecture is 'olmoe'" in refused.err
    out = tmp_path / "out.gguf"
    assert run("quantize", source, out, "Q4_K_M", "--imatrix", tmp_path / "i.gguf", "--refine").status == 0
    base = tmp_path / "base.kld"
    assert run("perplexity", source, *options, "--kl-divergence-base", base).status == 0
    compared = run("perplexity", out, "--kl-divergence-base", base, "--kl-divergence")
    assert compared.status == 0 and "Mean    KLD" in compared.out
    written = run("generate", source, "-p", "The", "-n", "5", "-s", "1")
    assert written.status == 0 and len(written.out) > 4
    assert run("compare", source, out, *options).status == 0
    assert run("bench", out, "-p", "8", "-n", "2", "-r", "1").status == 0
    for option, value in (
        ("--rpc", "nowhere"),
        ("-ts", "a,b"),
        ("--engine", "vllm"),
        ("--llama-library", ""),
    ):
        assert run("bench", out, option, value).status == 2
    absent = run("bench", out, "--llama-library", tmp_path / "none.so")
    assert absent.status == 1 and "cannot be opened: No such file" in absent.err


@pytest.fixture(scope="module")
def rpc_servers() -> Iterator[list[str]]:
    """Two RPC servers on this machine; skips where no libllama with RPC is named."""
    library = os.environ.get("LLAMA_LIBRARY")
    if library is None or not has_rpc(load_library(Path(library))):
        pytest.skip("LLAMA_LIBRARY names no libllama with RPC; that of the package xllamacpp has none")
    servers, processes = [], []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as free:
            servers.append(f"127.0.0.1:{free.getsockname()[1]}")
        command = [sys.executable, str(ROOT / "tests/rpc_server.py"), library, servers[-1]]
        processes.append(subprocess.Popen(command))
    try:
        for server in servers:
            wait_for(server)
        yield servers
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait_for(server: str) -> None:
    host, port = server.split(":")
    for _ in range(200):
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError(f"{server} does not answer")


def test_two_rpc_servers_compute_what_this_machine_does(
    models: dict[str, Path], rpc_servers: list[str]
) -> None:
    found = []
    for options in ({}, {"rpc": rpc_servers, "gpu_layers": 99}):
        with LlamaModel(models["qwen3moe"], n_ctx=64, threads=2, **options) as model:
            sums = model.input_sums()
            found.append((model.sequence().evaluate(TOKENS, "all", sums=sums), sums.all()))
    (here, own), (there, remote) = found
    np.testing.assert_allclose(there, here, atol=1e-3)
    assert remote.keys() == own.keys()
    for name, (squares, counts) in own.items():
        np.testing.assert_array_equal(remote[name][1], counts)
        np.testing.assert_allclose(remote[name][0], squares, rtol=1e-3)


def test_a_mixture_at_the_command_line_of_our_own_runtime(tmp_path: Path, run: Run) -> None:
    """It has Fisher information, which the choice of types uses; no llama.cpp is needed."""
    source = write_architecture(tmp_path / "moe.gguf", "qwen3moe", vocabulary=True)
    text, imatrix, out = tmp_path / "text.txt", tmp_path / "i.gguf", tmp_path / "out.gguf"
    text.write_text(TEXT)
    options = ("-f", text, "-c", "64", "--chunks", "3")
    made = run("imatrix", source, *options, "--fisher-chunks", "2", "--expert-correlations", "-o", imatrix)
    assert made.status == 0 and "llama.cpp" not in made.err and "Fisher" not in made.err
    importance = load_importance(imatrix)
    assert {f"blk.1.ffn_{part}_exps.weight" for part in ("gate", "up", "down")} <= set(
        importance.fisher_names
    )
    best = run("quantize", source, out, "--imatrix", imatrix, "--like", "Q4_K_M", "--stock")
    assert best.status == 0 and "Fisher information" in best.out
    compared = run("compare", source, out, *options)
    assert compared.status == 0 and "llama.cpp" not in compared.err


@pytest.mark.parametrize("key", ["expert_shared_count", "expert_gating_func"])
def test_mixtures_with_options_that_we_do_not_run_are_left_to_llama_cpp(key: str, tmp_path: Path) -> None:
    pairs = {key: (2, q4hifi.formats.gguf_constants.GGUFValueType.UINT32)}
    path = write_runnable(tmp_path / "moe.gguf", "llama", experts=(4, 2), pairs=pairs)
    with q4hifi.open_model(path, n_ctx=64) as model:
        assert isinstance(model, LlamaModel)


# ---- how it fails --------------------------------------------------------------------------------


def test_tokens_and_texts_that_do_not_fit(example: LlamaModel) -> None:
    first = example.sequence()
    with pytest.raises(BadOptionError, match="300 more are too many for a context of 256"):
        first.evaluate(np.arange(300))
    with pytest.raises(BadOptionError, match="not all tokens are in the vocabulary"):
        first.evaluate([1, example.n_vocab])
    with pytest.raises(BadOptionError, match="at least one"):
        first.evaluate([])
    with pytest.raises(BadOptionError, match="cannot be cut to 3"):
        first.truncate(3)
    example.sequence().evaluate([1, 2])
    with pytest.raises(BadOptionError, match="has begun another text"):
        first.evaluate([1])
    with pytest.raises(UnsupportedModelError, match="no Fisher information"):
        example.fisher(np.arange(8))
    example.close()
    with pytest.raises(BadOptionError, match="the model is closed"):
        example.sequence().evaluate([1])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), q4hifi.NotFiniteError("bad")])
def test_an_error_while_inputs_are_taken_ends_the_evaluation(
    example: LlamaModel, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail(*_: Any) -> None:
        calls.append(1)
        raise error

    monkeypatch.setattr(q4hifi.InputSums, "add", fail)
    with pytest.raises(type(error)):
        example.sequence().evaluate(np.arange(20), "none", sums=example.input_sums())
    assert len(calls) == 1
    monkeypatch.undo()
    sums = example.input_sums()
    example.sequence().evaluate(np.arange(20), "none", sums=sums)
    assert {int(n) for _, counts in sums.all().values() for n in counts} == {20}


def test_models_that_llama_cpp_refuses(tmp_path: Path, models: dict[str, Path]) -> None:
    path = write_architecture(tmp_path / "odd.gguf", "olmoe")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"olmoe", b"olmox"))
    with pytest.raises(UnsupportedModelError, match=r"llama\.cpp does not load it: .*olmox"):
        LlamaModel(path)
    with pytest.raises(BadOptionError, match="`tensor_split` has 129 shares; give at most 128"):
        LlamaModel(models["olmoe"], tensor_split=[1.0] * 129)
    with pytest.raises(UnavailableError, match="built without RPC"):
        LlamaModel(models["olmoe"], rpc=["localhost:1"])


def test_libraries_that_are_no_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnavailableError, match="cannot be opened: No such file"):
        LlamaModel(EXAMPLE, library=tmp_path / "none.so")
    (tmp_path / "text.so").write_text("not a library")
    with pytest.raises(UnavailableError, match="cannot be loaded"):
        LlamaModel(EXAMPLE, library=tmp_path / "text.so")
    other = Path(str(q4hifi._core.__file__))
    with pytest.raises(UnavailableError, match="has no function"):
        LlamaModel(EXAMPLE, library=other)
    monkeypatch.setenv("LLAMA_LIBRARY", str(tmp_path / "gone.so"))
    with pytest.raises(UnavailableError, match="the variable LLAMA_LIBRARY names it"):
        LlamaModel(EXAMPLE)
    monkeypatch.delenv("LLAMA_LIBRARY")
    monkeypatch.setattr("q4hifi.engines.llama.library.find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="is not installed; pip install xllamacpp"):
        LlamaModel(EXAMPLE)


def test_another_layout_of_structs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lib = load_library(library_path())

    class Changed:
        """The library with other defaults."""

        def __getattr__(self, name: str) -> Any:
            return (lambda: Blob()) if name == "llama_context_default_params" else getattr(lib, name)

    assert struct_offsets(lib).cb_eval % 8 == 0
    with pytest.raises(UnavailableError, match="cb_eval may be at \\[\\]"):
        struct_offsets(Changed())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "problem"),
    [("raise SystemExit('wrong inputs')", "wrong inputs"), ("import os; os.abort()", "status -6")],
)
def test_a_library_that_does_not_pass_the_check_is_refused(
    code: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(self_test, "CHECK", "failing")
    monkeypatch.setattr(self_test, "_passed_file", lambda: tmp_path / "passed.json")
    with pytest.raises(UnavailableError, match=f"does not pass q4hifi's check .*{problem}"):
        self_test.checked_offsets.__wrapped__(library_path())
    assert not (tmp_path / "passed.json").exists()
    monkeypatch.undo()
    monkeypatch.setattr(self_test, "_passed_file", lambda: tmp_path / "passed.json")
    self_test.checked_offsets.__wrapped__(library_path())
    assert (tmp_path / "passed.json").exists()


def test_a_model_that_ggml_aborts_at_ends_with_a_message(tmp_path: Path) -> None:
    """A convolution in F16 breaks an assumption of ggml, which would end the process with a backtrace."""
    import architectures

    path = tmp_path / "aborting.gguf"
    code = (
        "import sys, numpy, q4hifi; m = q4hifi.LlamaModel(sys.argv[1], n_ctx=64)\n"
        "m.sequence().evaluate(numpy.arange(64))"
    )
    is_small = architectures._is_small
    architectures._is_small = lambda name: is_small(name) and "conv" not in name
    try:
        write_architecture(path, "lfm2")
    finally:
        architectures._is_small = is_small
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {path}: llama.cpp cannot go on: ")
    assert done.stderr.count("\n") == 1


def test_a_matrix_of_a_type_that_ggml_cannot_multiply_by(tmp_path: Path) -> None:
    """ggml would end the process by a segmentation fault."""
    path, name = tmp_path / "integers.gguf", "blk.0.attn_q.weight"
    pairs = [("general.architecture", "llama", GGUFValueType.STRING)]
    write_stored(path, {name: ("I8", (256, 256))}, pairs=pairs)
    with pytest.raises(UnsupportedModelError, match=f"{name} is a matrix of I8, .* to F16, BF16 or F32"):
        q4hifi.LlamaModel(path)


# ---- sums ----------------------------------------------------------------------------------------


def test_sums_of_inputs_from_arrays() -> None:
    rows = np.random.default_rng(1).standard_normal((6, 40)).astype(np.float32)
    experts = np.array([[0, 1], [1, 2], [2, 0], [0, 1], [-1, 2], [1, 0]])
    sums = q4hifi.InputSums(40, 3, 3, threads=2)
    sums.add(rows, experts)
    for expert in range(3):
        mine = rows[(experts == expert).any(1)].astype(np.float64)
        assert sums.counts[expert] == len(mine)
        np.testing.assert_allclose(sums.squares[expert], (mine**2).sum(0), rtol=1e-6)
        pairs = (mine.T @ mine)[np.triu_indices(40, 1)]
        np.testing.assert_allclose(sums.products[expert], pairs, atol=1e-5)
    other = sums.empty()
    other.take(sums)
    assert other.counts.tolist() == [4, 4, 3] and sums.counts.tolist() == [0, 0, 0]
    single = q4hifi.InputSums(40)
    single.add(rows)
    assert single.counts.tolist() == [6] and single.products.shape == (1, 780)
    for bad in (rows[0], rows[:, :39]):
        with pytest.raises(BadOptionError, match="must have the shape"):
            single.add(bad)
    with pytest.raises(BadOptionError, match="`matrices` is missing"):
        sums.add(rows)
    with pytest.raises(BadOptionError, match="not there"):
        sums.add(rows, np.full(6, 3))
    with pytest.raises(BadOptionError, match="different shapes"):
        single.take(sums)
