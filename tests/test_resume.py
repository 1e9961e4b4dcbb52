"""Long work that fails or is interrupted keeps what it has, and goes on from there."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import q4hifi
from command import Run
from q4hifi.codec.input_correlations import correlations_of
from q4hifi.errors import BadFileError, BadOptionError, NotFiniteError, Q4HifiError
from q4hifi.evaluate.log_probs_file import LogProbsFile
from q4hifi.formats.layout import StoredTensor
from q4hifi.gguf_io.reader import GgufFile
from q4hifi.gguf_io.writer import GgufWriter
from q4hifi.imatrix.file import load_importance
from q4hifi.imatrix.sums import ImportanceSums
from q4hifi.runtime.model import Model
from stand_ins import ToyTokenizer
from synthetic import EXAMPLE, names_in, patch, write_runnable

N_CTX = 32
TOKENS = np.random.default_rng(3).integers(0, 256, 6 * N_CTX).astype(np.uint32)
OPTIONS: dict[str, Any] = {"n_ctx": N_CTX, "fisher_chunks": 3}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models of one vocabulary, and one that gives NaN after the token 300."""
    folder = tmp_path_factory.mktemp("models")
    found = {name: write_runnable(folder / f"{name}.gguf", name) for name in ("llama", "mistral3")}
    found["damaged"] = folder / "damaged.gguf"
    data = bytearray(found["llama"].read_bytes())
    with q4hifi.open(found["llama"]) as model:
        info = model.gguf.tensors["token_embd.weight"]
    at = info.offset + 300 * info.row_bytes
    data[at : at + 4] = b"\0\0\xc0\x7f"
    found["damaged"].write_bytes(data)
    return found


@pytest.fixture(scope="module")
def models(paths: dict[str, Path]) -> dict[str, Model]:
    """The same, opened, with a tokenizer that their files lack."""
    found = {name: Model(path) for name, path in paths.items()}
    for model in found.values():
        model.__dict__["tokenizer"] = ToyTokenizer(model.n_vocab)
    return found


def after(n: int, error: BaseException) -> Callable[[object], None]:
    """A callback that raises when it is called for the n-th time."""
    calls = iter(range(1, 1000))

    def call(_: object) -> None:
        if next(calls) == n:
            raise error

    return call


