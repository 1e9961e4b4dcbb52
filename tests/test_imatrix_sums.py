"""Importance matrices that we make: files in both forms, sums of several, statistics, collection."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import q4hifi
from command import Run
from q4hifi import BadFileError, BadOptionError, ImportanceSums, NotFiniteError, load_importance
from q4hifi.allocation.sensitivities import DEFAULT_SOURCE, FISHER_SOURCE
from q4hifi.imatrix.statistics import layer_statistics, tensor_statistics
from q4hifi.imatrix.sums import DAT, FORMS, GGUF, ColumnSums
from stand_ins import ToyModel, ToySums, toy
from synthetic import EXAMPLE, ROOT, names_in, random_sums, read_tensors, write_imatrix

GOLDEN = json.loads((ROOT / "tests/golden/llama_evaluation.json").read_text())
TEXT = (ROOT / "tests/golden/text.txt").read_text().removesuffix("\n")
DENSE, EXPERTS = "blk.0.attn_v.weight", "blk.1.ffn_down_exps.weight"


def sums(seed: int = 0, chunks: int = 7) -> ImportanceSums:
    """A dense tensor, and one of three experts, the last of which saw nothing."""
    counts = [512.0 * chunks, 300.0, 0.0]
    tensors = {
        EXPERTS: ColumnSums(random_sums(3, 8, counts, seed=seed), np.array(counts, np.float32)),
        DENSE: ColumnSums(random_sums(1, 4, [512 * chunks], seed=seed + 1), np.float32([512 * chunks])),
    }
    return ImportanceSums(tensors, ("texts/some.txt",), 512)


# ---- files ---------------------------------------------------------------------------------------


def test_gguf_files_are_those_of_the_gguf_package(tmp_path: Path) -> None:
    made = sums()
    made.save(tmp_path / "ours.gguf")
    entries = {name: (made.tensors[name].squares, made.tensors[name].counts) for name in (DENSE, EXPERTS)}
    write_imatrix(tmp_path / "theirs.gguf", entries, dataset="texts/some.txt", chunks=7)
    ours, theirs = (read_tensors(tmp_path / f"{name}.gguf") for name in ("ours", "theirs"))
    assert list(ours) == [DENSE + ".in_sum2", DENSE + ".counts", EXPERTS + ".in_sum2", EXPERTS + ".counts"]
    assert {name: t.data for name, t in ours.items()} == {name: t.data for name, t in theirs.items()}
    # ggml drops trailing dimensions of 1, which the gguf package keeps
    assert [t.shape for t in ours.values()] == [(4,), (1,), (8, 3), (1, 3)]


@pytest.mark.parametrize("form", FORMS)
def test_what_was_written_is_read(tmp_path: Path, form: str) -> None:
    made = sums()
    made.save(tmp_path / "imatrix", form=form)
    read = load_importance(tmp_path / "imatrix")
    assert read.names == (DENSE, EXPERTS)
    assert read.datasets == ("texts/some.txt",)
    assert read.chunk_count == 7
    assert read.metadata()[-1][1] == 7
    assert read.inputs(DENSE, 4) is None, "it knows no correlations"
    np.testing.assert_allclose(read.weights(DENSE, 4, 1), made.tensors[DENSE].means, rtol=1e-6)
    experts = read.weights(EXPERTS, 8, 3)
    assert experts is not None
    np.testing.assert_allclose(experts[:2], made.tensors[EXPERTS].means[:2], rtol=1e-6)
    np.testing.assert_array_equal(experts[2], 1)
    again = ImportanceSums.of(read)
    assert (again.chunk_size, again.chunk_count) == (512, 7)
    np.testing.assert_allclose(again.tensors[DENSE].squares, made.tensors[DENSE].squares, rtol=1e-6)
    assert names_in(tmp_path) == {"imatrix"}


def test_the_older_form_to_the_byte(tmp_path: Path) -> None:
    unseen = ColumnSums(np.float32([[0]]), np.float32([0]))
    tensors = {"b": ColumnSums(np.float32([[8, 16]]), np.float32([20])), "a": unseen}
    ImportanceSums(tensors, ("t",), 8).save(tmp_path / "m.dat", form=DAT)
    expected = b"".join(
        [
            *(n.to_bytes(4, "little") for n in (1, 1)),
            b"b",
            *(n.to_bytes(4, "little") for n in (3, 2)),  # 20 tokens are begun chunks of 8
            np.float32([8 / 20 * 3, 16 / 20 * 3]).tobytes(),
            *(n.to_bytes(4, "little") for n in (2, 1)),
            b"t",
        ]
    )
    assert (tmp_path / "m.dat").read_bytes() == expected


@pytest.mark.parametrize("form", FORMS)
def test_files_are_not_replaced_unasked(tmp_path: Path, form: str) -> None:
    path = tmp_path / "imatrix"
    path.write_text("mine")
    with pytest.raises(BadOptionError, match="exists already"):
        sums().save(path, form=form)
    with pytest.raises(BadOptionError, match="is the source"):
        sums().save(path, form=form, overwrite=True, sources=[path])
    assert path.read_text() == "mine"
    sums().save(path, form=form, overwrite=True)
    assert len(load_importance(path)) == 2


def test_nothing_to_write_and_unknown_forms(tmp_path: Path) -> None:
    with pytest.raises(BadOptionError, match="nothing to write"):
        ImportanceSums({}, (), 512).save(tmp_path / "m.gguf")
    with pytest.raises(BadOptionError, match="unknown form 'csv'"):
        sums().save(tmp_path / "m.gguf", form="csv")


def test_fisher_information_is_kept_beside(tmp_path: Path) -> None:
    fisher = {DENSE: ColumnSums(np.float32([[1, 2, 3, 6]]), np.float32([4]))}
    made = replace(sums(), fisher=fisher)
    made.save(tmp_path / "imatrix.gguf")
    tensors = read_tensors(tmp_path / "imatrix.gguf")
    assert list(tensors)[-2:] == [DENSE + ".fisher", DENSE + ".fisher_counts"]
    read = load_importance(tmp_path / "imatrix.gguf")
    assert read.names == (DENSE, EXPERTS) and read.fisher_names == (DENSE,)
    np.testing.assert_array_equal(read.fisher(DENSE, 4), np.float32([0.25, 0.5, 0.75, 1.5]))
    assert read.fisher(EXPERTS, 8) is None
    assert read.filtered(exclude=["attn_v"]).fisher(DENSE, 4) is not None
    with pytest.raises(BadFileError, match=rf"{DENSE} has 4 values, but the model's tensor has 5"):
        read.fisher(DENSE, 5)
    both = ImportanceSums.of(read) + sums(5) + made
    assert both.fisher[DENSE].squares.tolist() == [[2, 4, 6, 12]] and both.fisher[DENSE].counts == [8]
    made.save(tmp_path / "imatrix.dat", form=DAT)
    assert load_importance(tmp_path / "imatrix.dat").fisher_names == ()


def test_correlations_of_inputs_are_kept_beside(tmp_path: Path) -> None:
    """They add up as the inputs' products do, and serve all matrices that have the same inputs."""
    x = np.random.default_rng(2).standard_normal((50, 3)) @ np.random.default_rng(3).standard_normal((3, 4))
    query = DENSE.replace("attn_v", "attn_q")
    upper = np.triu_indices(4, 1)

    def part(rows: npt.NDArray[np.float64]) -> ImportanceSums:
        products = (rows.T @ rows).astype(np.float32)
        squares = ColumnSums(np.diag(products).reshape(1, -1), np.float32([len(rows)]))
        return ImportanceSums(
            {query: squares}, ("text",), 512, products={query: products[upper].reshape(1, -1)}
        )

    path = tmp_path / "imatrix.gguf"
    part(x[:20]).save(path)
    both = ImportanceSums.of(load_importance(path)) + part(x[20:])
    both.save(path, overwrite=True)
    assert list(read_tensors(path))[-1] == query + ".in_corr"
    read = load_importance(path)
    assert read.correlated_names == (query,) and read.is_correlated(DENSE) and not read.is_correlated(EXPERTS)
    expected = np.corrcoef(np.vstack([x, -x]).T)[upper]  # of mean 0
    np.testing.assert_allclose(read.correlations(query)[0] / 127, expected, atol=0.01)
    assert read.inputs(query, 4) is not None
    with pytest.raises(BadFileError, match=rf"{query} has 4 values, but the model's tensor has 5"):
        read.inputs(query, 5)
    assert not (both + sums()).products, "what only one has seen is no correlation of both"


