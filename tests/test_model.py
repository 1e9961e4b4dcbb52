"""Models run: their logits against llama.cpp's, sequences, sampling, and what is refused."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGUFValueType

import q4hifi
from llama_oracle import Floats, distance, divergence, llama_logits, llama_samples
from q4hifi.errors import BadFileError, BadOptionError, UnsupportedModelError
from q4hifi.gguf_io.header import header_bytes
from q4hifi.gguf_io.reader import GgufFile
from synthetic import EXAMPLE, ROOT, random_weights, write_model, write_runnable

U32, F32, BOOL, STRING = (
    GGUFValueType.UINT32,
    GGUFValueType.FLOAT32,
    GGUFValueType.BOOL,
    GGUFValueType.STRING,
)

TEXT = np.random.default_rng(5).integers(0, 320, 200)
"""Tokens for models of 320, more than three blocks of the cache and no whole number of them."""

NEAR = 1e-3
"""Of the logits' range: what the engines may differ by on weights that are not quantized."""


# ---- against llama.cpp ---------------------------------------------------------------------------

QUERY_NORMS = ("attn_q_norm", "attn_k_norm")
POST_NORMS = ("post_attention_norm", "post_ffw_norm")
YARN: Mapping[str, tuple[Any, GGUFValueType]] = {
    "rope.scaling.type": ("yarn", STRING),
    "rope.scaling.factor": (4.0, F32),
    "rope.scaling.original_context_length": (32, U32),
}
VARIANTS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tied": True, "heads": (8, 8)}),
    "llama 3": ("llama", {"factors": np.geomspace(1, 8, 16).astype(np.float32)}),
    "llama, linear": ("llama", {"pairs": {"rope.scaling.factor": (2.0, F32)}}),
    "llama, yarn": ("llama", {"pairs": YARN}),
    "llama, biases": ("llama", {"biases": ("attn_q", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}),
    "mistral3": (
        "mistral3",
        {
            "pairs": {
                **YARN,
                "rope.scaling.yarn_log_multiplier": (1.0, F32),
                "rope.scaling.yarn_beta_fast": (8.0, F32),
                "attention.temperature_scale": (0.1, F32),
            }
        },
    ),
    "qwen2": ("qwen2", {"biases": ("attn_q", "attn_k", "attn_v"), "pairs": {"rope.freq_base": (1e6, F32)}}),
    "qwen3": ("qwen3", {"norms": QUERY_NORMS, "head_size": 64}),
    "qwen3moe": ("qwen3moe", {"norms": QUERY_NORMS, "head_size": 64, "experts": (8, 2)}),
    "qwen3moe, many experts": ("qwen3moe", {"norms": QUERY_NORMS, "n_ff": 64, "experts": (70, 5)}),
    "qwen3moe, all experts used": ("qwen3moe", {"norms": QUERY_NORMS, "experts": (3, 3)}),
    "qwen3moe, one expert": ("qwen3moe", {"norms": QUERY_NORMS, "experts": (1, 1)}),
    "llama, experts": ("llama", {"experts": (8, 2)}),
    "gemma3": (
        "gemma3",
        {
            "n_layer": 7,
            "tied": True,
            "norms": (*QUERY_NORMS, *POST_NORMS),
            "pairs": {"attention.sliding_window": (70, U32), "rope.freq_base": (1e6, F32)},
        },
    ),
    "gemma3, other windows": (
        "gemma3",
        {
            "heads": (4, 1),
            "head_size": 80,
            "norms": (*QUERY_NORMS, *POST_NORMS),
            "pairs": {
                "attention.sliding_window": (32, U32),
                "attention.sliding_window_pattern": (2, U32),
                "rope.freq_base_swa": (5000.0, F32),
                "rope.scaling.factor": (8.0, F32),
                "final_logit_softcapping": (8.0, F32),
            },
        },
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_architectures_give_llama_cpps_logits(variant: str, tmp_path: Path) -> None:
    architecture, options = VARIANTS[variant]
    path = write_runnable(tmp_path / "model.gguf", architecture, **options)
    ours = q4hifi.Model(path).logits(TEXT)
    assert distance(ours, llama_logits(path, TEXT.tolist())) < NEAR


@pytest.fixture(scope="module")
def text() -> list[int]:
    """Tokens of the example model that follow each other as in a text: what it writes itself."""
    model = q4hifi.Model(EXAMPLE)
    return [5, *model.generate_tokens([5], n=200, seed=1)]


@pytest.mark.parametrize("kind", ["F16", "F32", "BF16"])
def test_numbers_give_llama_cpps_logits(kind: str, text: list[int], tmp_path: Path) -> None:
    path = EXAMPLE
    if kind != "F16":
        path = tmp_path / "model.gguf"
        q4hifi.dequantize_file(EXAMPLE, path, kind)
    ours = q4hifi.Model(path).logits(text)
    # llama.cpp rounds activations to bfloat16 where the weights are
    assert distance(ours, llama_logits(path, text)) < (NEAR if kind != "BF16" else 10 * NEAR)


QUANTIZED = ["Q2_K", "Q3_K_M", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K_M", "Q5_K_M", "Q6_K"]
QUANTIZED += ["IQ4_NL", "IQ4_XS"]


@pytest.mark.parametrize("recipe", QUANTIZED)
def test_quantized_models_diverge_little_from_llama_cpps(
    recipe: str, text: list[int], short_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    q4hifi.quantize_file(short_model, path, recipe)
    ours = q4hifi.Model(path).logits(text)
    assert divergence(llama_logits(path, text), ours) < 0.002


@pytest.mark.parametrize("layout", ["split", "fork"])
def test_q4_hifi_runs_as_llama_cpp_runs_its_export(layout: str, text: list[int], tmp_path: Path) -> None:
    path, exported = tmp_path / "hifi.gguf", tmp_path / "f16.gguf"
    q4hifi.quantize_file(EXAMPLE, path, "Q4_HIFI", layout=layout)
    q4hifi.export_file(path, exported, as_="f16")
    ours = q4hifi.Model(path).logits(text)
    assert divergence(llama_logits(exported, text), ours) < 0.002


def test_q4_hifi_embeddings_are_looked_up_with_their_outliers(text: list[int], tmp_path: Path) -> None:
    path, exported = tmp_path / "hifi.gguf", tmp_path / "f16.gguf"
    types = [("token_embd", "Q4_HIFI")]
    q4hifi.quantize_file(EXAMPLE, path, "Q4_HIFI", tensor_types=types)
    with q4hifi.open(path) as model:
        assert model.tensors["token_embd.weight"].type.name == "Q4_HIFI"
    q4hifi.export_file(path, exported, as_="f16")
    assert divergence(llama_logits(exported, text), q4hifi.Model(path).logits(text)) < 0.002


# ---- sequences -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> q4hifi.Model:
    return q4hifi.Model(EXAMPLE, threads=2)


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> q4hifi.Model:
    """A model whose local layers forget what their window of 20 has left."""
    pairs = {"attention.sliding_window": (20, U32), "attention.sliding_window_pattern": (2, U32)}
    path = tmp_path_factory.mktemp("windowed") / "model.gguf"
    write_runnable(path, "gemma3", norms=(*QUERY_NORMS, *POST_NORMS), pairs=pairs)
    return q4hifi.Model(path)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixture") / "model.gguf"
    return write_runnable(path, "qwen3moe", norms=QUERY_NORMS, n_ff=128, experts=(8, 2))


@pytest.mark.parametrize("pieces", [[1] * 200, [64, 64, 72], [63, 1, 1, 135], [150, 50]])
@pytest.mark.parametrize("name", ["model", "windowed"])
def test_pieces_of_a_text_give_the_logits_of_the_whole(
    pieces: list[int], name: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    whole = model.logits(TEXT)
    sequence = model.sequence()
    parts = [sequence.evaluate(part, "all") for part in np.split(TEXT, np.cumsum(pieces)[:-1])]
    assert sequence.length == 200
    assert distance(np.concatenate(parts), whole) < 1e-4


def test_only_the_logits_asked_for_are_returned(model: q4hifi.Model) -> None:
    whole = model.logits(TEXT)
    for wanted, rows in (("last", whole[-1]), (range(3, 90), whole[3:90]), (range(5, 5), whole[5:5])):
        got = model.sequence().evaluate(TEXT, wanted)  # type: ignore[arg-type]
        assert got is not None and got.dtype == np.float32 and got.shape == rows.shape
        assert np.allclose(got, rows, atol=1e-4)
    sequence = model.sequence()
    assert sequence.evaluate(TEXT[:150], "none") is None
    assert np.allclose(sequence.evaluate(TEXT[150:]), whole[-1], atol=1e-3)


def test_sequences_do_not_disturb_each_other(model: q4hifi.Model) -> None:
    one, other = model.sequence(), model.sequence()
    for token in TEXT[:20]:
        one.evaluate([token])
        other.evaluate([token + 1])
    assert np.array_equal(one.evaluate(TEXT[20:40], "all"), _fresh(model, TEXT[:20], TEXT[20:40]))
    one.reset()
    assert one.length == 0
    assert np.array_equal(one.evaluate(TEXT, "all"), model.logits(TEXT))


@pytest.mark.parametrize("cut", [1, 63, 64, 65, 128, 199, 200])
def test_a_text_that_was_cut_goes_on_as_if_it_had_never_been_longer(model: q4hifi.Model, cut: int) -> None:
    sequence, short = model.sequence(), model.sequence()
    for other in (sequence, short):
        other.evaluate(TEXT[:cut], "none")
    if cut < 200:
        sequence.evaluate(TEXT[cut:], "none")
    sequence.truncate(cut)
    assert sequence.length == cut
    assert np.array_equal(sequence.evaluate(TEXT[::-1][:50], "all"), short.evaluate(TEXT[::-1][:50], "all"))


def test_a_text_can_be_cut_to_nothing_but_not_made_longer(model: q4hifi.Model) -> None:
    sequence = model.sequence()
    sequence.truncate(0)
    sequence.evaluate(TEXT[:70], "none")
    for length in (71, -1):
        with pytest.raises(BadOptionError, match=f"a text of 70 tokens cannot be cut to {length}$"):
            sequence.truncate(length)
    sequence.truncate(0)
    assert sequence.length == 0
    assert np.array_equal(sequence.evaluate(TEXT, "all"), model.logits(TEXT))


def test_what_a_window_has_left_does_not_come_back(windowed: q4hifi.Model) -> None:
    """Of 200 tokens a window of 20 has left two whole blocks of 64: tokens from 128 on are there."""
    sequence = windowed.sequence()
    sequence.evaluate(TEXT, "none")
    for length in (1, 100, 146):
        with pytest.raises(
            BadOptionError, match=rf"cut to {length}: this model.s sliding window .*reset\(\)"
        ):
            sequence.truncate(length)
        assert sequence.length == 200
    sequence.truncate(147)  # the next token sees those from 128 on
    assert distance(sequence.evaluate(TEXT[147:], "all"), windowed.logits(TEXT)[147:]) < 1e-4
    sequence.truncate(0)
    assert np.array_equal(sequence.evaluate(TEXT, "all"), windowed.logits(TEXT))


def _fresh(model: q4hifi.Model, before: np.ndarray, after: np.ndarray) -> Floats:
    sequence = model.sequence()
    for token in before:
        sequence.evaluate([token])
    logits = sequence.evaluate(after, "all")
    assert logits is not None
    return logits


@pytest.mark.usefixtures("many_cores")
def test_a_mixtures_results_do_not_depend_on_threads(mixture: Path) -> None:
    one, three = (q4hifi.Model(mixture, threads=n) for n in (1, 3))
    assert np.array_equal(one.logits(TEXT), three.logits(TEXT))
    name = "blk.0.ffn_down_exps.weight"
    assert np.array_equal(one.fisher(TEXT[:40])[name], three.fisher(TEXT[:40])[name])


def test_a_mixture_read_token_by_token_has_the_logits_of_the_whole(mixture: Path) -> None:
    model = q4hifi.Model(mixture)
    whole, sequence = model.logits(TEXT[:40]), model.sequence()
    parts = [sequence.evaluate([token], "all") for token in TEXT[:40]]
    assert distance(np.concatenate(parts), whole) < 1e-4


@pytest.mark.usefixtures("many_cores")
def test_logits_do_not_depend_on_threads(text: list[int]) -> None:
    one, three = (q4hifi.Model(EXAMPLE, threads=n).logits(text) for n in (1, 3))
    assert np.array_equal(one, three)


def test_several_threads_may_use_a_model(model: q4hifi.Model) -> None:
    texts = [np.roll(TEXT, i) for i in range(6)]
    expected = [model.logits(t) for t in texts]
    got: list[Floats | None] = [None] * len(texts)
    shared = model.sequence()

    def work(i: int) -> None:
        got[i] = model.logits(texts[i])
        for token in texts[i][:10]:
            shared.evaluate([token], "none")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shared.length == 60
    assert all(g is not None and np.array_equal(g, e) for g, e in zip(got, expected, strict=True))


def test_ctrl_c_ends_an_evaluation(tmp_path: Path) -> None:
    """Whole batches remain, and the sequence can go on."""
    path = write_runnable(tmp_path / "model.gguf", "llama", n_ctx=1 << 20)
    model = q4hifi.Model(path, threads=1)
    sequence = model.sequence()
    killer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    killer.start()
    with pytest.raises(KeyboardInterrupt):
        sequence.evaluate(np.resize(TEXT, 1 << 20), "none")
    assert sequence.length % 512 == 0 and sequence.length < 1 << 19
    sequence.evaluate(TEXT)
    sequence.reset()
    assert np.array_equal(sequence.evaluate(TEXT, "all"), model.logits(TEXT))


# ---- sampling ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.7, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
        {"top_k": 7},
        {"top_k": 0, "top_p": 0.6},
        {"top_k": 0, "top_p": 1.0, "min_p": 0.2},
        {"temperature": 0.0},
    ],
)
def test_the_sampler_chooses_as_llama_cpps(options: dict[str, Any]) -> None:
    options = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "seed": 4711} | options
    logits = 3 * np.random.default_rng(8).standard_normal(2000).astype(np.float32)
    sampler = q4hifi.Sampler(**options)
    assert [sampler.sample(logits) for _ in range(50)] == llama_samples(logits, 50, **options)


def test_generation_is_the_same_for_the_same_seed(model: q4hifi.Model) -> None:
    def tokens(**options: Any) -> list[int]:
        return list(model.generate_tokens([1, 2, 3], n=20, **options))

    assert tokens(seed=1) == tokens(seed=1) != tokens(seed=2)
    greedy = tokens(temperature=0)
    assert len(greedy) == 20
    text = [1, 2, 3]
    for token in greedy:
        assert token == model.logits(text)[-1].argmax()
        text.append(token)
    assert tokens(temperature=0, stop={greedy[5]}) == greedy[: greedy.index(greedy[5])]
    assert len(list(model.generate_tokens(TEXT, seed=1))) == model.n_ctx - 200 + 1


# ---- sums of inputs ------------------------------------------------------------------------------


def first_inputs() -> npt.NDArray[np.float64]:
    """What the first layer's attention is given: the normed embeddings."""
    with q4hifi.open(EXAMPLE) as file:
        embeddings = file["token_embd.weight"].dequantize()[TEXT]
        norm = file["blk.0.attn_norm.weight"].dequantize()
    rows = embeddings / np.sqrt((embeddings**2).mean(-1, keepdims=True) + 1e-6) * norm
    return rows.astype(np.float64)


def test_sums_are_those_of_the_matrices_inputs(model: q4hifi.Model) -> None:
    sums = model.input_sums()
    for part in np.split(TEXT, 4):
        model.sequence().evaluate(part, "none", sums=sums)
    with q4hifi.open(EXAMPLE) as file:
        matrices = {n: (1, t.row_length) for n, t in file.tensors.items() if len(t.shape) > 1}
    rows = first_inputs()
    for name in ("attn_q", "attn_k", "attn_v"):
        squares, counts = sums.all()[f"blk.0.{name}.weight"]
        assert counts.tolist() == [200]
        assert np.allclose(squares[0], (rows**2).sum(0), rtol=1e-4)
    every = sums.all()
    assert {name: squares.shape for name, (squares, _) in every.items()} == matrices
    # of every token, also those of the embeddings, which serve as output: no logits were asked for
    assert {int(count) for _, counts in every.values() for count in counts} == {200}
    assert all((squares > 0).any() for n, (squares, _) in every.items() if n != "token_embd.weight")
    assert set(every) == set(model.matrices)


def test_products_of_inputs_are_summed(model: q4hifi.Model) -> None:
    sums = model.input_sums()
    for part in np.split(TEXT, 4):
        model.sequence().evaluate(part, "none", sums=sums)
    rows, found = first_inputs(), sums.products()
    (products,) = found["blk.0.attn_q.weight"]
    expected = (rows.T @ rows)[np.triu_indices(rows.shape[1], 1)]
    assert np.allclose(products, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    roles = {name.split(".")[2] for name in found if name.startswith("blk.")}
    assert roles == {"attn_q", "attn_output", "ffn_gate", "ffn_down"}, "one for each input"
    assert sums.same_inputs()["blk.2.attn_v.weight"] == "blk.2.attn_q.weight"


def test_products_are_summed_of_all_rows_that_blocks_can_hold(tmp_path: Path) -> None:
    path = write_runnable(tmp_path / "model.gguf", "llama", n_layer=1, n_embd=288, n_ff=2560, heads=(7, 1))
    model = q4hifi.Model(path, threads=2)
    sums = model.input_sums()
    model.sequence().evaluate(np.arange(20), "none", sums=sums)
    names = {"blk.0.attn_q.weight", "blk.0.attn_output.weight", "blk.0.ffn_gate.weight", "output.weight"}
    assert set(sums.products()) == names, "but of no ffn_down as long as that"


# ---- what is refused -----------------------------------------------------------------------------


NAMES = ("blk.0.attn_q.weight", "blk.3.attn_v.weight", "blk.5.ffn_down.weight", "token_embd.weight")


@pytest.mark.parametrize("name", NAMES)
def test_fisher_information_tells_the_divergence(model: q4hifi.Model, name: str) -> None:
    tokens = np.array(model.tokenize((ROOT / "tests/golden/text.txt").read_text())[:256])
    told = sum(float(model.fisher(tokens, first=128, seed=seed)[name].sum()) for seed in range(4)) / 4
    with q4hifi.open(EXAMPLE) as file:
        weights = file[name].dequantize()
    noise = np.random.default_rng(1).uniform(-1, 1, weights.shape) * 3**0.5
    size = 0.05 * np.sqrt(np.square(weights).mean(axis=-1, keepdims=True))
    changed = model.replaced(name, q4hifi.quantize((weights + noise * size).astype(np.float32), "F32"))
    old, new = (np.float64(m.logits(tokens)[128:]) for m in (model, changed))
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (old, new))
    divergence = float((np.exp(p) * (p - q)).sum())
    assert divergence == pytest.approx(0.5 * told * 0.05**2, rel=0.4)


@pytest.mark.parametrize("name", ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"])
def test_fisher_information_of_experts_tells_the_divergence(name: str, mixture: Path) -> None:
    """In the last layer, after which no router can choose other experts."""
    model, name = q4hifi.Model(mixture), f"blk.2.{name}.weight"
    told = sum(float(model.fisher(TEXT, first=100, seed=seed)[name].sum()) for seed in range(4)) / 4
    with q4hifi.open(mixture) as file:
        weights = file[name].dequantize()
    noise = np.random.default_rng(1).standard_normal(weights.shape)
    size = 0.05 * np.sqrt(np.square(weights).mean(axis=-1, keepdims=True))
    changed = model.replaced(name, q4hifi.quantize((weights + noise * size).astype(np.float32), "F32"))
    old, new = (np.float64(m.logits(TEXT)[100:]) for m in (model, changed))
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (old, new))
    divergence = float((np.exp(p) * (p - q)).sum())
    assert divergence == pytest.approx(0.5 * told * 0.05**2, rel=0.4)


def test_fisher_information_of_a_mixture_is_of_all_that_is_quantized(mixture: Path) -> None:
    model = q4hifi.Model(mixture)
    found = model.fisher(TEXT[:64], first=32)
    assert set(found) == set(model.matrices) and "blk.0.ffn_gate_inp.weight" not in found
    assert found["blk.1.ffn_down_exps.weight"].shape == (128,)
    assert all(columns.sum() > 0 for columns in found.values())


def test_fisher_information_is_of_all_matrices_and_of_a_draw(model: q4hifi.Model) -> None:
    tokens = model.tokenize((ROOT / "tests/golden/text.txt").read_text())[:64]
    found = model.fisher(tokens, first=32, seed=1)
    with q4hifi.open(EXAMPLE) as file:
        matrices = {name: t for name, t in file.tensors.items() if len(t.shape) == 2}
    assert {name: columns.shape for name, columns in found.items()} == {
        name: (tensor.row_length,) for name, tensor in matrices.items()
    }
    assert all((columns >= 0).all() for columns in found.values())
    again, other = (model.fisher(tokens, first=32, seed=seed) for seed in (1, 2))
    name = "blk.0.ffn_up.weight"
    assert (again[name] == found[name]).all() and (other[name] != found[name]).any()
    for wrong in ({"first": 64}, {"first": -1}, {"seed": -1}):
        with pytest.raises(BadOptionError):
            model.fisher(tokens, **wrong)
    with pytest.raises(BadOptionError, match="at most 512"):
        model.fisher([1] * 513)


def test_options_that_do_not_fit_are_refused(model: q4hifi.Model) -> None:
    for tokens in ([], [[1, 2]], [1.5], [-1], [model.n_vocab], ["a"]):
        with pytest.raises(BadOptionError, match="token"):
            model.logits(tokens)
    for wanted in ("first", range(0, 9), range(0, 3, 2)):
        with pytest.raises(BadOptionError, match="logits"):
            model.sequence().evaluate([1, 2, 3], wanted)  # type: ignore[arg-type]
    for option in ({"temperature": -1}, {"top_p": 1.5}, {"min_p": -0.1}, {"top_k": -1}, {"seed": 1 << 32}):
        with pytest.raises(BadOptionError, match=next(iter(option))):
            q4hifi.Sampler(**option)  # type: ignore[arg-type]
    with pytest.raises(BadOptionError, match="`n_ctx` is 0"):
        q4hifi.Model(EXAMPLE, n_ctx=0)
    with pytest.raises(BadOptionError, match="`threads` is -1"):
        q4hifi.Model(EXAMPLE, threads=-1)


def test_the_context_has_an_end(model: q4hifi.Model) -> None:
    small = q4hifi.Model(EXAMPLE, n_ctx=10)
    sequence = small.sequence()
    sequence.evaluate(range(10))
    with pytest.raises(BadOptionError, match="10 tokens and 1 more are too many for a context of 10"):
        sequence.evaluate([1])
    assert model.n_ctx == 256


def test_an_unknown_architecture_is_refused_with_what_is_supported(tmp_path: Path) -> None:
    path = write_runnable(tmp_path / "model.gguf", "falcon")
    with pytest.raises(UnsupportedModelError, match=r"model\.gguf: the architecture is 'falcon'.*llama, mis"):
        q4hifi.Model(path)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"experts": (4, 2), "pairs": {"expert_shared_count": (1, U32)}},
            "mixture of experts with llama.*shar",
        ),
        (
            {"experts": (4, 2), "pairs": {"expert_gating_func": (2, U32)}},
            "mixture of experts with .*func = 2",
        ),
        ({"experts": (4, 2), "pairs": {"expert_weights_scale": (2.5, F32)}}, "mixture of .*scale = 2.5"),
        ({"experts": (4, 2), "pairs": {"expert_group_count": (2, U32)}}, "mixture of experts with .*group"),
        ({"pairs": {"expert_count": (4, U32)}}, "expert_used_count is missing"),
        ({"experts": (4, 2), "pairs": {"expert_count": (0, U32)}}, r"ffn_\w+\.weight: .*no such tensor"),
        ({"experts": (4, 2), "biases": ("ffn_gate_inp",)}, r"ffn_gate_inp\.bias: .*does not know"),
        (
            {"pairs": {"rope.scaling.type": ("longrope", STRING)}},
            "rope.scaling.type is 'longrope'; supported are none",
        ),
        ({"pairs": {"attention.head_count": ([8, 8, 4], GGUFValueType.ARRAY)}}, r"head_count is \[8, 8, 4\]"),
        ({"pairs": {"attention.value_length": (64, U32)}}, "differ in length"),
        ({"pairs": {"attention.layer_norm_rms_epsilon": ("1", STRING)}}, "epsilon is '1'"),
        ({"norms": QUERY_NORMS}, r"tensor blk\.0\.attn_q_norm\.weight: .*have no such tensor"),
        ({"norms": ("attn_extra",)}, r"tensor blk\.0\.attn_extra\.weight: .*does not know this tensor"),
    ],
)
def test_what_cannot_be_run_is_refused(options: dict[str, Any], match: str, tmp_path: Path) -> None:
    path = write_runnable(tmp_path / "model.gguf", "llama", **options)
    with pytest.raises(UnsupportedModelError, match=match) as raised:
        q4hifi.Model(path)
    assert "model.gguf: " in str(raised.value)


