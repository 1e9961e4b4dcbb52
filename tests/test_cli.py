"""The command: what it prints where, which files it writes, and with which status it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from gguf import GGUFValueType

import q4hifi
from command import Run, in_terminal, script
from q4hifi.cli.group import COMMANDS, main
from q4hifi.gguf_io.reader import GgufFile
from synthetic import (
    EXAMPLE,
    Pair,
    names_in,
    patch,
    random_sums,
    random_weights,
    read_tensors,
    write_imatrix,
    write_model,
    write_small_model,
    write_stored,
)

VALUE, QUERY, DOWN = (f"blk.0.{part}.weight" for part in ("attn_v", "attn_q", "ffn_down"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the small model in it, as model-f16.gguf."""
    write_small_model(tmp_path / "model-f16.gguf")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def types_of(path: Path) -> dict[str, str]:
    """Return the type of each tensor of a model, Q4_HIFI ones as such."""
    with q4hifi.open(path) as model:
        return {name: tensor.type.name for name, tensor in model.tensors.items()}


# ---- entry points --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [[script()], [sys.executable, "-m", "q4hifi"]], ids=["script", "module"])
def test_the_command_is_installed(command: list[str], folder: Path) -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)

    version = call("--version")
    assert (version.returncode, version.stdout, version.stderr) == (0, f"q4hifi {q4hifi.__version__}\n", "")
    made = call("quantize", "model-f16.gguf", "q8_0", "--json")
    assert (made.returncode, made.stderr) == (0, "")
    assert json.loads(made.stdout)["destination"] == ["model-Q8_0.gguf"]
    failed = call("verify", "missing.gguf")
    assert (failed.returncode, failed.stderr) == (1, "")
    misused = call("quantize", "model-f16.gguf", "out.gguf", "Q9_9")
    assert (misused.returncode, misused.stdout) == (2, "")
    assert misused.stderr.startswith("Error: unknown type 'Q9_9'; choose one of Q4_HIFI, Q4_K_S")
    assert names_in(folder) == {"model-f16.gguf", "model-Q8_0.gguf"}


def test_help_tells_every_option(run: Run) -> None:
    top = run("--help")
    assert (top.status, top.err) == (0, "")
    context = click.Context(main)
    for name, (_, summary) in COMMANDS.items():
        command = main.get_command(context, name)
        assert command is not None and command.get_short_help_str(200) == summary
        assert re.search(rf"^  {name} +\w", top.out, re.MULTILINE)
        for flag in ("--help", "-h"):
            text = run(name, flag).out
            assert text.startswith(f"Usage: q4hifi {name} ")
            for option in command.params:
                if isinstance(option, click.Option):
                    assert all(word in text for word in option.opts)
                    assert option.help


def test_without_arguments_the_command_shows_its_help(run: Run) -> None:
    outcome = run()
    assert "Commands:" in outcome.out + outcome.err
    assert outcome.status in (0, 2)  # click changed this


# ---- quantize: arguments -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "kind", "written"),
    [
        ("model-f16.gguf", None, "model-Q4_HIFI.gguf"),
        ("model-f16.gguf", "q4_k_m", "model-Q4_K_M.gguf"),
        ("model.BF16.gguf", "Q8_0", "model-Q8_0.gguf"),
        ("some_f32.gguf", "Q8_0", "some-Q8_0.gguf"),
        ("model.gguf", "Q8_0", "model-Q8_0.gguf"),
        ("half16.gguf", "Q8_0", "half16-Q8_0.gguf"),
        ("no-suffix", "Q8_0", "no-suffix-Q8_0.gguf"),
    ],
)
def test_the_destination_is_named_after_the_source(
    source: str, kind: str | None, written: str, run: Run, folder: Path
) -> None:
    (folder / "models").mkdir()
    (folder / "model-f16.gguf").rename(folder / "models" / source)
    outcome = run("quantize", f"models/{source}", *([kind] if kind else []))
    assert (outcome.status, outcome.err) == (0, "")
    assert names_in(folder / "models") == {source, written}
    assert outcome.out.endswith(f"wrote {Path('models', written)}\n")


def test_the_destination_of_shards_has_no_number(run: Run, tmp_path: Path) -> None:
    write_small_model(tmp_path / "model-f16.gguf", split_max_tensors=4)
    outcome = run("quantize", tmp_path / "model-f16-00001-of-00003.gguf", "Q8_0")
    assert outcome.status == 0
    assert (tmp_path / "model-Q8_0.gguf").exists()


