"""What 'quantize' writes where: a mistyped type becomes no file, and files are named by what is in them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

import q4hifi
from command import Run
from q4hifi.cli import group
from q4hifi.gguf_io.reader import GgufFile
from q4hifi.plan.options import TypeOptions
from q4hifi.plan.recipes import RECIPES, find_recipe, type_hint
from synthetic import EXAMPLE, names_in, random_sums, write_imatrix, write_small_model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a small model in it, and an importance matrix."""
    write_small_model(tmp_path / "model-f16.gguf")
    with q4hifi.open(tmp_path / "model-f16.gguf") as model:
        sums = {
            name: (random_sums(1, tensor.row_length, [9], seed=1), np.array([9]))
            for name, tensor in model.tensors.items()
            if name.startswith("blk.") and len(tensor.shape) == 2
        }
    write_imatrix(tmp_path / "imatrix.gguf", sums)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- types that are not there --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Q4_KM", "Q4_K_M"),
        ("q4km", "Q4_K_M"),
        ("Q4-K-M", "Q4_K_M"),
        ("Q4.K.M", "Q4_K_M"),
        ("Q4_K_MM", "Q4_K_M"),
        ("Q4_K_X", "Q4_K_S or Q4_K_M"),
        ("Q3_K_XL", "Q3_K_L"),
        ("Q9_0", "Q8_0 or Q4_0 or Q5_0"),
        ("Q8", "Q8_0"),
        ("Q6", "Q6_K"),
        ("IQ4XS", "IQ4_XS"),
        ("Q4_HIFY", "Q4_HIFI"),
        ("hifi", "Q4_HIFI"),
        ("fp16", "F16"),
        ("float32", "F32"),
    ],
)
def test_a_mistyped_type_is_recognised(name: str, meant: str) -> None:
    assert type_hint(name) == f"did you mean {meant}?"


@pytest.mark.parametrize("name", ["IQ2_XXS", "iq3m", "TQ1_0", "MXFP4_MOE", "mxfp4", "19"])
def test_types_that_only_llama_quantize_writes_are_told_apart(name: str) -> None:
    assert type_hint(name).startswith("llama-quantize has ")
    with pytest.raises(q4hifi.BadOptionError, match="q4hifi cannot write it"):
        find_recipe(name)


@pytest.mark.parametrize("name", ["out", "output", "model", "new-model", "result", "tmp", "4", ""])
def test_other_words_suggest_no_type(name: str) -> None:
    assert type_hint(name) == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("Q4_KM", "'Q4_KM' is not a type: did you mean Q4_K_M? For a file of that name, write ./Q4_KM.gguf"),
        ("q4km", "did you mean Q4_K_M?"),
        ("./Q4_KM", "write ./Q4_KM.gguf"),
        ("Q4_KM 8", "did you mean Q4_K_M?"),  # not a Q5_0 model (8) in a file Q4_KM
        ("IQ2_XXS", "llama-quantize has IQ2_XXS, but q4hifi cannot write it."),
        ("IQ2_XXS 4", "llama-quantize has IQ2_XXS, but q4hifi cannot write it."),
        ("out", "'out' is not a type, and not a file name that ends in .gguf; write ./out.gguf, or give a"),
        ("out.bin", "write ./out.bin.gguf"),
        ("4", "'4' is not a type"),
        ("missing/", "is the name of a folder"),
        ("missing/out", "there is no folder"),
        ("Q4_K_M out.gguf", "write DST before TYPE: out.gguf Q4_K_M"),
        ("Q4_K_M out.gguf 4", "write DST before TYPE: out.gguf Q4_K_M"),
        ("15 out.GGUF", "write DST before TYPE: out.GGUF Q4_K_M"),
        ("Q4_KM out.gguf", "write DST before TYPE, and a type that exists: did you mean Q4_K_M?"),
        ("out.gguf Q4_KM", "unknown type 'Q4_KM'; did you mean Q4_K_M? choose one of Q4_HIFI"),
        ("out.gguf 19", "llama-quantize has IQ2_XXS"),
        ("--like Q4_KM", "did you mean Q4_K_M?"),
        ("-", "cannot be streamed"),
        ("/dev/stdout", "cannot be streamed"),
        ("folder", "exists and is not a file"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["", "dry"])