def with_a_bad_token_in(chunk: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
    tokens = TOKENS.copy()
    tokens[chunk * N_CTX + 20] = 300
    return tokens


def same_sums(a: ImportanceSums, b: ImportanceSums) -> None:
    assert a.tensors.keys() == b.tensors.keys() and a.products.keys() == b.products.keys()
    assert (a.chunk_count, a.datasets, a.run) == (b.chunk_count, b.datasets, b.run)
    for of_a, of_b in ((a.tensors, b.tensors), (a.refining, b.refining), (a.fisher, b.fisher)):
        assert of_a.keys() == of_b.keys()
        for name, sums in of_a.items():
            assert np.array_equal(sums.counts, of_b[name].counts)
            assert np.allclose(sums.squares, of_b[name].squares, rtol=1e-6, atol=0)
    for name in a.products:
        found, wanted = (
            correlations_of(s.products[name][0], {**s.tensors, **s.refining}[name].squares[0]) for s in (a, b)
        )
        assert np.abs(found.astype(int) - wanted).max() <= 1


# ---- imatrix -------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Q4HifiError("it failed")])
def test_an_imatrix_is_kept_and_resumed(
    error: BaseException, models: dict[str, Model], tmp_path: Path
) -> None:
    whole = q4hifi.collect_importance(models["llama"], TOKENS, output=tmp_path / "whole.gguf", **OPTIONS)
    out, saved = tmp_path / "i.gguf", list[int]()
    with pytest.raises(type(error)):
        q4hifi.collect_importance(
            models["llama"],
            TOKENS,
            output=out,
            on_chunk=after(4, error),
            on_save=saved.append,
            **OPTIONS,
        )
    assert saved == [4] and load_importance(out).chunk_count == 4
    assert names_in(tmp_path) == {"whole.gguf", "i.gguf"}
    with pytest.raises(BadOptionError, match="exists already"):
        q4hifi.collect_importance(models["llama"], TOKENS, output=out, **OPTIONS)
    read = list[object]()
    found = q4hifi.collect_importance(
        models["llama"], TOKENS, output=out, resume=True, on_chunk=read.append, **OPTIONS
    )
    assert len(read) == 2
    same_sums(found, whole)
    same_sums(ImportanceSums.of(load_importance(out)), whole)


def test_a_chunk_that_fails_does_not_spoil_those_before(models: dict[str, Model], tmp_path: Path) -> None:
    out = tmp_path / "i.gguf"
    with pytest.raises(NotFiniteError, match=r"damaged\.gguf: chunk 4 of the text"):
        q4hifi.collect_importance(models["damaged"], with_a_bad_token_in(3), output=out, **OPTIONS)
    found = ImportanceSums.of(load_importance(out))
    assert found.chunk_count == 3
    for sums in found.tensors.values():
        assert np.isfinite(sums.squares).all() and sums.counts == 3 * N_CTX


def test_an_imatrix_is_saved_while_it_is_made(models: dict[str, Model], tmp_path: Path) -> None:
    out, saved = tmp_path / "i.gguf", list[int]()
    q4hifi.collect_importance(
        models["llama"], TOKENS, output=out, save_seconds=0, on_save=saved.append, **OPTIONS
    )
    assert saved == [1, 2, 3, 4, 5, 6]


OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"model": "mistral3"}, "another model,"),
    ({"tokens": TOKENS[::-1]}, "another text or part of it,"),
    ({"fisher_chunks": 2}, r"`fisher_chunks=3` \(now 2\),"),
    ({"process_output": True}, r"no `process_output` \(now with\),"),
    ({"correlations": False}, r"input correlations \(now without\),"),
    ({"n_chunks": 3}, r"`n_chunks=6` \(now 3\),"),
    ({"from_chunk": 1, "n_chunks": 5}, r"`n_chunks=6` \(now 5\),"),
    ({"n_ctx": 64}, r"`n_ctx=32` \(now 64\) and `n_chunks=6` \(now 3\),"),
    ({"n_chunks": 3, "model": "mistral3"}, r"another model and `n_chunks=6` \(now 3\),"),
]


@pytest.mark.parametrize(("other", "difference"), OTHERS)
def test_another_run_is_not_resumed(
    other: dict[str, Any], difference: str, models: dict[str, Model], tmp_path: Path
) -> None:
    out = tmp_path / "i.gguf"
    q4hifi.collect_importance(models["llama"], TOKENS, output=out, **OPTIONS)
    before = out.read_bytes()
    options = OPTIONS | {k: v for k, v in other.items() if k not in ("model", "tokens")}
    with pytest.raises(BadOptionError, match=rf"i\.gguf: was begun with {difference} so it cannot.*without"):
        q4hifi.collect_importance(
            models[other.get("model", "llama")],
            other.get("tokens", TOKENS),
            output=out,
            resume=True,
            **options,
        )
    assert out.read_bytes() == before


def test_resuming_begins_where_there_is_nothing(models: dict[str, Model], tmp_path: Path) -> None:
    out = tmp_path / "i.gguf"
    assert (
        q4hifi.collect_importance(models["llama"], TOKENS, output=out, resume=True, **OPTIONS).chunk_count
        == 6
    )


def test_the_older_form_is_not_resumed(models: dict[str, Model], tmp_path: Path) -> None:
    out = tmp_path / "i.dat"
    q4hifi.collect_importance(models["llama"], TOKENS, output=out, n_chunks=2, **OPTIONS)
    before = out.read_bytes()
    with pytest.raises(BadOptionError, match=r"i\.dat: `resume=True` needs the form gguf"):
        q4hifi.collect_importance(models["llama"], TOKENS, output=out, resume=True, **OPTIONS)
    assert out.read_bytes() == before