@pytest.mark.parametrize(
    ("arguments", "written", "kind"),
    [
        ("out.gguf Q6_K", "out.gguf", "Q6_K"),
        ("out.gguf q6_k 2", "out.gguf", "Q6_K"),
        ("Q6_K", "model-Q6_K.gguf", "Q6_K"),
        ("Q6_K 1", "model-Q6_K.gguf", "Q6_K"),
        ("out.gguf", "out.gguf", "Q4_HIFI"),
        ("out.gguf 18", "out.gguf", "Q6_K"),
        ("7", "model-Q8_0.gguf", "Q8_0"),
        ("out.gguf q5_k", "out.gguf", "Q5_K"),
        ("--threads 2 out.gguf Q6_K", "out.gguf", "Q6_K"),
        ("out.gguf Q6_K -t 1", "out.gguf", "Q6_K"),
        ("out.gguf Q6_K 0", "out.gguf", "Q6_K"),
        ("out.gguf Q6_K -t 0", "out.gguf", "Q6_K"),
        ("--pure out.gguf Q6_K", "out.gguf", "Q6_K"),
    ],
)
def test_arguments_stand_in_llama_quantizes_order(
    arguments: str, written: str, kind: str, run: Run, folder: Path
) -> None:
    outcome = run("quantize", "model-f16.gguf", *arguments.split())
    number = next((word for word in arguments.split() if word in ("7", "18")), "")
    note = f"note: {number} is llama-quantize's number of {kind}\n" if number else ""
    assert (outcome.status, outcome.err) == (0, note)
    assert names_in(folder) == {"model-f16.gguf", written}
    assert types_of(folder / written)[VALUE] in (kind, "Q6_K" if kind == "Q5_K" else kind)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "Missing argument 'SRC'"),
        (
            "model-f16.gguf out.gguf Q4_K_XL",
            "unknown type 'Q4_K_XL'; did you mean Q4_K_S or Q4_K_M? choose one",
        ),
        (
            "model-f16.gguf out.gguf Q4_K_M two",
            "'two' is not a number of threads; the order of the arguments is SRC DST",
        ),
        (
            "model-f16.gguf Q4_K_M out.gguf",
            "write DST before TYPE: out.gguf Q4_K_M",
        ),
        ("model-f16.gguf out.gguf Q4_K_M 2 3", "too many arguments: 3"),
        ("model-f16.gguf -t -1", "-1 is not in the range"),
        ("model-f16.gguf --outliers 33", "33 is not in the range 0<=x<=32"),
        ("model-f16.gguf --ffn-down-coverage 1.5", "1.5 is not in the range 0<=x<=1"),
        ("model-f16.gguf --layout spoon", "'spoon' is not one of"),
        ("model-f16.gguf --minimal", "minimal is for models above 100 B"),
        ("model-f16.gguf --tensor-type attn_v", "write REGEX=TYPE"),
        ("model-f16.gguf --tensor-type (=q8_0", "no regular expression"),
        ("model-f16.gguf --tensor-type attn_v=q9_9", "unknown tensor type 'q9_9'"),
        ("model-f16.gguf --tensor-type-file missing.txt", "missing.txt"),
        ("model-f16.gguf --split-max-size 12X", "'12X' is not a size above zero"),
        ("model-f16.gguf --split-max-size 1M --keep-split", "choose one"),
        ("model-f16.gguf --include-weights ffn", "give one"),
        ("model-f16.gguf Q4_K_M --outliers 3", "Q4_K_M makes no such tensor"),
        ("model-f16.gguf --no-such-option", "No such option"),
        ("model-f16.gguf model-f16.gguf Q8_0 --overwrite", "is the source"),
        ("model-f16.gguf taken.gguf", "exists already"),
        ("model-f16.gguf missing/out.gguf", "there is no folder"),
    ],
)
def test_misuse_ends_with_status_2(arguments: str, message: str, run: Run, folder: Path) -> None:
    (folder / "taken.gguf").write_bytes(b"precious")
    before = names_in(folder)
    outcome = run("quantize", *arguments.split())
    assert (outcome.status, outcome.out) == (2, "")
    assert message in outcome.err and "Traceback" not in outcome.err
    assert names_in(folder) == before
    assert (folder / "taken.gguf").read_bytes() == b"precious"


def not_finite(path: Path) -> Path:
    weights = random_weights(3, 256)
    weights[1, 2] = np.nan
    return write_model(path, {QUERY: weights})


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ("missing.gguf", "Q8_0", "missing.gguf: cannot be opened: No such file"),
        ("text.gguf", "Q8_0", "text.gguf: not a GGUF file"),
        ("quantized.gguf", "Q4_K_M", "allow it with --allow-requantize"),
        ("nan.gguf", "Q4_K_M", f"nan.gguf: tensor {QUERY}: the weight in row 1, column 2 is NaN"),
        ("model-f16.gguf", "Q8_0 --imatrix text.gguf", "text.gguf: "),
        ("odd.gguf", "Q4_K_M --no-fallback", "drop --no-fallback"),
    ],
)
def test_work_that_fails_ends_with_status_1(
    source: str, arguments: str, message: str, run: Run, folder: Path
) -> None:
    (folder / "text.gguf").write_text("this is no model, only some text that is long enough")
    q4hifi.quantize_file("model-f16.gguf", "quantized.gguf", "Q8_0")
    not_finite(folder / "nan.gguf")
    write_model(folder / "odd.gguf", {QUERY: random_weights(3, 96)})
    before = names_in(folder)
    outcome = run("quantize", source, "out.gguf", *arguments.split())
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err.startswith("Error: ") and message in outcome.err
    assert outcome.err.count("\n") == 1
    assert names_in(folder) == before