def test_what_cannot_be_meant_is_refused(
    arguments: str, message: str, dry: list[str], run: Run, folder: Path
) -> None:
    (folder / "folder").mkdir()
    before = names_in(folder)
    outcome = run("quantize", "model-f16.gguf", *arguments.split(), *dry)
    assert (outcome.status, outcome.out) == (2, "")
    assert message in outcome.err and outcome.err.count("\n") == 1
    assert names_in(folder) == before


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("dequantize model-f16.gguf F32", "'F32' looks like a type, and DST is missing"),
        ("dequantize model-f16.gguf fp16", "'fp16' looks like a type"),
        ("export model-f16.gguf q6_k --as q6_k", "for a file of that name, write ./q6_k.gguf"),
        ("plan model-f16.gguf Q4_KM", "did you mean Q4_K_M?"),
    ],
)
def test_other_commands_take_no_type_for_a_file(command: str, message: str, run: Run, folder: Path) -> None:
    outcome = run(*command.split())
    assert (outcome.status, outcome.out) == (2, "")
    assert message in outcome.err
    assert names_in(folder) == {"model-f16.gguf", "imatrix.gguf"}


@pytest.mark.parametrize(
    ("arguments", "written", "kind"),
    [
        ("out Q6_K", "out", "Q6_K"),  # any name, as for llama-quantize
        ("out.bin 18 2", "out.bin", "Q6_K"),
        ("Q4_KM Q6_K", "Q4_KM", "Q6_K"),
        ("./Q4_KM 18", "Q4_KM", "Q6_K"),
        ("Q4_KM.gguf", "Q4_KM.gguf", "Q4_HIFI"),
        ("OUT.GGUF", "OUT.GGUF", "Q4_HIFI"),
    ],
)
def test_what_can_be_meant_is_done(arguments: str, written: str, kind: str, run: Run, folder: Path) -> None:
    outcome = run("quantize", "model-f16.gguf", *arguments.split())
    note = "note: 18 is llama-quantize's number of Q6_K\n" if "18" in arguments.split() else ""
    assert (outcome.status, outcome.err) == (0, note)
    assert names_in(folder) == {"model-f16.gguf", "imatrix.gguf", written}
    assert outcome.out.startswith(f"{kind}\n")
    assert outcome.out.endswith(f"wrote {os.fspath(Path(arguments.split()[0]))}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("dequantize model-f16.gguf z2", "'z2' does not end in .gguf; write ./z2.gguf"),
        ("export model-f16.gguf d/z3", "there is no folder"),
        (
            "export model-f16.gguf model-f16.gguf/z3",
            "model-f16.gguf is not a folder; choose another destination",
        ),
        ("export model-f16.gguf z3 --as q6_k", "'z3' does not end in .gguf; write ./z3.gguf"),
        ("quantize model-f16.gguf z.gguf Q4_K_M -1", "No such option '-1'; THREADS must be 0 or more"),
    ],
)
def test_one_rule_for_the_names_of_models(arguments: str, message: str, run: Run, folder: Path) -> None:
    outcome = run(*arguments.split())
    assert outcome.status == 2 and message in outcome.err
    assert names_in(folder) == {"model-f16.gguf", "imatrix.gguf"}


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("quantize model-f16.gguf z.gguf Q4_HIFI --dry-run --write-tensor-types z.gguf", "DST"),
        ("quantize model-f16.gguf z.gguf Q4_HIFI --dry-run --write-tensor-types link.txt", "DST"),
        ("quantize model-f16.gguf z.gguf Q4_HIFI --write-tensor-types hard.txt", "DST"),
        ("quantize model-f16.gguf new.gguf Q4_K_M --dry-run --write-tensor-types ./new.gguf", "DST"),
        ("quantize model-f16.gguf y.gguf --calibrate t.txt --write-tensor-types {}", "--calibrate"),
        ("quantize model-f16.gguf {} Q4_HIFI --calibrate t.txt", "--calibrate"),
        ("plan model-f16.gguf --calibrate t.txt --write-tensor-types {}", "--calibrate"),
    ],
)
def test_outputs_are_distinct_files(
    arguments: str, names: str, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("q4hifi.allocation.calibrate.measure_sensitivities", None)  # no work begins
    (folder / "z.gguf").write_text("precious")
    (folder / "t.txt").write_text("a text")
    os.link(folder / "z.gguf", folder / "hard.txt")
    os.symlink("z.gguf", folder / "link.txt")
    before = names_in(folder)
    line = arguments.format("model-f16.gguf.sensitivity.json")
    overwrite = () if line.startswith("plan") else ("--overwrite",)
    outcome = run(*line.split(), *overwrite)
    assert outcome.status == 2 and "is given for both" in outcome.err and names in outcome.err
    assert names_in(folder) == before and (folder / "z.gguf").read_text() == "precious"


# ---- names and headings --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "title"),
    [
        ({}, "Q4_HIFI"),
        ({"type": "q5_k"}, "Q5_K_M"),
        ({"type": "Q4_K_M", "pure": True}, "Q4_K_M"),
        ({"like": "Q4_K_M"}, "Q4_HIFI"),
        ({"target_bpw": 4.5}, "Q4_HIFI"),
        ({"coverage": "measured"}, "Q4_HIFI"),
        ({"stock": True}, "Q4-measured"),
        ({"stock": True, "like": "q4_k"}, "Q4_K_M-measured"),
        ({"stock": True, "target_bpw": 4.5}, "4.5bpw-measured"),
        ({"stock": True, "target_size": 470 << 20}, "470MiB-measured"),
        ({"stock": True, "target_size": 7 << 29}, "3.5GiB-measured"),
        ({"stock": True, "target_size": 1_200_000_000}, "1.2GB-measured"),
        ({"stock": True, "target_size": 4_000_000}, "4MB-measured"),
        ({"stock": True, "target_size": 4_000_001}, "3.81MiB-measured"),
        ({"stock": True, "target_size": 900}, "900B-measured"),
    ],
)
def test_the_title_says_what_is_asked_for(options: dict[str, object], title: str) -> None:
    assert TypeOptions(**options).title == title  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "title"),
    [
        ("", "Q4_HIFI"),
        ("--like Q4_K_M --stock", "Q4_K_M-measured"),
        ("--target-bpw 5.5 --stock", "5.5bpw-measured"),
        ("--stock", "Q4-measured"),
    ],
)
def test_file_and_heading_have_the_title(options: str, title: str, run: Run, folder: Path) -> None:
    call = ("model-f16.gguf", "--imatrix", "imatrix.gguf", *options.split())
    outcome = run("quantize", *call)
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.startswith(f"{title}\n")
    assert outcome.out.endswith(f"\nwrote model-{title}.gguf\n")
    assert run("plan", *call).out.startswith(f"{title}\n")
    assert json.loads(run("plan", *call, "--json").out)["recipe"] == title
    with q4hifi.open(f"model-{title}.gguf") as model:
        loads = all(tensor.type.name != "Q4_HIFI" for tensor in model.tensors.values())
    assert loads or "--stock" not in options
    with GgufFile.open(f"model-{title}.gguf") as file:
        file_type = file.metadata.get("general.file_type")
    assert not loads or file_type in {recipe.file_type for recipe in RECIPES.values()}