# ---- base files of log-probabilities ---------------------------------------------------------------


def base_file(model: Model, path: Path, tokens: Any = TOKENS, **options: Any) -> q4hifi.Perplexity:
    return q4hifi.perplexity(model, tokens, n_ctx=N_CTX, save_log_probs=path, **options)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Q4HifiError("it failed")])
def test_a_base_file_is_kept_and_resumed(
    error: BaseException, models: dict[str, Model], tmp_path: Path
) -> None:
    base, partial = tmp_path / "base.kld", tmp_path / "base.kld.partial"
    whole = base_file(models["llama"], tmp_path / "whole.kld")
    with pytest.raises(type(error)):
        base_file(models["llama"], base, on_chunk=after(4, error))
    assert names_in(tmp_path) == {"whole.kld", partial.name}
    with pytest.raises(BadFileError, match="not a file of log-probabilities"):
        LogProbsFile.open(partial)
    with pytest.raises(BadOptionError, match="continue it with `resume=True`"):
        base_file(models["llama"], base)
    read = list[object]()
    found = base_file(models["llama"], base, resume=True, on_chunk=read.append)
    assert len(read) == 2 and names_in(tmp_path) == {"whole.kld", "base.kld"}
    assert base.read_bytes() == (tmp_path / "whole.kld").read_bytes()
    assert np.array_equal(found.nll, whole.nll)