def test_overwriting_must_be_asked_for(run: Run, folder: Path) -> None:
    (folder / "out.gguf").write_bytes(b"precious")
    assert run("quantize", "model-f16.gguf", "out.gguf", "Q8_0", "--overwrite").status == 0
    assert q4hifi.verify_file("out.gguf") == []


def test_requantizing_can_be_allowed(run: Run, folder: Path) -> None:
    q4hifi.quantize_file("model-f16.gguf", "first.gguf", "Q8_0")
    assert run("quantize", "--allow-requantize", "first.gguf", "second.gguf", "Q4_K_S").status == 0
    assert types_of(folder / "second.gguf")[QUERY] == "Q4_K"


# ---- quantize: options that choose types ---------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "types"),
    [
        ("Q4_K_M --tensor-type attn_v=q8_0", {VALUE: "Q8_0", "blk.1.attn_v.weight": "Q8_0", QUERY: "Q4_K"}),
        (
            r"Q4_K_M --tensor-type blk\.0\.ATTN_V=q5_k --tensor-type attn_v=Q8_0",
            {VALUE: "Q5_K", "blk.1.attn_v.weight": "Q8_0"},
        ),
        ("Q4_K_M --tensor-type-file types.txt", {VALUE: "Q6_K", QUERY: "Q5_0", DOWN: "F16"}),
        (
            "Q4_K_M --tensor-type attn_q=q8_0 --tensor-type-file types.txt",
            {VALUE: "Q6_K", QUERY: "Q8_0", DOWN: "F16"},
        ),
        ("Q4_K_M --token-embedding-type q8_0", {"token_embd.weight": "Q8_0", QUERY: "Q4_K"}),
        ("Q4_K_M --pure", {"token_embd.weight": "Q4_K", VALUE: "Q4_K", "blk.1.attn_v.weight": "Q4_K"}),
        ("Q4_HIFI", {VALUE: "Q4_HIFI", DOWN: "Q4_HIFI", "blk.1.ffn_down.weight": "Q4_K"}),
        ("Q4_HIFI --ffn-down-coverage 1", {DOWN: "Q4_HIFI", "blk.1.ffn_down.weight": "Q4_HIFI"}),
        ("Q4_HIFI --outliers 0", {VALUE: "Q4_K", DOWN: "Q4_K"}),
        ("F32", {VALUE: "F32"}),
        ("COPY", {VALUE: "F16"}),
    ],
)
def test_options_choose_types(arguments: str, types: dict[str, str], run: Run, folder: Path) -> None:
    (folder / "types.txt").write_text("attn_q=q5_0 attn_v=q6_k\nffn_down=f16\n")
    planned = run("plan", "model-f16.gguf", *arguments.split(), "--json")
    assert (planned.status, planned.err) == (0, "")
    by_name = {t["name"]: t["type"] for t in json.loads(planned.out)["tensors"]}
    assert by_name.items() >= types.items()
    assert run("quantize", "model-f16.gguf", "out.gguf", *arguments.split()).status == 0
    assert types_of(folder / "out.gguf") == by_name


def test_output_options(run: Run, tmp_path: Path) -> None:
    names = ("output.weight", "token_embd.weight", QUERY)
    source = write_model(tmp_path / "in.gguf", {name: random_weights(4, 256) for name in names})
    for arguments, types in [
        ("--output-tensor-type q8_0", ["Q8_0", "Q4_K", "Q4_K"]),
        ("--leave-output-tensor", ["F16", "Q4_K", "Q4_K"]),
        ("", ["Q6_K", "Q4_K", "Q4_K"]),
    ]:
        planned = run("plan", source, "Q4_K_S", "--json", *arguments.split())
        assert [t["type"] for t in json.loads(planned.out)["tensors"]] == types


def test_the_imatrix_and_where_it_is_used(run: Run, folder: Path) -> None:
    sums = {name: (random_sums(1, 256, [9], seed=1), np.array([9])) for name in (VALUE, QUERY)}
    write_imatrix(folder / "imatrix.gguf", sums)
    made = {}
    for options in ("", "--imatrix imatrix.gguf", "--imatrix imatrix.gguf --include-weights attn_v",
                    "--imatrix imatrix.gguf --exclude-weights attn_v --exclude-weights embd"):  # fmt: skip
        outcome = run("quantize", "model-f16.gguf", "out.gguf", "Q4_K_S", "--overwrite", *options.split())
        assert outcome.status == 0
        assert ("weighted by importance" in outcome.out) == bool(options)
        assert ("without importance: token_embd.weight" in outcome.out) == bool(options)
        tensors = read_tensors(folder / "out.gguf")
        made[options.split()[-1] if options else ""] = tensors[VALUE].data, tensors[QUERY].data
    (plain_v, plain_q), (both_v, both_q), included, excluded = made.values()
    assert plain_v != both_v and plain_q != both_q
    assert (included, excluded) == ((both_v, plain_q), (plain_v, both_q))