BUDGETS = {
    "": "Q4_HIFI",
    "--like Q4_K_M": "Q4_HIFI-Q4_K_M-measured",
    "--target-bpw 5.5": "Q4_HIFI-5.5bpw-measured",
    "--target-size 200KiB": "Q4_HIFI-200.00KiB-measured",
    "--target-size 3MB": "Q4_HIFI-3MB-measured",
    "--like Q4_K_M --stock": "Q4_K_M-measured",
    "--target-bpw 5.5 --stock": "5.5bpw-measured",
    "--stock": "Q4-measured",
}


def test_every_budget_has_a_default_name_of_its_own(run: Run, folder: Path) -> None:
    for options, name in BUDGETS.items():
        outcome = run("quantize", "model-f16.gguf", *options.split())
        assert outcome.status == 0 and outcome.out.endswith(f"\nwrote model-{name}.gguf\n")
    assert len(set(BUDGETS.values())) == len(BUDGETS)


@pytest.mark.parametrize("name", BUDGETS.values())
def test_a_name_that_was_given_by_default_is_replaced_as_a_whole(name: str, run: Run, folder: Path) -> None:
    (folder / f"model-{name}.gguf").symlink_to("model-f16.gguf")
    assert run("quantize", f"model-{name}.gguf", "COPY").status == 0
    assert "model-COPY.gguf" in names_in(folder)