KILLED = """
import os, signal, sys
import numpy as np
import q4hifi
def kill(found):
    if found.n_chunks == 4:
        os.kill(os.getpid(), signal.SIGKILL)
class NoBos:
    add_bos, bos = False, None
tokens, model = np.load(sys.argv[3]), q4hifi.Model(sys.argv[1])
model.__dict__["tokenizer"] = NoBos()
q4hifi.perplexity(model, tokens, n_ctx=32, save_log_probs=sys.argv[2], on_chunk=kill)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_base_file_survives_a_kill(
    models: dict[str, Model], paths: dict[str, Path], tmp_path: Path
) -> None:
    np.save(tmp_path / "tokens.npy", TOKENS)
    command = [sys.executable, "-c", KILLED, paths["llama"], tmp_path / "base.kld", tmp_path / "tokens.npy"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    read = list[object]()
    base_file(models["llama"], tmp_path / "base.kld", resume=True, on_chunk=read.append)
    base_file(models["llama"], tmp_path / "whole.kld")
    assert len(read) == 2
    assert (tmp_path / "base.kld").read_bytes() == (tmp_path / "whole.kld").read_bytes()


def test_a_base_file_of_another_run_is_not_resumed(models: dict[str, Model], tmp_path: Path) -> None:
    base, partial = tmp_path / "base.kld", tmp_path / "base.kld.partial"
    with pytest.raises(KeyboardInterrupt):
        base_file(models["llama"], base, on_chunk=after(2, KeyboardInterrupt()))
    before = partial.read_bytes()
    with pytest.raises(
        BadOptionError, match="was begun with another text or part of it, so it cannot be resumed"
    ):
        base_file(models["llama"], base, TOKENS[::-1], resume=True)
    with pytest.raises(BadOptionError, match=r"with `n_chunks=6` \(now 3\), so .*and without `resume`"):
        base_file(models["llama"], base, n_chunks=3, resume=True)
    with pytest.raises(BadOptionError, match=r"with `n_ctx=32` \(now 64\) and `n_chunks=6` \(now 3\), so"):
        q4hifi.perplexity(models["llama"], TOKENS, n_ctx=64, save_log_probs=base, resume=True)
    with pytest.raises(BadOptionError, match=r"was begun with another model than .*mistral3\.gguf"):
        base_file(models["mistral3"], base, resume=True)
    assert partial.read_bytes() == before
    partial.write_bytes(b"part")
    with pytest.raises(BadOptionError, match="cannot be resumed"):
        base_file(models["llama"], base, resume=True)
    partial.write_bytes(before)
    patch(partial, len(before) - 8 * (N_CTX - 1 - N_CTX // 2) * 6, struct.pack("<d", 1e200))
    with pytest.raises(BadFileError, match=r"base\.kld\.partial: its values are damaged"):
        base_file(models["llama"], base, resume=True)
    partial.write_bytes(before[:-8])
    with pytest.raises(BadOptionError, match=r"base\.kld\.partial: is cut off"):
        base_file(models["llama"], base, resume=True)
    base_file(models["llama"], base, overwrite=True)
    assert names_in(tmp_path) == {"base.kld"}


def test_a_base_file_whose_place_was_taken_can_be_resumed(models: dict[str, Model], tmp_path: Path) -> None:
    base = tmp_path / "base.kld"
    with pytest.raises(BadOptionError, match="exists already"):
        base_file(models["llama"], base, on_chunk=lambda _: base.write_text("mine"))
    assert base.read_text() == "mine"
    read = list[object]()
    with pytest.raises(BadOptionError, match="exists already"):
        base_file(models["llama"], base, resume=True)
    base_file(models["llama"], base, resume=True, overwrite=True, on_chunk=read.append)
    assert read == [] and names_in(tmp_path) == {"base.kld"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_empty_partial_file_is_resumed_from_the_beginning(
    overwrite: bool, models: dict[str, Model], tmp_path: Path
) -> None:
    """A run that is killed before it writes anything leaves such a file."""
    (tmp_path / "base.kld.partial").touch()
    base_file(models["llama"], tmp_path / "base.kld", resume=True, overwrite=overwrite)
    assert names_in(tmp_path) == {"base.kld"}


@pytest.mark.parametrize("damage", [b"part", b"part\1\0\0\0", b"_logits_" + bytes(99), b"part" + bytes(99)])
def test_the_remedy_for_a_damaged_partial_file_works(
    damage: bytes, models: dict[str, Model], tmp_path: Path
) -> None:
    base, partial = tmp_path / "base.kld", tmp_path / "base.kld.partial"
    partial.write_bytes(damage)
    remedy = "start again with `overwrite=True` and without `resume`"
    for overwrite in (False, True):
        with pytest.raises(BadOptionError, match=remedy):
            base_file(models["llama"], base, resume=True, overwrite=overwrite)
    base_file(models["llama"], base, overwrite=True)
    assert names_in(tmp_path) == {"base.kld"}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_no_other_file_is_taken_for_a_partial_one(
    kind: str, resume: bool, models: dict[str, Model], tmp_path: Path
) -> None:
    other, partial = tmp_path / "other", tmp_path / "base.kld.partial"
    (other if kind == "link" else partial).write_text("mine")
    if kind == "link":
        partial.symlink_to(other)
    with pytest.raises(BadOptionError, match=r"base\.kld\.partial: (is a link|this name is needed)"):
        base_file(models["llama"], tmp_path / "base.kld", overwrite=True, resume=resume)
    assert partial.read_text() == "mine"


def test_a_base_file_without_a_whole_chunk_is_not_kept(models: dict[str, Model], tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError):
        base_file(models["damaged"], tmp_path / "base.kld", with_a_bad_token_in(0))
    assert names_in(tmp_path) == set()


# ---- comparisons -----------------------------------------------------------------------------------


def test_a_comparison_is_kept_and_resumed(models: dict[str, Model], tmp_path: Path) -> None:
    out, llama, mistral = tmp_path / "figures", models["llama"], models["mistral3"]
    saved, read = list[int](), list[q4hifi.Comparison]()
    with pytest.raises(KeyboardInterrupt):
        q4hifi.compare(
            llama,
            [llama],
            TOKENS,
            n_ctx=N_CTX,
            output=out,
            on_chunk=after(4, KeyboardInterrupt()),
            on_save=saved.append,
        )
    assert saved == [4]
    found = q4hifi.compare(
        llama, [llama, mistral], TOKENS, n_ctx=N_CTX, output=out, resume=True, on_chunk=read.append
    )
    whole = q4hifi.compare(llama, [llama, mistral], TOKENS, n_ctx=N_CTX)
    assert len(read) == 6  # of the model that is new
    for mine, other in zip((found.reference, *found.models), (whole.reference, *whole.models), strict=True):
        assert np.array_equal(mine.perplexity.nll, other.perplexity.nll)
        if mine.quality is not None and other.quality is not None:
            for a, b in zip(mine.quality.tokens, other.quality.tokens, strict=True):
                assert np.array_equal(a, b)
    read.clear()
    again = q4hifi.compare(
        llama, [mistral], TOKENS, n_ctx=N_CTX, output=out, resume=True, on_chunk=read.append
    )
    assert read == [] and np.array_equal(again.models[0].perplexity.nll, whole.models[1].perplexity.nll)
    with pytest.raises(BadOptionError, match="was begun with another reference, so it cannot be resumed"):
        q4hifi.compare(mistral, [llama], TOKENS, n_ctx=N_CTX, output=out, resume=True)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"n_chunks": 3}, r"`n_chunks=6` \(now 3\),"),
        ({"n_ctx": 64}, r"`n_ctx=32` \(now 64\) and `n_chunks=6` \(now 3\),"),
        ({"text": TOKENS[::-1]}, "another text or part of it,"),
    ],
)
def test_another_comparison_is_not_resumed(
    other: dict[str, Any], difference: str, models: dict[str, Model], tmp_path: Path
) -> None:
    out, llama = tmp_path / "figures", models["llama"]
    run = {"text": TOKENS, "n_ctx": N_CTX, "output": out}
    q4hifi.compare(llama, [llama], **run)
    with pytest.raises(BadOptionError, match=rf"figures: was begun with {difference} so it cannot"):
        q4hifi.compare(llama, [llama], **{**run, **other}, resume=True)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize("damage", [cut, lambda data: data[:30], lambda _: b""])
@pytest.mark.parametrize("call", ["imatrix", "compare"])
def test_the_remedy_for_a_damaged_file_works(
    call: str, damage: Callable[[bytes], bytes], models: dict[str, Model], tmp_path: Path
) -> None:
    """It is no download, so it cannot be downloaded again."""
    out, llama = tmp_path / "out.gguf", models["llama"]

    def run(**options: Any) -> None:
        if call == "imatrix":
            q4hifi.collect_importance(llama, TOKENS, output=out, **OPTIONS, **options)
        else:
            q4hifi.compare(llama, [llama], TOKENS, n_ctx=N_CTX, output=out, **options)

    run()
    out.write_bytes(damage(out.read_bytes()))
    remedy = "start again with `overwrite=True` and without `resume`"
    with pytest.raises(BadFileError, match=remedy) as caught:
        run(resume=True, overwrite=True)
    assert "download" not in str(caught.value)
    run(overwrite=True)
    run(resume=True)


@pytest.mark.parametrize("call", ["imatrix", "compare"])
@pytest.mark.parametrize("other", ["text", "model"])
def test_a_file_of_somebody_else_is_not_advised_to_be_replaced(
    other: str, call: str, models: dict[str, Model], paths: dict[str, Path], tmp_path: Path
) -> None:
    out, llama = tmp_path / "out.gguf", models["llama"]
    out.write_bytes(b"my diary" if other == "text" else paths["mistral3"].read_bytes())
    before = out.read_bytes()
    with pytest.raises(BadFileError, match=r"choose another file, because `resume=True`") as caught:
        if call == "imatrix":
            q4hifi.collect_importance(llama, TOKENS, output=out, resume=True, **OPTIONS)
        else:
            q4hifi.compare(llama, [llama], TOKENS, n_ctx=N_CTX, output=out, resume=True)
    assert "overwrite" not in str(caught.value) and out.read_bytes() == before


def test_figures_of_models_that_are_not_compared_again_stay(models: dict[str, Model], tmp_path: Path) -> None:
    out, llama, mistral = tmp_path / "figures", models["llama"], models["mistral3"]
    first = q4hifi.compare(llama, [llama], TOKENS, n_ctx=N_CTX, output=out)
    q4hifi.compare(llama, [mistral], TOKENS, n_ctx=N_CTX, output=out, resume=True)
    read = list[q4hifi.Comparison]()
    again = q4hifi.compare(llama, [llama], TOKENS, n_ctx=N_CTX, output=out, resume=True, on_chunk=read.append)
    assert read == [] and np.array_equal(again.models[0].perplexity.nll, first.models[0].perplexity.nll)


def test_a_model_may_be_compared_twice(models: dict[str, Model], tmp_path: Path) -> None:
    out, llama = tmp_path / "figures", models["llama"]
    with pytest.raises(KeyboardInterrupt):
        q4hifi.compare(
            llama,
            [llama, llama],
            TOKENS,
            n_ctx=N_CTX,
            output=out,
            on_chunk=after(2, KeyboardInterrupt()),
        )
    found = q4hifi.compare(llama, [llama, llama], TOKENS, n_ctx=N_CTX, output=out, resume=True)
    for model in found.models:
        assert np.allclose(model.perplexity.nll, found.reference.perplexity.nll, rtol=0, atol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e200])
def test_a_comparison_with_impossible_figures_is_refused(
    value: float, models: dict[str, Model], tmp_path: Path
) -> None:
    out, llama = tmp_path / "figures", models["llama"]
    q4hifi.compare(llama, [llama], TOKENS, n_ctx=N_CTX, output=out)
    with GgufFile.open(out) as file:
        offset = file.tensors["1.kld"].offset
    patch(out, offset, struct.pack("<d", value))
    with pytest.raises(BadFileError, match=r"1\.kld has impossible values"):
        q4hifi.compare(llama, [llama], TOKENS, n_ctx=N_CTX, output=out, resume=True)


@pytest.mark.parametrize("lost", ["1.kld", "0.rates"])
def test_a_damaged_comparison_is_refused(lost: str, models: dict[str, Model], tmp_path: Path) -> None:
    out, llama = tmp_path / "figures", models["llama"]
    q4hifi.compare(llama, [llama], TOKENS, n_ctx=N_CTX, output=out)
    with GgufFile.open(out) as file:
        arrays = {t.name: (t, file.read(t).reshape(-1)) for t in file.tensors.values()}
        metadata = file.metadata
    kind = arrays.pop(lost)[0].type
    stored = [StoredTensor(t.name, t.shape, t.type) for t, _ in arrays.values()]
    if lost == "0.rates":
        stored.append(StoredTensor(lost, (0,), kind))
    with GgufWriter(out, metadata, stored, overwrite=True) as writer:
        for name, (_, values) in arrays.items():
            writer.write_at(name, 0, values)
        writer.commit()
    with pytest.raises(BadFileError, match=f"{lost} is missing or has a wrong type or size"):
        q4hifi.compare(llama, [llama], TOKENS, n_ctx=N_CTX, output=out, resume=True)


def test_a_model_that_fails_does_not_take_the_others_with_it(models: dict[str, Model]) -> None:
    llama, damaged = models["llama"], models["damaged"]
    found = q4hifi.compare(llama, [damaged, llama], with_a_bad_token_in(2), n_ctx=N_CTX)
    assert [model.model for model in found.models] == [str(llama.path)]
    assert list(found.failures) == [str(damaged.path)]
    assert "chunk 3 of the text" in found.failures[str(damaged.path)]
    with pytest.raises(NotFiniteError, match="chunk 3 of the text"):
        q4hifi.compare(llama, [damaged], with_a_bad_token_in(2), n_ctx=N_CTX)


# ---- whatever is saved -------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["imatrix", "base", "compare"])
def test_the_space_is_taken_before_the_work(
    call: str, models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    llama, out, never = models["llama"], tmp_path / "out", after(1, AssertionError("the work began"))
    with pytest.raises(Q4HifiError, match=r"out: cannot be written, .* \d+ bytes: No space left"):
        if call == "imatrix":
            q4hifi.collect_importance(llama, TOKENS, output=out, on_chunk=never, **OPTIONS)
        elif call == "base":
            base_file(llama, out, on_chunk=never)
        else:
            q4hifi.compare(llama, [llama], TOKENS, n_ctx=N_CTX, output=out, on_chunk=never)
    assert names_in(tmp_path) == set()


def test_an_imatrix_is_saved_and_copied_by_chunks(tmp_path: Path) -> None:
    """--output-frequency, --save-frequency and --from-chunk of llama-imatrix."""
    out, saved = tmp_path / "i.gguf", list[int]()
    text = np.arange(100, 500)
    model = q4hifi.Model(EXAMPLE, n_ctx=64, threads=2)
    found = q4hifi.collect_importance(
        model,
        text,
        n_ctx=64,
        from_chunk=1,
        fisher_chunks=0,
        output=out,
        save_chunks=2,
        copy_chunks=3,
        on_save=saved.append,
    )
    assert saved == [2, 4, 5] and found.chunk_count == 5
    assert load_importance(tmp_path / "i.gguf.at_3").chunk_count == 3
    assert not (tmp_path / "i.gguf.at_5").exists()
    later = q4hifi.collect_importance(
        model, text[64:], n_ctx=64, fisher_chunks=0, output=tmp_path / "later.gguf"
    )
    same_sums(found, later)
    with pytest.raises(BadOptionError, match="none is left after 6; give a smaller `from_chunk`"):
        q4hifi.collect_importance(model, text, n_ctx=64, from_chunk=6)


@pytest.mark.parametrize("reason", ["exists", "text", "model"])
def test_names_of_copies_are_checked_before_the_first_chunk(
    reason: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, text = tmp_path / "m.gguf", tmp_path / "t.txt"
    taken = tmp_path / "i.gguf.at_4"
    if reason == "model":
        model = taken
    if reason == "text":
        text = taken
    model.write_bytes(EXAMPLE.read_bytes())
    text.write_text("These are the words of a text that is long enough. " * 100)
    if reason == "exists":
        taken.write_text("precious")
    before = taken.read_bytes()
    monkeypatch.setattr("q4hifi.evaluate.importance_work.ImportanceWork.measure", None)  # no work begins
    options = () if reason == "exists" else ("--overwrite",)
    outcome = run(
        "imatrix", model, "-f", text, "-c", 32, "--chunks", 6, "-o", "i.gguf", "--save-frequency", 2, *options
    )
    assert outcome.status == 2 and taken.read_bytes() == before
    assert ("exists already" if reason == "exists" else "is the source") in outcome.err


def test_resuming_replaces_no_copies(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text("These are the words of a text that is long enough. " * 100)
    (tmp_path / "i.gguf.at_2").write_text("precious")
    command = ("imatrix", EXAMPLE, "-f", "t.txt", "-c", 32, "--chunks", 2, "-o", "i.gguf", "--resume")
    outcome = run(*command, "--save-frequency", 1)
    assert outcome.status == 2 and "i.gguf.at_2: exists already" in outcome.err
    assert (tmp_path / "i.gguf.at_2").read_text() == "precious"
    assert run(*command, "--save-frequency", 1, "--overwrite").status == 0
    assert (tmp_path / "i.gguf.at_2").read_bytes().startswith(b"GGUF")