def test_correlations_of_other_columns_are_refused(tmp_path: Path) -> None:
    made = replace(sums(), products={DENSE: np.zeros((1, 6), np.float32)})
    made.save(tmp_path / "imatrix.gguf")
    data = (tmp_path / "imatrix.gguf").read_bytes()
    name = f"{DENSE}.in_corr".encode()
    shape = data.index(name) + len(name) + 4
    (tmp_path / "imatrix.gguf").write_bytes(data[:shape] + b"\5" + data[shape + 1 :])
    with pytest.raises(
        BadFileError, match=r"in_corr has 5 correlations, which does not fit the number of columns"
    ):
        load_importance(tmp_path / "imatrix.gguf")


def test_what_only_refined_encodings_go_by_is_kept_apart(tmp_path: Path) -> None:
    columns = ColumnSums(np.float32([[1, 2, 3, 4]]), np.float32([2]))
    products = {DENSE: np.zeros((1, 6), np.float32), "output.weight": np.ones((1, 6), np.float32)}
    made = replace(sums(), products=products, refining={"output.weight": columns})
    made.save(tmp_path / "imatrix.gguf")
    read = load_importance(tmp_path / "imatrix.gguf")
    assert "output.weight" not in read and read.weights("output.weight", 4, 1) is None
    refining = read.refining()
    np.testing.assert_array_equal(refining.weights("output.weight", 4, 1), [[0.5, 1, 1.5, 2]])
    assert "output.weight" not in refining.filtered(exclude=["output"])
    again = ImportanceSums.of(read)
    assert again.refining["output.weight"].squares.tolist() == columns.squares.tolist()
    both = again + again
    assert both.refining["output.weight"].counts == [4]
    np.testing.assert_allclose(both.products["output.weight"], 2, rtol=0.02)
    taken_in = replace(again, refining={}, tensors={**again.tensors, "output.weight": columns})
    assert "output.weight" not in (again + taken_in).products, "its sums are in two places"