@pytest.mark.parametrize(
    ("pairs", "match"),
    [
        ({"embedding_length": (512, U32)}, r"tensor .*: it has \d+ rows of 256, and not"),
        ({"block_count": (4, U32)}, r"there is no tensor blk\.3\.attn_norm\.weight.*supported are"),
        ({"block_count": (2, U32)}, r"tensor blk\.2\.attn_norm\.weight"),
        ({"attention.head_count_kv": (3, U32)}, "8 heads cannot share 3"),
        ({"rope.dimension_count": (7, U32)}, "7 rotary dimensions in heads"),
        ({"attention.head_count": (0, U32)}, "n_head is 0"),
        ({"embedding_length": (1 << 31, U32)}, "n_embd is"),
        ({"expert_used_count": (5, U32)}, "5 experts are used of 4"),
        ({"expert_used_count": (0, U32)}, "0 experts are used of 4"),
        ({"expert_count": (1 << 31, U32)}, "experts are used of"),
        ({"expert_count": (5, U32)}, r"ffn_gate_inp\.weight: it has 4 rows of 256, and not 5"),
        ({"feed_forward_length": (256, U32)}, r"ffn_gate_exps\.weight: it has 2048 rows"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(
    pairs: dict[str, Any], match: str, tmp_path: Path
) -> None:
    experts = (4, 2) if any(word in match for word in ("expert", "exps", "_inp")) else None
    path = write_runnable(tmp_path / "model.gguf", "llama", experts=experts, pairs=pairs)
    with pytest.raises((BadFileError, UnsupportedModelError), match=match):
        q4hifi.Model(path)


def test_a_mixture_of_another_architecture_is_refused(tmp_path: Path) -> None:
    path = write_runnable(tmp_path / "model.gguf", "qwen2", experts=(4, 2))
    with pytest.raises(UnsupportedModelError, match=r"a mixture of experts, which .*only of llama, qwen3moe"):
        q4hifi.Model(path)


def test_experts_are_stacked_as_the_metadata_say(tmp_path: Path) -> None:
    """Four experts of 512 have as many rows as eight of 256, but they are others."""
    path = write_runnable(tmp_path / "model.gguf", "qwen3moe", norms=QUERY_NORMS, experts=(4, 2))
    name, odd = "blk.1.ffn_up_exps.weight", tmp_path / "odd.gguf"
    with GgufFile.open(path) as model:
        tensors = [
            replace(tensor, shape=(256, 256, 8)) if tensor.name == name else tensor
            for tensor in model.tensors.values()
        ]
        data = b"".join(model.read(tensor).tobytes() for tensor in model.tensors.values())
        odd.write_bytes(header_bytes(model.metadata, tensors, 32) + data)
    with pytest.raises(BadFileError, match=r"blk\.1\.ffn_up_exps\.weight: it has matrices for 8 experts"):
        q4hifi.Model(odd)


@pytest.mark.parametrize("gone", ["blk.1.ffn_down.weight", "output_norm.weight", "token_embd.weight"])
def test_a_missing_tensor_is_named(gone: str, tmp_path: Path) -> None:
    with GgufFile.open(write_runnable(tmp_path / "whole.gguf", "llama")) as model:
        tensors = [tensor for name, tensor in model.tensors.items() if name != gone]
        data = b"".join(model.read(tensor).tobytes() for tensor in tensors)
        path = tmp_path / "part.gguf"
        path.write_bytes(header_bytes(model.metadata, tensors, 32) + data)
    with pytest.raises((BadFileError, UnsupportedModelError), match=gone.replace(".", r"\.")):
        q4hifi.Model(path)


def test_a_file_that_is_no_language_model_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "other.gguf", {"w": random_weights(4, 256)})
    with pytest.raises(UnsupportedModelError, match=r"other\.gguf: tensor token_embd\.weight: .*supported"):
        q4hifi.Model(path)
    with pytest.raises(BadFileError, match="No such file"):
        q4hifi.Model(tmp_path / "absent.gguf")


def test_the_file_may_be_closed_and_gone(model: q4hifi.Model, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(EXAMPLE.read_bytes())
    short = q4hifi.Model(path)
    path.unlink()
    assert np.array_equal(short.logits(TEXT), model.logits(TEXT))
