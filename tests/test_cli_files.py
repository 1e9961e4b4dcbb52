"""No output is ever one of the files that a command was given: every command, every option, every name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from command import Run
from q4hifi.cli.files import InputFile, OutputFile
from q4hifi.cli.group import main
from synthetic import EXAMPLE, ROOT, write_runnable

LINES = {
    "quantize": "quantize {model} {OUT} Q4_K_M --imatrix {imatrix} --tensor-type-file {rules}",
    "quantize calibrated": "quantize {model} {OUT} --calibrate {text} --imatrix {imatrix}",
    "quantize sensitivities": "quantize {model} {OUT} --sensitivities {json} --imatrix {imatrix}",
    "quantize types": "quantize {model} {new} --imatrix {imatrix} --stock --write-tensor-types {OUT}",
    "plan": "plan {model} --imatrix {imatrix} --tensor-type-file {rules} --write-tensor-types {OUT}",
    "plan of shapes": "plan {json} --write-tensor-types {OUT}",
    "dequantize": "dequantize {model} {OUT}",
    "export": "export {model} {OUT} --as q6_k",
    "imatrix": "imatrix {model} -f {text} -c 16 -o {OUT}",
    "imatrix of matrices": "imatrix --in-file {imatrix} --in-file {imatrix} -o {OUT}",
    "imatrix with matrices": "imatrix {model} -f {text} -c 16 --in-file {imatrix} -o {OUT}",
    "calibrate": "calibrate {model} -f {text} --imatrix {imatrix} -o {OUT}",
    "perplexity": "perplexity {model} -f {text} -c 16 --kl-divergence-base {OUT}",
    "compare": "compare {model} {other} -f {text} -c 16 --save {OUT}",
    "plot": "compare {model} {other} -f {text} -c 16 --plot {OUT}",
}
WITHOUT_OVERWRITE = {"calibrate"}  # it goes on from its output

CHECKED_BY_THE_COMMAND = {
    ("quantize", "rest"),
    ("perplexity", "save_log_probs"),
    ("imatrix", "output"),
    ("calibrate", "output"),
    ("compare", "output"),
}
"""Outputs that have a default name, or are an input at other times."""

NO_FILES = {
    *("type", "as_", "layout", "prompt", "system", "tensor_types", "output_tensor_type", "like", "coverage"),
    *("token_embedding_type", "include_weights", "exclude_weights", "split_max_size", "target_size", "form"),
    *("words", "template", "override_kv", "tensor_split", "rpc"),
}
"""Parameters that are texts, but no names of files."""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of each kind that commands read."""
    folder = tmp_path_factory.mktemp("given")
    write_runnable(folder / "model.gguf", "llama")
    shutil.copy(folder / "model.gguf", folder / "other.gguf")
    shutil.copy(folder / "model.gguf", folder / "imatrix.gguf")  # it is not even opened
    (folder / "text.txt").write_text("words " * 200)
    (folder / "rules.txt").write_text("attn_v=q8_0\n")
    (folder / "shapes.json").write_text("{}")
    return folder


FILES = {
    "model": "model.gguf",
    "other": "other.gguf",
    "imatrix": "imatrix.gguf",
    "text": "text.txt",
    "rules": "rules.txt",
    "json": "shapes.json",
}

CASES = [(line, slot) for line, words in LINES.items() for slot in FILES if f"{{{slot}}}" in words]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("line", "slot"), CASES)
def test_an_output_over_an_input_is_refused(line: str, slot: str, given: Path, run: Run) -> None:
    before = contents(given)
    paths = {name: str(given / file) for name, file in FILES.items()} | {"new": str(given / "new.gguf")}
    words = LINES[line].format(OUT=paths[slot], **paths).split()
    found = run(*words, *([] if line in WITHOUT_OVERWRITE else ["--overwrite"]))
    assert found.status == 2
    if line != "plot":  # a plot's name has another ending
        assert f"is the source {paths[slot]} itself; choose another destination" in found.err
    assert contents(given) == before