# ---- sums of several -----------------------------------------------------------------------------


def test_sums_add_up() -> None:
    one, two = sums(0, 7), sums(5, 2)
    both = one + two
    assert both.chunk_count == 9 and both.datasets == ("texts/some.txt",) * 2
    for name in (DENSE, EXPERTS):
        expected = one.tensors[name].squares + two.tensors[name].squares
        np.testing.assert_array_equal(both.tensors[name].squares, expected)
        np.testing.assert_array_equal(
            both.tensors[name].counts, one.tensors[name].counts + two.tensors[name].counts
        )


def test_a_count_for_all_experts_is_added_to_each() -> None:
    one = ColumnSums(np.ones((3, 2), np.float32), np.float32([1, 2, 3]))
    old = ColumnSums(np.ones((1, 6), np.float32), np.float32([10]))
    both = one + old
    assert both.squares.shape == (3, 2) and both.counts.tolist() == [11, 12, 13]
    assert (old + one).squares.shape == (3, 2)


def test_sums_of_other_models_do_not_add_up() -> None:
    other = ImportanceSums({DENSE: ColumnSums(np.ones((1, 5), np.float32), np.float32([1]))}, (), 512)
    with pytest.raises(BadOptionError, match=r"4 values .* and 5"):
        sums() + other


def test_sums_too_large_for_their_type_are_refused(tmp_path: Path) -> None:
    huge = ImportanceSums({DENSE: ColumnSums(np.full((1, 4), 3e38, np.float32), np.float32([512]))}, (), 512)
    with pytest.raises(NotFiniteError, match=DENSE):
        huge + huge
    huge.save(tmp_path / "imatrix.dat")
    with pytest.raises(NotFiniteError, match=rf"imatrix\.dat: {DENSE}: its sums are too large"):
        ImportanceSums.of(load_importance(tmp_path / "imatrix.dat"), 1 << 20)


# ---- statistics ----------------------------------------------------------------------------------