def test_the_report_says_whether_llama_cpp_loads_the_file(run: Run, folder: Path) -> None:
    loads, export = "loads in llama.cpp as it is", "'q4hifi export' makes a file that llama.cpp loads"
    for options, note in [
        (["Q4_HIFI", "--coverage", "scale"], export),
        (["Q4_HIFI", "--outliers", "0"], loads),
        (["Q4_HIFI", "--like", "Q4_K_M", "--stock"], ""),
        (["Q4_K_M"], ""),
    ]:
        text = run("plan", "model-f16.gguf", *options).out
        assert [sentence for sentence in (loads, export) if sentence in text] == [note] * bool(note)


def test_exporting_a_model_that_loads_anyway(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    for option in (["--as", "q6_k"], ["--layout", "fork"]):
        outcome = run("export", EXAMPLE, out, *option)
        assert outcome.status == 1 and not out.exists()
        reason = "has no Q4_HIFI tensors; it loads in llama.cpp as it is."
        assert outcome.err == f"Error: {EXAMPLE}: {reason} {out} was not written\n"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("qantize", " Did you mean 'quantize'?"),
        ("perplxity", " Did you mean 'perp"),
        ("chat", " Did you mean 'generate --chat'?"),
        ("info", " Did you mean 'inspect'?"),
        ("x", ""),
    ],
)
def test_a_mistyped_command_is_recognised(typed: str, meant: str, run: Run) -> None:
    outcome = run(typed, "model.gguf")
    assert (outcome.status, outcome.out) == (2, "")
    assert f"Error: No such command '{typed}'.{meant}" in outcome.err
    assert "Did you mean" in outcome.err or not meant


@pytest.mark.parametrize(("name", "meant"), group.OTHER_NAMES.items())
def test_other_names_of_commands_lead_to_commands(name: str, meant: str, run: Run) -> None:
    assert f"Did you mean '{meant}'?" in run(name).err
    command, *options = meant.split()
    text = run(command, "--help").out
    assert text and all(option in text for option in options)


# ---- texts that are given without -f -------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("perplexity model-f16.gguf text.txt", "; if it is the text, write -f text.txt"),
        ("imatrix model-f16.gguf text.txt", "; if it is the text, write -f text.txt"),
        ("calibrate model-f16.gguf text.txt", "; if it is the text, write -f text.txt"),
        ("perplexity model-f16.gguf a.txt -f b.txt", "'a.txt' is one argument too many\n"),
        ("perplexity model-f16.gguf", "the text is missing; name one with -f\n"),
        ("compare model-f16.gguf other.gguf", "the text is missing; name one with -f\n"),
        ("compare model-f16.gguf text.txt", "; if text.txt is the text, write -f text.txt"),
    ],
)
def test_a_text_without_its_option(command: str, message: str, run: Run, folder: Path) -> None:
    outcome = run(*command.split())
    assert (outcome.status, outcome.out) == (2, "")
    assert message in outcome.err and outcome.err.count("\n") == 1