def test_cutting_the_output(run: Run, folder: Path) -> None:
    outcome = run("quantize", "model-f16.gguf", "cut.gguf", "Q8_0", "--split-max-size", "90000")
    assert outcome.status == 0
    assert [f"cut-0000{i}-of-00003.gguf" for i in (1, 2, 3)] == sorted(names_in(folder) - {"model-f16.gguf"})
    assert outcome.out.count("\nwrote cut-0000") == 3
    assert run("quantize", "cut-00001-of-00003.gguf", "again.gguf", "COPY", "--keep-split").status == 0
    assert "again-00003-of-00003.gguf" in names_in(folder)


# ---- plan, inspect -------------------------------------------------------------------------------


def test_plan_is_a_dry_run(run: Run, folder: Path) -> None:
    planned = run("plan", "model-f16.gguf", "q4_k_m")
    assert (planned.status, planned.err) == (0, "")
    assert run("quantize", "model-f16.gguf", "Q4_K_M", "--dry-run") == planned
    by_number = run("quantize", "model-f16.gguf", "out.gguf", "15", "--dry-run")
    assert by_number == planned._replace(err="note: 15 is llama-quantize's number of Q4_K_M\n")
    assert names_in(folder) == {"model-f16.gguf"}
    size = q4hifi.plan_file("model-f16.gguf", "Q4_K_M").file_bytes
    assert size is not None
    assert f"\n{size / 1024:.2f} KiB in all, " in planned.out


@pytest.mark.parametrize("layout", ["split", "fork"])
def test_plan_as_json(layout: str, run: Run, folder: Path) -> None:
    arguments = ("--layout", layout, "--outliers", "3", "--json")
    planned = run("plan", "model-f16.gguf", *arguments)
    read = json.loads(planned.out)
    assert read == q4hifi.plan_file("model-f16.gguf", layout=layout, outliers=3).as_dict() | {
        "tensors": read["tensors"]
    }
    assert run("quantize", "model-f16.gguf", "--dry-run", *arguments) == planned
    assert run("quantize", "model-f16.gguf", "out.gguf", "--layout", layout, "--outliers", "3").status == 0
    assert read["file_bytes"] == (folder / "out.gguf").stat().st_size
    assert {t["name"]: t["type"] for t in read["tensors"]} == types_of(folder / "out.gguf")


def test_plan_lists_tensors(run: Run, folder: Path) -> None:
    outcome = run("plan", "model-f16.gguf", "--tensors")
    rows = {line.split()[0]: line.split()[1:] for line in outcome.out.splitlines() if line}
    assert rows[VALUE] == ["256", "x", "64", "F16", "Q4_HIFI", "8", "10,752"]
    assert rows["blk.0.attn_norm.weight"] == ["256", "F32", "F32", "1,024"]
    assert rows["token_embd.weight"] == ["256", "x", "300", "F16", "Q6_K", "63,000"]


def test_inspect(run: Run, folder: Path) -> None:
    outcome = run("inspect", EXAMPLE)
    assert (outcome.status, outcome.err) == (0, "")
    rows = [line.split() for line in outcome.out.splitlines()]
    assert ["general.architecture", "qwen3"] in rows
    assert ["tokenizer.ggml.tokens", "array", "of", "4096", "string"] in rows
    assert ["F16", "57", "5,767,168", "11.00", "MiB"] in rows
    assert f"{EXAMPLE}\nF16, 5,772,544 parameters in 90 tensors, 11.15 MiB, 16.015 bits" in outcome.out
    q4hifi.quantize_file("model-f16.gguf", "out.gguf", layout="fork")
    listed = run("inspect", "out.gguf", "--tensors")
    assert [VALUE, "256", "x", "64", "Q4_HIFI", "8", "15,616"] in [
        line.split() for line in listed.out.splitlines()
    ]
    assert "Q4_HIFI, fork layout, " in listed.out


def test_inspect_as_json(run: Run, folder: Path) -> None:
    q4hifi.quantize_file("model-f16.gguf", "out.gguf")
    outcome = run("inspect", "out.gguf", "--json")
    read = json.loads(outcome.out)
    assert (outcome.status, outcome.err) == (0, "")
    assert (read["layout"], read["gguf_version"], read["alignment"]) == ("split", 3, 32)
    assert read["file_bytes"] == (folder / "out.gguf").stat().st_size
    assert read["metadata"]["q4_hifi.outliers"] == 8
    value = next(t for t in read["tensors"] if t["name"] == VALUE)
    assert value == {
        "name": VALUE,
        "role": "attn_v",
        "shape": [256, 64],
        "type": "Q4_HIFI",
        "outliers": 8,
        "bytes": 64 * 168,
    }
    assert read["n_params"] == q4hifi.plan_file("model-f16.gguf").n_params


# ---- verify, export, dequantize ------------------------------------------------------------------