@pytest.mark.parametrize("name", ["symlink", "hardlink", "relative", "shard"])
def test_other_names_of_an_input_are_refused(
    name: str, given: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words " * 200)
    model, dst = given / "model.gguf", tmp_path / "dst"
    if name == "symlink":
        dst.symlink_to(text)
    elif name == "hardlink":
        dst.hardlink_to(text)
    elif name == "relative":
        monkeypatch.chdir(tmp_path)
        dst = Path("..", tmp_path.name, "text.txt")
    else:
        model = tmp_path / "m-00001-of-00002.gguf"
        shutil.copy(EXAMPLE, model)
        dst = tmp_path / "m-00002-of-00002.gguf"
        shutil.copy(EXAMPLE, dst)
    before = dst.read_bytes()
    found = run("imatrix", model, "-f", text, "-c", "16", "-o", dst, "--overwrite")
    assert found.status == 2 and "itself; choose another destination" in found.err
    assert dst.read_bytes() == before and text.read_text() == "words " * 200


UNCHECKED = {
    "quantize": "quantize {e} {t} Q8_0 --tensor-type-file {t} --overwrite",
    "imatrix": "imatrix {e} -f {t} -c 16 --chunks 2 -o {t} --overwrite",
    "calibrate": "calibrate {e} -f {t} -c 16 --chunks 1 --group 9 -o {t}",
    "perplexity": "perplexity {e} -f {t} -c 16 --chunks 2 --kl-divergence-base {t} --overwrite",
    "compare": "compare {e} {e} -f {t} -c 16 --chunks 2 --save {t} --overwrite",
}


@pytest.mark.parametrize("name", UNCHECKED)
def test_the_rule_does_not_depend_on_the_early_check(
    name: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs with a default name are checked by each command; one that forgets it destroys nothing."""
    text = tmp_path / "text.txt"
    text.write_text("attn_v=q8_0 " * 100)
    monkeypatch.setattr(f"q4hifi.cli.{name}.check_output", lambda _, path, **__: Path(path))
    found = run(*UNCHECKED[name].format(e=EXAMPLE, t=text).split())
    assert found.status == 2 and f"{text} is the source {text} itself, given for" in found.err
    assert text.read_text() == "attn_v=q8_0 " * 100 and list(tmp_path.iterdir()) == [text]


def test_a_text_is_not_taken_for_a_partial_base_file(given: Path, tmp_path: Path, run: Run) -> None:
    text = tmp_path / "base.kld.partial"
    text.write_text("part of the words " * 200)
    words = ("perplexity", given / "model.gguf", "-f", text, "-c", "16", "--overwrite")
    found = run(*words, "--kl-divergence-base", tmp_path / "base.kld")
    assert found.status == 2 and f"is the source {text} itself" in found.err
    assert text.read_text() == "part of the words " * 200


@pytest.mark.skipif(not os.path.exists("/dev/stdin"), reason="standard input has no name here")
def test_standard_input_is_an_input(given: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words " * 200)
    words = ["imatrix", given / "model.gguf", "-f", "-", "-c", "16", "-o", text, "--overwrite"]
    with text.open("rb") as stdin:
        found = subprocess.run(
            [sys.executable, "-m", "q4hifi", *words], stdin=stdin, capture_output=True, check=False
        )
    assert found.returncode == 2 and b"itself; choose another destination" in found.stderr
    assert text.read_text() == "words " * 200


def test_two_outputs_cannot_be_one_file(given: Path, tmp_path: Path, run: Run) -> None:
    dst = tmp_path / "out.gguf"
    found = run("quantize", given / "model.gguf", dst, "--write-tensor-types", tmp_path / "." / "out.gguf")
    assert found.status == 2 and "is given for both --write-tensor-types and DST" in found.err
    assert not dst.exists()


SPLIT = ("--split-max-size", "1M", "--overwrite")


def test_types_are_not_written_over_a_shard(tmp_path: Path, run: Run) -> None:
    shard = tmp_path / "q-00001-of-00004.gguf"
    found = run("quantize", EXAMPLE, tmp_path / "q.gguf", "Q4_K_M", *SPLIT, "--write-tensor-types", shard)
    assert found.status == 2 and "is given for --write-tensor-types" in found.err
    assert not list(tmp_path.iterdir())  # before any work


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_shards_replace_no_rules(link: Callable[..., None] | None, tmp_path: Path, run: Run) -> None:
    """The names of shards are only known after planning."""
    rules, shard = tmp_path / "rules.txt", tmp_path / "q-00002-of-00004.gguf"
    rules.write_text("attn_v=q8_0\n")
    if link is None:
        rules = rules.rename(shard)
    else:
        link(rules, shard)
    words = ("quantize", EXAMPLE, tmp_path / "q.gguf", "Q4_K_M", *SPLIT, "--tensor-type-file", rules)
    found = run(*words)
    assert found.status == 2 and "itself, given for --tensor-type-file; choose another" in found.err
    assert rules.read_text() == "attn_v=q8_0\n" and len(list(tmp_path.iterdir())) == (
        1 if link is None else 2
    )


@pytest.mark.parametrize(
    "line",
    ["quantize {}", "quantize {e} {}", "plan {e} --imatrix {}", "imatrix {e} -f {}", "export {e} {}"],
)
def test_an_empty_file_name_is_refused(line: str, run: Run) -> None:
    """As a variable of the shell that is not set gives it."""
    words = ["" if word == "{}" else word.format(e=EXAMPLE) for word in line.split()]
    found = run(*words)
    assert found.status == 2 and re.search("file name is empty|after SRC is empty", found.err)


EMPTY = {
    "imatrix {e} -f {t}": ["-o", "--in-file", "--include-weights", "--exclude-weights"],
    "imatrix {e}": ["-f"],
    "calibrate {e}": ["-f"],
    "calibrate {e} -f {t}": ["-o", "--imatrix", "--include-weights", "--exclude-weights"],
    "perplexity {e}": ["-f"],
    "perplexity {e} -f {t}": ["--kl-divergence-base"],
    "perplexity {e} --kl-divergence": ["--kl-divergence-base"],
    "compare {e} {e}": ["-f"],
    "compare {e} {e} -f {t}": ["--plot", "--save"],
    "bench {e}": ["--llama-library", "--tensor-split", "--rpc"],
    "generate {e}": ["-f"],
    "generate {e} --chat": ["--chat-template", "--chat-template-file"],
    "quantize {e} out.gguf": [
        *("--imatrix", "--tensor-type-file", "--write-tensor-types", "--sensitivities", "--calibrate"),
        *("--include-weights", "--exclude-weights", "--like", "--output-tensor-type", "--tensor-type"),
        *("--token-embedding-type", "--target-size", "--split-max-size", "--override-kv"),
        "--prune-layers",
    ],
}
"""The beginning of a command line -> the options to which it gives an empty value."""


@pytest.mark.parametrize(
    ("line", "option"), [(line, option) for line, options in EMPTY.items() for option in options]
)
def test_an_empty_value_is_refused(
    line: str, option: str, given: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a variable of the shell that is not set gives it. It must not choose a default without a word."""
    monkeypatch.chdir(tmp_path)
    found = run(*line.format(e=EXAMPLE, t=given / "text.txt").split(), option, "")
    assert (found.status, found.out) == (2, "")
    assert re.search(f"Invalid value for .*'{option}'", found.err), found.err
    assert not list(tmp_path.iterdir())


def test_every_option_for_a_text_is_tried_with_an_empty_value() -> None:
    context = click.Context(main)
    tried = {option for options in EMPTY.values() for option in options}
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        for param in command.params:
            if isinstance(param, click.Option) and param.type.name in ("text", "file"):
                assert tried & {*param.opts} or param.name in ("prompt", "system"), f"{name} {param.opts}"


# ---- names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["-x.gguf", "-c.gguf", "--x.gguf", "--chunks.gguf", "-", "-t.txt"])
@pytest.mark.parametrize("line", ["inspect {}", "perplexity {} -f text.txt", "quantize {}", "bench {}"])
def test_a_file_that_looks_like_an_option(
    line: str, name: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLE, tmp_path / name)
    found = run(*line.format(name).split())
    if name == "-":  # no option
        assert f"write ./{name}" not in found.err
    else:
        assert found.status == 2 and f"; to name the file {name}, write ./{name}" in found.err
    assert run("inspect", f"./{name}").status == 0


def test_other_mistakes_get_no_hint_at_a_file(run: Run) -> None:
    for words in (("--frob",), ("-c", "x"), ("-n.txt",)):
        assert "to name the file" not in run("perplexity", EXAMPLE, *words).err


MODEL, TEXT, IMATRIX, OUT = b"m\xff\xc3\xa4.gguf", b"t\xfe.txt", b"i\xfd.gguf", b"o\xfc.gguf"
UNDECODABLE = [
    (b"inspect", MODEL),
    (b"verify", MODEL),
    (b"imatrix", MODEL, b"-f", TEXT, b"-c", b"32", b"--chunks", b"2", b"-o", IMATRIX),
    (b"imatrix", b"--in-file", IMATRIX, b"--json"),
    (b"quantize", MODEL, OUT, b"Q4_K_M", b"--imatrix", IMATRIX),
    (b"quantize", MODEL, OUT, b"Q4_K_M", b"--overwrite"),
    (b"plan", MODEL, b"Q4_K_M", b"--imatrix", IMATRIX, b"--write-tensor-types", b"y\xff.txt"),
    (b"quantize", MODEL, b"Q8_0", b"--tensor-type-file", b"y\xff.txt"),
    (b"compare", MODEL, OUT, b"-f", TEXT, b"-c", b"32", b"--chunks", b"2", b"--plot", b"$p\xff$.png"),
    (b"perplexity", MODEL, b"-f", TEXT, b"-c", b"32", b"--chunks", b"2", b"--kl-divergence-base", b"k\xff"),
    (b"perplexity", OUT, b"--kl-divergence-base", b"k\xff", b"--kl-divergence"),
    (b"calibrate", MODEL, b"-f", TEXT, b"-c", b"16", b"--chunks", b"1", b"--group", b"9"),
    (b"bench", MODEL, b"-p", b"4", b"-n", b"2", b"-r", b"1"),
    (b"generate", MODEL, b"-f", TEXT, b"-n", b"2", b"-c", b"900"),
    (b"dequantize", OUT, b"d\xff.gguf"),
]
FAILING = [
    (b"inspect", b"none\xff.gguf"),
    (b"inspect", TEXT),
    (b"inspect", b"-" + MODEL),
    (b"inspect", MODEL, TEXT),
    (b"perplexity", MODEL, TEXT),
    (b"imatrix", MODEL, b"-f", b"none\xff.txt"),
    (b"quantize", MODEL, b"o\xff"),
    (b"quantize", MODEL, OUT, b"Q4_K_M", b"--imatrix", TEXT),
    (b"plan", b"none\xff.json"),
    (b"generate", MODEL, b"--chat", b"--chat-template-file", TEXT, b"-p", b"a"),
    (b"frob\xff",),
]


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are always text there")
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_undecodable_names_are_printed_escaped(locale: str, tmp_path: Path) -> None:
    """Under LANG=C no name with other letters than ASCII can be decoded."""
    settings = {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    environment = {**os.environ, **settings}
    script = (
        "import sys\nfrom q4hifi.cli import main\nimport q4hifi.cli.ending\n"
        "for line in sys.stdin.buffer.read().split(b'\\n'):\n"
        "    import os\n"
        "    sys.stdout.flush(); pid = os.fork()\n"
        "    if not pid: main([os.fsdecode(word) for word in line.split(b'\\t')])\n"
        "    print('status', os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)\n"
    )
    shutil.copy(EXAMPLE, os.fsencode(tmp_path) + b"/" + MODEL)
    shutil.copy(ROOT / "tests" / "golden" / "text.txt", os.fsencode(tmp_path) + b"/" + TEXT)
    lines = [*UNDECODABLE, *FAILING]
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=b"\n".join(b"\t".join(line) for line in lines),
        capture_output=True,
        cwd=tmp_path,
        env=environment,
        check=True,
    )
    statuses = [line.split()[1] for line in done.stdout.splitlines() if line.startswith(b"status ")]
    failed = [line for line, status in zip(lines, statuses, strict=True) if status != b"0"]
    assert failed == FAILING, done.stderr
    for word in (b"Traceback", b"internal error", b"\xff", b"\xfe"):
        assert word not in done.stdout + done.stderr, done.stderr
    assert rb"m\udcff" in done.stdout and rb"none\udcff.txt: cannot be read" in done.stderr


@pytest.mark.parametrize("src", [".", "/", "none/model.gguf", os.devnull])
def test_a_source_that_is_no_file_is_told_before_a_name_derived_from_it(src: str, run: Run) -> None:
    found = run("quantize", src)
    assert found.status == 1 and found.err.startswith(f"Error: {src}: ")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_noticed_before_the_work(given: Path, tmp_path: Path, run: Run) -> None:
    tmp_path.chmod(0o500)
    found = run("imatrix", given / "model.gguf", "-f", given / "no text", "-o", tmp_path / "i.gguf")
    tmp_path.chmod(0o700)
    assert found.status == 1 and "i.gguf: cannot be written: Permission denied" in found.err


def test_every_option_that_names_a_file_says_so() -> None:
    """A new option that is neither an input nor an output nor known to be no file fails here."""
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        for param in command.params:
            if param.type.name not in ("text", "file") or (name, param.name) in CHECKED_BY_THE_COMMAND:
                continue
            if param.name not in NO_FILES:
                assert isinstance(param.type, InputFile | OutputFile), f"{name} {param.name}"


@pytest.mark.parametrize(
    "line",
    [
        ["quantize", EXAMPLE, "o.gguf", "LONG"],
        ["quantize", EXAMPLE, "LONG"],
        ["quantize", EXAMPLE, "o.gguf", "--like", "LONG"],
        ["quantize", EXAMPLE, "o.gguf", "--tensor-type=a=LONG"],
        ["quantize", EXAMPLE, "o.gguf", "--target-size", "LONG"],
        ["quantize", EXAMPLE, "o.gguf", "--output-tensor-type", "LONG"],
        ["quantize", EXAMPLE, "o.gguf", "--LONG"],
        ["inspect", "LONG"],
        ["bench", EXAMPLE, "-p", "LONG"],
        ["bench", EXAMPLE, "--engine", "LONG"],
        ["generate", EXAMPLE, "-f", "LONG"],
        ["generate", EXAMPLE, "--chat", "--chat-template", "LONG"],
        ["LONG"],
    ],
)
def test_no_message_repeats_a_long_argument(
    line: list[object], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run(*(str(word).replace("LONG", "x\\y'" * 5000) for word in line))
    assert outcome.status in (1, 2) and len(outcome.err) < 1500