def test_statistics_of_a_tensor() -> None:
    tensors = {
        "blk.0.ffn_up.weight": ColumnSums(np.float32([[4, 4, 0, 8]]), np.float32([2])),
        "blk.1.ffn_up.weight": ColumnSums(np.float32([[4, 4, 0, 0]]), np.float32([4])),
        "output.weight": ColumnSums(np.float32([[1, 1]]), np.float32([1])),
        "blk.1.unseen.weight": ColumnSums(np.float32([[0]]), np.float32([0])),
    }
    found = {t.name: t for t in tensor_statistics(ImportanceSums(tensors, (), 2))}
    assert list(found) == ["blk.0.ffn_up.weight", "blk.1.ffn_up.weight", "output.weight"]
    first, second = found["blk.0.ffn_up.weight"], found["blk.1.ffn_up.weight"]
    assert (first.layer, first.part, first.n_columns) == (0, "ffn_up", 4)
    assert (first.total, first.minimum, first.maximum, first.mean) == (8, 0, 4, 2)
    assert first.deviation == pytest.approx(np.sqrt(2))
    assert (first.active, first.entropy, first.relative_entropy) == (0.75, 1.5, 0.75)
    assert (first.outlying, first.similarity) == (0.25, 0)
    assert second.similarity == pytest.approx(32 / np.sqrt(96 * 32))
    assert found["output.weight"].similarity == 0  # it is in no layer
    layers = layer_statistics(found.values())
    assert [(layer.layer, layer.total) for layer in layers] == [(0, 8), (1, 2)]


# ---- collection ----------------------------------------------------------------------------------


def test_every_token_counts_and_output_only_if_asked() -> None:
    letters = "".join(chr(48 + i * 7 % 50) for i in range(100))
    model = toy(bos=1)
    so_far: list[q4hifi.Perplexity] = []
    made = q4hifi.collect_importance(model, letters, n_ctx=32, dataset="t.txt", on_chunk=so_far.append)
    assert list(made.tensors) == [DENSE]
    assert list(made.refining) == ["output.weight", "token_embd.weight"]
    assert (made.datasets, made.chunk_size, made.chunk_count) == (("t.txt",), 32, 3)
    read = [token for chunk in model.read for token in chunk]
    assert made.tensors[DENSE].counts.tolist() == [96] == [len(read)]
    expected = [96, sum(token**2 for token in read)]
    np.testing.assert_allclose(made.tensors[DENSE].squares[0], expected)
    np.testing.assert_array_equal(so_far[-1].nll, q4hifi.perplexity(toy(bos=1), letters, n_ctx=32).nll)

    silent = toy(bos=1)
    again = q4hifi.collect_importance(silent, letters, n_ctx=32, process_output=True, score=False)
    assert silent.read == model.read
    assert list(again.tensors) == [DENSE, "output.weight"]
    assert list(again.refining) == ["token_embd.weight"]


def test_some_chunks_tell_the_fisher_information() -> None:
    letters = "".join(chr(48 + i * 7 % 50) for i in range(100))
    model = toy()
    made = q4hifi.collect_importance(model, letters, n_ctx=32, fisher_chunks=2)
    expected = [sum(chunk[16:]) for chunk in (model.read[0], model.read[1])]  # the first half is context
    assert made.fisher[DENSE].squares.tolist() == [[32, sum(expected)]]
    assert made.fisher[DENSE].counts.tolist() == [32]
    assert not q4hifi.collect_importance(toy(), letters, n_ctx=32, fisher_chunks=0).fisher


def test_correlations_are_collected_unless_they_are_not_wanted() -> None:
    made = q4hifi.collect_importance(toy(), "0123456789", n_ctx=4)
    assert made.products[DENSE].tolist() == (-made.tensors[DENSE].squares[:, :1]).tolist()
    assert not q4hifi.collect_importance(toy(), "0123456789", n_ctx=4, correlations=False).products


def test_inputs_that_are_not_finite_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToySums, "all", lambda self: {DENSE: (np.array([np.inf]), 1)})
    with pytest.raises(
        NotFiniteError, match=rf"toy.gguf: chunk 1 of the text: the inputs of {DENSE} are not"
    ):
        q4hifi.collect_importance(toy(), "0123456789", n_ctx=4)