def test_verify(run: Run, folder: Path) -> None:
    q4hifi.quantize_file("model-f16.gguf", "out.gguf")
    assert run("verify", "out.gguf") == (0, "out.gguf: sound\n", "")
    sound = run("verify", "out.gguf", "--json", "--threads", "1")
    assert (sound.status, sound.err) == (0, "")
    assert json.loads(sound.out) == {"file": "out.gguf", "sound": True, "findings": []}

    with GgufFile.open("out.gguf") as model:
        places = [model.tensors[VALUE + ".outlier_index"].offset, model.tensors[QUERY].offset + 144 * 3]
    patch(folder / "out.gguf", places[0], b"\x09\x09")
    patch(folder / "out.gguf", places[1], b"\x01\x7e")
    bad = run("verify", "out.gguf")
    assert (bad.status, bad.err) == (1, "")
    first, second = sorted(bad.out.splitlines())
    assert first.startswith(f"out.gguf: {QUERY}: the weight in row 3, column 0 is NaN")
    assert second.startswith(f"out.gguf: {VALUE}: block 0: ")
    as_json = run("verify", "out.gguf", "--json")
    assert as_json.status == 1
    read = json.loads(as_json.out)
    assert read["sound"] is False
    assert sorted(finding["tensor"] for finding in read["findings"]) == [QUERY, VALUE]

    os.truncate("out.gguf", 5000)
    broken = run("verify", "out.gguf")
    assert broken.status == 1
    assert broken.out.startswith("out.gguf: ") and "cut off" in broken.out
    assert broken.out.count("out.gguf") == 1


@pytest.mark.parametrize(
    ("command", "source", "compared"),
    [
        ("export SRC out.gguf --as q6_k", "Q4_HIFI", True),
        ("dequantize SRC out.gguf", "Q4_K_M", True),
        ("dequantize SRC out.gguf F32", "Q8_0", True),
        ("quantize SRC out.gguf Q4_0 --allow-requantize", "Q8_0", True),
        ("quantize SRC out.gguf Q4_0", "F16", False),
        ("dequantize SRC out.gguf BF16", "F16", False),
    ],
)
def test_a_report_says_with_what_errors_are_compared(
    command: str, source: str, compared: bool, run: Run, folder: Path
) -> None:
    q4hifi.quantize_file("model-f16.gguf", "src.gguf", source)
    outcome = run(*command.replace("SRC", "src.gguf").split())
    assert outcome.status == 0 and "squared error over squared weight\n" in outcome.out
    note = "compared with the decoded weights of SRC; what was lost when SRC was quantized is not included\n"
    assert (note in outcome.out) == compared


@pytest.mark.parametrize("arguments", ["--as drop", "--as Q5_K", "--as f16 -t 1", "--layout fork"])
def test_export(arguments: str, run: Run, folder: Path) -> None:
    q4hifi.quantize_file("model-f16.gguf", "hifi.gguf")
    outcome = run("export", "hifi.gguf", "out.gguf", *arguments.split())
    assert (outcome.status, outcome.err) == (0, "")
    kind = {"drop": "Q4_K", "Q5_K": "Q5_K", "f16": "F16", "fork": "Q4_HIFI"}[arguments.split()[1]]
    assert types_of(folder / "out.gguf")[VALUE] == kind
    assert ("only for the llama.cpp branch" in outcome.out) == (kind == "Q4_HIFI")
    again = run("export", "hifi.gguf", "out.gguf", *arguments.split())
    assert again.status == 2 and "exists already" in again.err
    as_json = run("export", "hifi.gguf", "out.gguf", *arguments.split(), "--overwrite", "--json")
    assert json.loads(as_json.out)["file_bytes"] == (folder / "out.gguf").stat().st_size


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ("hifi.gguf out.gguf", 2, "choose one of --as and --layout"),
        ("hifi.gguf out.gguf --as drop --layout fork", 2, "choose one of"),
        ("hifi.gguf out.gguf --as q3_k", 2, "'q3_k' is not one of"),
        ("hifi.gguf out.gguf --as Q6", 2, "Did you mean q6_k?"),
        ("hifi.gguf", 2, "Missing argument 'DST'"),
        ("model-f16.gguf out.gguf --as drop", 1, "has no Q4_HIFI tensors; it loads in llama.cpp as it is"),
    ],
)
def test_exports_that_cannot_be(arguments: str, status: int, message: str, run: Run, folder: Path) -> None:
    q4hifi.quantize_file("model-f16.gguf", "hifi.gguf")
    outcome = run("export", *arguments.split())
    assert (outcome.status, outcome.out) == (status, "")
    assert message in outcome.err
    assert "out.gguf" not in names_in(folder)


@pytest.mark.parametrize(("arguments", "kind"), [("", "F16"), ("f32", "F32"), ("BF16 --threads 1", "BF16")])
def test_dequantize(arguments: str, kind: str, run: Run, folder: Path) -> None:
    q4hifi.quantize_file("model-f16.gguf", "hifi.gguf")
    outcome = run("dequantize", "hifi.gguf", "out.gguf", *arguments.split())
    assert (outcome.status, outcome.err) == (0, "")
    assert types_of(folder / "out.gguf")[VALUE] == kind
    assert run("dequantize", "hifi.gguf", "out.gguf", *arguments.split()).status == 2
    as_json = run("dequantize", "hifi.gguf", "out.gguf", *arguments.split(), "--overwrite", "--json")
    assert json.loads(as_json.out)["destination"] == ["out.gguf"]
    assert run("dequantize", "hifi.gguf", "other.gguf", "Q8_0").status == 2


# ---- what is printed -----------------------------------------------------------------------------


def test_the_report_of_quantize(run: Run, folder: Path) -> None:
    outcome = run("quantize", "model-f16.gguf")
    assert outcome.err == ""
    text = outcome.out
    assert "\x1b" not in text and "\r" not in text
    types, errors, notes, summary = text.split("\n\n")
    size = (folder / "model-Q4_HIFI.gguf").stat().st_size
    plan = q4hifi.plan_file("model-f16.gguf")
    assert [line.split()[0] for line in types.splitlines()] == ["Q4_HIFI", "type", *plan.by_type, "all"]
    assert types.splitlines()[-1].split()[1:3] == ["9", f"{plan.n_params:,}"]
    assert errors.startswith("squared error over squared weight\nrole")
    assert {line.split()[0] for line in errors.splitlines()[2:]} == {
        *("token_embd", "attn_q", "attn_v", "ffn_down")
    }
    assert notes == (
        "Q4_HIFI at 0.241 M parameters: 8 outliers per block, attn_v of 100% and ffn_down of 50% of the"
        " layers\n3 tensors are Q4_HIFI: 'q4hifi export' makes a file that llama.cpp loads"
    )
    assert re.fullmatch(
        rf"[0-9.]+ KiB -> {size / 1024:.2f} KiB, {plan.bits_per_weight:.3f} bits per weight, [0-9.]+ s,"
        r" [0-9.]+ million weights per second\nwrote model-Q4_HIFI\.gguf\n",
        summary,
    )
    for table in (types, errors):  # columns are aligned: all rows of a table are equally long
        assert len({len(line) for line in table.splitlines() if "  " in line}) == 1


def test_fallbacks_and_inactive_experts_are_told(run: Run, tmp_path: Path) -> None:
    name = "blk.0.ffn_up_exps.weight"
    source = write_model(
        tmp_path / "in.gguf",
        {name: random_weights(4, 2, 256), QUERY: random_weights(3, 96)},
        pairs=[("llama.expert_count", 4, GGUFValueType.UINT32)],
    )
    counts = [0, 3, 0, 1]
    write_imatrix(tmp_path / "im.gguf", {name: (random_sums(4, 256, counts, seed=0), np.array(counts))})
    outcome = run("quantize", source, tmp_path / "out.gguf", "Q4_K_M", "--imatrix", tmp_path / "im.gguf")
    assert outcome.status == 0
    assert (
        "1 of 2 tensors took another type (Q4_K -> Q5_0), because their rows (of 96 weights) do not consist"
        f" of whole blocks: {QUERY}\n"
    ) in outcome.out
    assert f"without importance: {QUERY}\n" in outcome.out
    assert f"experts that the imatrix's text never activated: 2, of {name}\n" in outcome.out


def test_the_fork_layout_comes_with_a_warning(run: Run, folder: Path) -> None:
    for arguments, warned in (((), False), (("--layout", "fork"), True)):
        outcome = run("quantize", "model-f16.gguf", "out.gguf", "--overwrite", *arguments)
        assert ("the fork layout is only for the llama.cpp branch" in outcome.out) == warned


def test_reports_as_json_are_exactly_json(run: Run, folder: Path) -> None:
    outcome = run("quantize", "model-f16.gguf", "--json")
    assert (outcome.status, outcome.err) == (0, "")
    read = json.loads(outcome.out)
    assert outcome.out == json.dumps(read, indent=2) + "\n"
    assert read["destination"] == ["model-Q4_HIFI.gguf"]
    assert read["file_bytes"] == (folder / "model-Q4_HIFI.gguf").stat().st_size
    assert read["plan"]["recipe"] == "Q4_HIFI"


HOSTILE = "[bold]\x1b[31mred\x07\udcff"


def test_names_from_files_cannot_command_the_terminal(run: Run, folder: Path) -> None:
    raw = HOSTILE.encode("utf-8", "surrogateescape")
    weights = random_weights(2, 256)
    weights[0, 0] = np.inf
    pairs: list[Any] = [
        (f"key.{HOSTILE[:-1]}", raw, GGUFValueType.STRING),
        ("key.inf", float("inf"), GGUFValueType.FLOAT32),
    ]
    write_model(folder / "bad.gguf", {f"{HOSTILE[:-1]}.weight": weights}, pairs=pairs)
    for arguments in (
        ["inspect", "bad.gguf", "--tensors"],
        ["plan", "bad.gguf", "--tensors"],
        ["verify", "bad.gguf"],
        ["quantize", "bad.gguf"],
        ["inspect", f"missing{HOSTILE}.gguf"],
        ["verify", f"missing{HOSTILE}.gguf"],
    ):
        outcome = run(*arguments)
        text = outcome.out + outcome.err
        assert r"[bold]\x1b[31mred\x07" in text
        assert not set("\x1b\x07\udcff") & set(text)
    read = json.loads(run("inspect", "bad.gguf", "--json").out, parse_constant=pytest.fail)
    assert read["metadata"]["key.inf"] == "inf"
    assert read["metadata"][f"key.{HOSTILE[:-1]}"] == HOSTILE