def test_gradients_that_are_not_finite_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToyModel, "fisher", lambda *_, **__: {DENSE: np.array([np.nan])})
    with pytest.raises(
        NotFiniteError, match=rf"toy.gguf: chunk 1 of the text: the gradients of {DENSE} are not"
    ):
        q4hifi.collect_importance(toy(), "0123456789", n_ctx=4)


def test_the_example_gives_what_llama_imatrix_gives() -> None:
    made = q4hifi.collect_importance(
        EXAMPLE, TEXT, n_ctx=GOLDEN["n_ctx"], n_chunks=GOLDEN["n_chunks"], threads=2
    )
    found = {t.name: [t.total, t.maximum] for t in tensor_statistics(made)}
    assert found.keys() == GOLDEN["importance"].keys()
    for name, values in GOLDEN["importance"].items():
        assert found[name] == pytest.approx(values, rel=5e-3), name


def test_a_model_can_be_quantized_with_it(tmp_path: Path) -> None:
    made = q4hifi.collect_importance(EXAMPLE, TEXT, n_ctx=64, n_chunks=2, score=False, dataset="text.txt")
    for form, source in ((GGUF, f"{FISHER_SOURCE} (64 tokens)"), (DAT, DEFAULT_SOURCE)):
        imatrix = tmp_path / f"imatrix.{form}"
        made.save(imatrix, form=form)
        report = q4hifi.quantize_file(EXAMPLE, tmp_path / f"{form}.gguf", imatrix=imatrix)
        unknown = () if form == GGUF else ("token_embd.weight",)
        assert report.without_importance == unknown
        assert report.plan.measured is not None
        assert report.plan.measured.sensitivities == source


@pytest.mark.parametrize(
    ("name", "form", "made"),
    [
        ("a.gguf", None, GGUF),
        ("a.dat", None, DAT),
        ("a.DAT", None, DAT),
        ("a.dat.gguf", None, GGUF),
        ("a.imatrix", None, GGUF),
        ("dat", None, GGUF),
        ("a.imatrix", DAT, DAT),
        ("a.gguf", GGUF, GGUF),
        ("a.dat", DAT, DAT),
    ],
)
def test_the_name_says_the_form(name: str, form: str | None, made: str, tmp_path: Path) -> None:
    sums().save(tmp_path / name, form=form)
    assert (tmp_path / name).read_bytes().startswith(b"GGUF") == (made == GGUF)


@pytest.mark.parametrize(("name", "form", "better"), [("a.dat", GGUF, "a.gguf"), ("a.GGUF", DAT, "a.dat")])
def test_a_form_that_the_name_contradicts_is_refused(
    name: str, form: str, better: str, tmp_path: Path
) -> None:
    with pytest.raises(BadOptionError, match=rf"`form` is {form}; name it .*{better}, or leave `form` out"):
        sums().save(tmp_path / name, form=form)
    assert not (tmp_path / name).exists()


def test_a_file_with_a_bad_entry_can_be_saved_without_it(tmp_path: Path, run: Run) -> None:
    products = {DENSE: np.zeros((1, 6), np.float32)}
    replace(sums(), products=products).save(tmp_path / "bad.gguf")
    data = bytearray((tmp_path / "bad.gguf").read_bytes())
    place = data.index(sums().tensors[DENSE].squares.astype("<f4").tobytes())
    data[place : place + 4] = np.float32(np.nan).tobytes()
    (tmp_path / "bad.gguf").write_bytes(data)
    for options in ([], ["-o", tmp_path / "good.gguf"]):
        outcome = run("imatrix", "--in-file", tmp_path / "bad.gguf", *options)
        assert outcome.status == 1 and f"or leave it out with --exclude-weights {DENSE}\n" in outcome.err
    outcome = run(
        "imatrix",
        "--in-file",
        tmp_path / "bad.gguf",
        "-o",
        tmp_path / "good.gguf",
        "--exclude-weights",
        DENSE,
    )
    assert outcome.status == 0
    good = load_importance(tmp_path / "good.gguf")
    assert good.names == (EXPERTS,) and good.correlated_names == ()
    outcome = run("imatrix", "--exclude-weights", DENSE, EXAMPLE, "-f", ROOT / "README.md")
    assert outcome.status == 2 and "select tensors of --in-file; give one" in outcome.err