def test_output_that_the_encoding_lacks_is_escaped(folder: Path) -> None:
    pairs: list[Any] = [("general.name", "Größe 大", GGUFValueType.STRING)]
    write_model(folder / "named.gguf", {QUERY: random_weights(2, 256)}, pairs=pairs)
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    outcome = subprocess.run(
        [script(), "inspect", "named.gguf"], capture_output=True, env=environment, check=True
    )
    assert rb"Gr\xf6\xdfe \u5927" in outcome.stdout


# ---- terminals and signals -----------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 120])
@pytest.mark.parametrize(
    ("arguments", "n_rows"), [(("plan", "in.gguf", "--tensors"), 2), (("inspect", str(EXAMPLE)), 25)]
)
def test_tables_fit_the_terminal(arguments: tuple[str, ...], n_rows: int, width: int, folder: Path) -> None:
    names = ("blk.0.a_name_as_long_as_names_can_be_in_a_file_like_this.weight", VALUE)
    write_model(folder / "in.gguf", {name: random_weights(4, 256) for name in names})
    printed = in_terminal(width, *arguments)
    assert "\x1b[1m" in printed  # bold headings
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed).splitlines()
    assert all(len(line) <= width for line in lines if line != str(EXAMPLE))
    assert len([line for line in lines if re.match(r"(blk|tokenizer|general|qwen3)\.", line)]) == n_rows


def test_a_bar_shows_the_progress_in_a_terminal(folder: Path) -> None:
    printed = in_terminal(100, "quantize", "model-f16.gguf", "--json")
    assert "M weights/s" in printed and "━" in printed
    report = json.loads(printed[printed.index("{\r\n") :])
    assert report["destination"] == ["model-Q4_HIFI.gguf"]


def writes_in(folder: Path, pid: int) -> bool:
    """Whether a process has a file in a folder open that is new there: without a name, or hidden."""
    new = (str(folder / "#"), str(folder / "."))
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(descriptor).startswith(new):
                return True
    return False


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is not quantized before a signal reaches the command."""
    row, n_rows = random_weights(1, 1024).astype(np.float16).tobytes(), 32768
    path = tmp_path_factory.mktemp("large") / "large.gguf"
    pairs: list[Pair] = [
        ("general.architecture", "llama", GGUFValueType.STRING),
        ("llama.block_count", 1, GGUFValueType.UINT32),
    ]
    return write_stored(path, {QUERY: ("F16", (n_rows, 1024))}, pairs=pairs, data={QUERY: row * n_rows})


@pytest.mark.parametrize(
    ("number", "status", "message"),
    [(signal.SIGINT, 130, "Interrupted."), (signal.SIGTERM, 143, ""), (signal.SIGHUP, 129, "")],
)
def test_a_signal_ends_the_run_and_leaves_nothing(
    number: signal.Signals, status: int, message: str, large: Path, folder: Path
) -> None:
    before = names_in(folder)
    with subprocess.Popen(
        [script(), "quantize", str(large), "out.gguf", "Q4_K_M", "1"], stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 60
        while not writes_in(folder, process.pid) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        assert process.poll() is None and writes_in(folder, process.pid), "the run has not begun"
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err.strip()) == (status, message)
    assert names_in(folder) == before


def test_the_core_looks_numpy_up_when_imported_and_not_where_a_signal_may_come() -> None:
    program = """
import numpy as np, q4hifi._core as core
def interrupted(*_): raise KeyboardInterrupt
np.lib.NumpyVersion = interrupted
core.check_finite(np.zeros(4, np.uint8), 0, 1, 1)
"""
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (outcome.returncode, outcome.stderr) == (0, "")


# ---- measured coverage ---------------------------------------------------------------------------


def test_measured_coverage_keeps_to_its_budget_and_says_what_it_chose(run: Run, folder: Path) -> None:
    source = str(EXAMPLE)
    planned = run("plan", source, "--target-size", "3650KiB", "--write-tensor-types", "plan.txt")
    assert planned.status == 0
    made = run("quantize", source, "out.gguf", "--target-size", "3650KiB", "--write-tensor-types", "made.txt")
    assert made.status == 0
    size = (folder / "out.gguf").stat().st_size
    assert 3600 * 1024 < size <= 3650 * 1024
    for out in (planned.out, made.out):
        assert re.search(r"^budget 3\.56 MiB, used 3\.5\d MiB \(9\d\.\d\d%\)$", out, re.MULTILINE)
        assert "estimated KL divergence 0.00" in out and "'q4hifi compare' measures it" in out
        assert "sensitivities, which are from the residual stream;" in out
        assert re.search(r"^ffn_down +\d .*Q\d_K", out, re.MULTILINE)
    assert (folder / "plan.txt").read_bytes() == (folder / "made.txt").read_bytes()
    entries = dict(line.rsplit("=", 1) for line in (folder / "made.txt").read_text().splitlines())
    types = {f"^{re.escape(name)}$": kind.lower() for name, kind in types_of(folder / "out.gguf").items()}
    assert entries == {name: types[name] for name in entries} and len(entries) == 57


def test_guessed_sensitivities_come_with_a_note_before_the_work(run: Run, folder: Path) -> None:
    source = str(EXAMPLE)
    for arguments in (
        ("plan", source, "--like", "Q4_K_M"),
        ("quantize", source, "a.gguf", "--stock"),
        ("quantize", source, "b.gguf", "--target-bpw", "5", "--json"),
        ("quantize", source, "c.gguf", "--coverage", "measured", "--dry-run"),
        ("quantize", source, "d.gguf", "--target-size", "1MB"),
    ):
        outcome = run(*arguments)
        first, *others = outcome.err.splitlines()
        assert first.startswith("note: without an importance matrix, q4hifi can only guess")
        assert first.endswith("name it with --imatrix")
        assert (outcome.status, len(others)) == ((2, 1) if "d.gguf" in arguments else (0, 0))
        assert "can only guess" not in outcome.out or "--json" in arguments  # not twice
    (folder / "s.json").write_text(json.dumps({"sensitivities": dict.fromkeys(types_of(EXAMPLE), 0.1)}))
    for options in (["--sensitivities", "s.json"], ["Q4_K_M"], []):
        assert run("plan", source, *options).err == ""


def test_estimates_are_called_so_and_types_that_do_not_fit_are_named(run: Run, folder: Path) -> None:
    write_model(folder / "narrow.gguf", {QUERY: random_weights(300, 96), VALUE: random_weights(300, 96)})
    out = run("plan", "narrow.gguf", "--target-bpw", "6", "--stock").out
    assert "predicted" not in out and "Q4_HIFI" not in out
    assert (
        "2 of 2 tensors took types with smaller blocks (Q5_1), because their rows (of 96 weights) do not"
        f" consist of whole blocks of 256: {QUERY}, {VALUE}\n"
    ) in out


def test_measured_coverage_as_json(run: Run, folder: Path) -> None:
    outcome = run("plan", EXAMPLE, "--like", "q4_k_m", "--stock", "--json")
    plan = json.loads(outcome.out)
    assert plan["measured"]["stock"] is True
    assert plan["file_bytes"] <= plan["measured"]["budget"] == 3_835_680  # Q4_K_M without imatrix
    assert "Q4_HIFI" not in plan["by_type"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--target-size 1M", "the smallest that the types allow is"),
        ("--target-size lots", "'lots' is not a size"),
        ("--coverage scale --stock", "--stock: for --coverage measured, and not with --coverage scale"),
        ("Q4_K_M --stock", "stock: for type Q4_HIFI, and Q4_K_M is a fixed mix; leave out Q4_K_M or --stock"),
        ("Q8_0 --like Q4_K_M", "--like: for type Q4_HIFI, and Q8_0 is a fixed mix; leave out Q8_0 or --like"),
        ("--like Q4_KM", "--like: unknown type 'Q4_KM'; did you mean Q4_K_M?"),
        ("--like=", "'--like': it is empty"),
        ("--like iq3_xxs", "--like: unknown type 'iq3_xxs'; llama-quantize has IQ3_XXS"),
        ("--like Q4_HIFI", "--like is Q4_HIFI; name a recipe whose size is fixed, such as Q4_K_M"),
        ("--stock --tensor-type attn_v=q4_hifi", "--stock excludes Q4_HIFI"),
        ("--output-tensor-type x", "--output-tensor-type: unknown tensor type 'x'; choose one of F32"),
        ("--output-tensor-type q6k", "--output-tensor-type: unknown tensor type 'q6k'; did you mean Q6_K?"),
        ("--token-embedding-type=", "'--token-embedding-type': it is empty"),
        ("--token-embedding-type Q4_K_M", "; Q4_K_M is a mix of types, for a whole file"),
        ("--tensor-type a=Q4_KM", "--tensor-type a=Q4_KM: unknown tensor type 'Q4_KM'; did you mean Q4_K?"),
        ("--coverage mesured", "'mesured' is not one of 'scale', 'measured'. Did you mean measured?"),
        ("--layout frok", "Did you mean fork?"),
        ("--like Q4_K_M --write-tensor-types model-f16.gguf", "is the source"),
    ],
)
def test_measured_coverage_that_cannot_be_is_refused(
    arguments: str, message: str, run: Run, folder: Path
) -> None:
    source = EXAMPLE if "1M" in arguments else folder / "model-f16.gguf"
    outcome = run("quantize", source, "out.gguf", *arguments.split())
    assert (outcome.status, outcome.out) == (2, "")
    assert message in outcome.err
    assert names_in(folder) == {"model-f16.gguf"}
