"""The commands that run models: what they print where, what they write, how they end."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import copyfile

import numpy as np
import pytest

import q4hifi
from command import Run, in_terminal, script
from q4hifi import load_importance
from q4hifi.cli.word_wrap import WordWrap
from q4hifi.evaluate.comparison_run import ComparisonRun
from q4hifi.gguf_io.reader import GgufFile
from synthetic import EXAMPLE, ROOT, names_in, patch

TEXT = ROOT / "tests/golden/text.txt"
GOLDEN = json.loads((ROOT / "tests/golden/llama_evaluation.json").read_text())
CUT = ("-f", TEXT, "-c", 64, "--chunks", 6)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny-Q4_K_M.gguf"
    q4hifi.quantize_file(EXAMPLE, path, "Q4_K_M")
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- perplexity ----------------------------------------------------------------------------------


def test_perplexity(run: Run) -> None:
    outcome = run("perplexity", EXAMPLE, *CUT)
    assert (outcome.status, outcome.err) == (0, "")
    running = [float(value) for value in re.findall(r"\[\d\]([\d.]+),", outcome.out)]
    assert running == pytest.approx(GOLDEN["F16"]["running"], rel=5e-4)
    final = re.search(r"^Final estimate: PPL = ([\d.]+) \+/- ([\d.]+)$", outcome.out, re.MULTILINE)
    assert final is not None
    assert [float(v) for v in final.groups()] == pytest.approx(GOLDEN["F16"]["ppl"], rel=5e-4)
    found = json.loads(run("perplexity", EXAMPLE, *CUT, "--json").out)
    assert f"{found['ppl']['value']:.4f}" == final[1]


def test_chunks_beyond_the_context_of_the_training_are_noted(run: Run) -> None:
    """The example was trained on 256 tokens at a time."""
    for words in (("perplexity", EXAMPLE), ("compare", EXAMPLE, EXAMPLE), ("imatrix", EXAMPLE)):
        found = run(*words, "-f", ROOT / "README.md", "-c", 260, "--chunks", 1, "--threads", 2)
        assert found.status == 0
        assert "was trained on 256 tokens at a time" in found.err and "-c 256 measures" in found.err


def test_a_perplexity_beyond_floats_is_infinite_and_null_in_json(run: Run, folder: Path) -> None:
    """Damaged files have such; none must end in a traceback, nor in JSON that no reader takes."""
    copyfile(EXAMPLE, folder / "damaged.gguf")
    with GgufFile.open(EXAMPLE) as file:
        norm = file.tensors["output_norm.weight"]
    loud = np.full(norm.shape[0], 1e6, np.float32)
    patch(folder / "damaged.gguf", norm.offset, loud.tobytes())
    outcome = run("perplexity", folder / "damaged.gguf", *CUT)
    assert (outcome.status, outcome.err) == (0, "")
    assert "[1]inf" in outcome.out and "PPL = inf +/- inf" in outcome.out
    found = json.loads(
        run("perplexity", folder / "damaged.gguf", *CUT, "--json").out, parse_constant=pytest.fail
    )
    assert found["ppl"]["value"] is None


def test_a_base_file_and_the_divergence_from_it(run: Run, small: Path, folder: Path) -> None:
    assert run("perplexity", EXAMPLE, *CUT, "--kl-divergence-base", "base.kld").status == 0
    assert names_in(folder) == {"base.kld"}
    outcome = run("perplexity", small, "--kl-divergence-base", "base.kld", "--kl-divergence")
    assert (outcome.status, outcome.err) == (0, "")
    head, *rows = outcome.out.split("\n\n")[0].splitlines()
    assert " ".join(head.split()) == "chunk PPL ln(PPL(Q)/PPL(base)) KL Divergence Δp RMS Same top p"
    assert [row.split()[0] for row in rows] == list("123456")
    for label in ("Mean PPL(base)", "Mean    KLD", "99.9%   KLD", "Median  Δp", "RMS Δp    ", "Same top p"):
        assert re.search(rf"^{re.escape(label)} *: +-?\d", outcome.out, re.MULTILINE), label
    arguments = ("perplexity", small, "--kl-divergence-base", "base.kld", "--kl-divergence", "--json")
    found = json.loads(run(*arguments).out)
    assert 0.003 < found["mean_kld"]["value"] < 0.01
    again = run("perplexity", EXAMPLE, *CUT, "--kl-divergence-base", "base.kld")
    assert again.status == 2 and "base.kld: exists already" in again.err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("perplexity", EXAMPLE), 2, "name one with -f"),
        (("perplexity", EXAMPLE, "-f", "missing.txt"), 2, "missing.txt: cannot be read"),
        (("perplexity", EXAMPLE, "-f", TEXT), 2, "text.txt has only .* 512 needs at least 1024"),
        (("perplexity", EXAMPLE, "--kl-divergence"), 2, "--kl-divergence-base"),
        (("perplexity", EXAMPLE, *CUT, "--resume"), 2, "no base file to resume; name it with"),
        (("perplexity", EXAMPLE, "--kl-divergence", "--kl-divergence-base", EXAMPLE), 1, "not a file of log"),
        (("perplexity", "missing.gguf", *CUT), 1, "missing.gguf"),
        (("perplexity", TEXT, *CUT), 1, "text.txt"),
        (("compare", EXAMPLE, *CUT), 2, "Missing argument 'MODEL...'"),
        (("compare", EXAMPLE, EXAMPLE, *CUT, "--plot", "plot.doc"), 2, "must end in .png"),
        (("imatrix",), 2, "name a MODEL and a text, or --in-file"),
        (("imatrix", EXAMPLE), 2, "name one with -f"),
        (("bench", EXAMPLE, "-p", 0, "-n", 0), 2, "nothing to measure"),
        (("generate", EXAMPLE), 2, "prompt with -p, or --chat"),
        (("generate", EXAMPLE, "-p", "a", "-f", TEXT), 2, "choose one"),
        (("generate", EXAMPLE, "-p", "a", "--temp", -1), 2, "-1.0 is not in the range x>=0"),
        (("generate", EXAMPLE, "-p", "a", "--system-prompt", "b"), 2, "--system-prompt needs --chat"),
        (("generate", EXAMPLE, "-p", "a", "--chat-template", "b"), 2, "--chat-template needs --chat"),
        (
            ("generate", EXAMPLE, "--chat", "--chat-template", "missing.jinja"),
            2,
            "'missing.jinja' is not a Jinja template; .* no templates are built in",
        ),
        (
            ("generate", EXAMPLE, "--chat", "--chat-template", "chatml"),
            2,
            "'chatml' is not a Jinja template; --chat-template takes the text of one, .*-file the name",
        ),
        (
            ("generate", EXAMPLE, "--chat", "--chat-template-file", EXAMPLE),
            2,
            "gguf: this is a GGUF file, no",
        ),
        (
            ("generate", EXAMPLE, "--chat", "--chat-template", TEXT),
            2,
            "takes the text of a template; write --chat-template-file .*text.txt",
        ),
        (
            ("generate", EXAMPLE, "--chat", "--chat-template", "{{ 1 }}", "--chat-template-file", TEXT),
            2,
            "both give a template; choose one",
        ),
        (("generate", EXAMPLE, "--chat", "--chat-template-file", "none"), 2, "none: cannot be read: No such"),
        (("generate", EXAMPLE, "--chat", "--chat-template-file", "/dev/zero"), 2, "but a device or pipe"),
        (("generate", EXAMPLE, "-f", "/dev/zero"), 2, "/dev/zero: not a regular file, but a device or pipe"),
        (("generate", EXAMPLE, "-p", "a", "--top-k", -5), 2, "-5 is not in the range 0<=x"),
        (("generate", EXAMPLE, "-p", "a", "--top-p", "x"), 2, "'x' is not a number"),
        (("generate", EXAMPLE, "-p", "a", "--seed", 1 << 32), 2, "is not in the range -1<=x<=4294967295"),
        (("generate", EXAMPLE, "-p", "a", "-c", 10**12), 2, "is not in the range 1<=x<=16777216"),
        (("bench", EXAMPLE, "-p", 10**9), 2, "is not in the range 0<=x<=16777216"),
        (("calibrate", EXAMPLE, *CUT[:2], "--time-limit", "nan"), 2, "'nan' is not a finite number"),
        (("generate", EXAMPLE, "hello"), 2, "'hello' is one argument too many; .* write -p before it"),
        (("generate", EXAMPLE, TEXT), 2, "text.txt' is one argument too many; .* write -f before it"),
        (
            ("generate", EXAMPLE, "--chat", "-p", "a"),
            1,
            "f16.gguf: the model has no chat template.*--chat-template",
        ),
        (
            ("generate", EXAMPLE, "--chat", "--chat-template", "{{ 1 }}", "-p", "a"),
            1,
            "^Error: --chat-template: the chat template leaves your message out",
        ),
        (("generate", EXAMPLE, "-f", TEXT), 2, "fill the context of 256"),
    ],
)
def test_errors_say_what_to_do(
    run: Run, folder: Path, arguments: tuple[object, ...], status: int, message: str
) -> None:
    outcome = run(*arguments)
    assert (outcome.status, outcome.out) == (status, "")
    assert re.search(message, outcome.err), outcome.err
    assert names_in(folder) == set()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ 1 / 0 }}",
            "the chat template fails: line 1: division by zero; correct this template, or leave it out",
        ),
        ("{% if %}", "the chat template does not parse: line 1"),
        ("{{ raise_exception('no') }}", "the chat template rejects these messages: no"),
        ("Hello!", "the chat template leaves your message out"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "the chat template",
        ),
    ],
)
def test_a_template_that_fails_is_named(
    template: str, message: str, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("q4hifi.runtime.chat_template.RENDER_SECONDS", 0.2)
    (folder / "my.jinja").write_text(template)
    outcome = run("generate", EXAMPLE, "--chat", "--chat-template-file", "my.jinja", "-p", "a")
    assert outcome.status == 1 and outcome.err.startswith(f"Error: my.jinja: {message}")


# ---- compare -------------------------------------------------------------------------------------


def test_compare(run: Run, small: Path, folder: Path) -> None:
    pytest.importorskip("matplotlib")
    outcome = run("compare", EXAMPLE, small, *CUT, "--plot", "plot.svg")
    assert (outcome.status, outcome.err) == (0, "")
    assert "tiny-Q4_K_M" in outcome.out and "6 chunks of 64 tokens of" in outcome.out
    assert outcome.out.endswith("wrote plot.svg\n") and names_in(folder) == {"plot.svg"}
    found = json.loads(run("compare", EXAMPLE, small, *CUT, "--json").out)
    assert found["models"][0]["quality"]["same_top"]["value"] > 0.9


def test_a_comparison_goes_on_with_the_file_that_it_saved(run: Run, small: Path, folder: Path) -> None:
    save = ("compare", EXAMPLE, small, *CUT, "--chunks", 2, "--json", "--save", "saved.gguf")
    assert run(*save).status == 0
    assert run(*save).status == 2  # without being asked to
    assert run(*save, "--resume").status == 0
    assert names_in(folder) == {"saved.gguf"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), q4hifi.Q4HifiError("it failed")])
def test_an_interrupted_comparison_says_so(
    error: BaseException, run: Run, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = ComparisonRun.measure

    def stop(self: ComparisonRun, chunk: int) -> bool:
        if chunk == 2:
            raise error
        return measure(self, chunk)

    monkeypatch.setattr(ComparisonRun, "measure", stop)
    outcome = run("compare", EXAMPLE, small, *CUT)
    assert outcome.status == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert "\nnot complete: 2 of 6 chunks of 64 tokens of " in outcome.out and "tiny-Q4_K_M" in outcome.out
    found = json.loads(run("compare", EXAMPLE, small, *CUT, "--json").out)
    assert (found["n_chunks"], found["total_chunks"]) == (2, 6)


@pytest.mark.parametrize(
    ("plot", "message"),
    [
        ("plot.doc", r"a plot's name must end in \.png, \.svg, \.pdf"),
        ("plot", "a plot's name must end in"),
        ("mine.png", "exists already; .*--overwrite"),
        ("folder.png", "exists and is not a file"),
        ("folder/", "is the name of a folder"),
        ("none/plot.png", "there is no folder .*none; make it first"),
        ("/dev/null", "the output cannot be streamed"),
        ("-", "the output cannot be streamed"),
        ("loop.png", "its links lead in a circle"),
    ],
)
def test_the_destination_of_a_plot_is_checked_before_the_work(
    plot: str, message: str, run: Run, folder: Path
) -> None:
    pytest.importorskip("matplotlib")
    (folder / "mine.png").write_text("mine")
    (folder / "folder.png").mkdir()
    (folder / "loop.png").symlink_to("loop.png")
    outcome = run("compare", "no model", "no model", "-f", "no text", "--plot", plot)
    assert outcome.status == 2 and re.search(f"^Error: {re.escape(plot)}: {message}", outcome.err)
    assert (folder / "mine.png").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_plot_in_an_unwritable_folder_is_refused_before_the_work(run: Run, folder: Path) -> None:
    folder.chmod(0o500)
    outcome = run("compare", "no model", "no model", "-f", "no text", "--plot", "plot.png")
    folder.chmod(0o700)
    assert outcome.status == 1 and "plot.png: cannot be written: Permission denied" in outcome.err


def test_names_in_a_plot_are_no_formulas(run: Run, small: Path, folder: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a$^$b.gguf", "c\udcff$.gguf"):
        copyfile(small, folder / name)
    copyfile(TEXT, folder / "$_$\udcff.txt")
    words = ("compare", "a$^$b.gguf", "c\udcff$.gguf", "-f", "$_$\udcff.txt", *CUT[2:], "--plot", "p.png")
    outcome = run(*words)
    assert (outcome.status, outcome.err) == (0, "") and (folder / "p.png").stat().st_size > 1000


def test_the_comparison_fits_a_terminal_of_100_columns(small: Path) -> None:
    printed = in_terminal(100, "compare", str(EXAMPLE), str(small), *map(str, CUT))
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed).splitlines()
    table = [line for line in lines if "tiny-" in line or "±" in line]
    assert len(table) == 4 and all(len(line) <= 100 for line in table)
    assert "━" in printed and "tokens/s" in printed and " left" in printed
    assert " 0.0 tokens/s" not in printed  # before the first figure
    assert "…" not in "".join(table)


# ---- imatrix -------------------------------------------------------------------------------------


def test_imatrix(run: Run, folder: Path) -> None:
    outcome = run("imatrix", EXAMPLE, *CUT, "-o", "made.gguf", "--show-statistics")
    assert (outcome.status, outcome.err) == (0, "")
    assert "Final estimate: PPL = 40." in outcome.out
    assert re.search(r"^ *0 +ffn_down +[\d.]+ ", outcome.out, re.MULTILINE)
    counted = "56 tensors and token_embd.weight (for refined types only), 6 chunks"
    assert outcome.out.endswith(f"\n{counted}: wrote made.gguf\n")
    read = load_importance(folder / "made.gguf")
    assert (len(read), len(read.refining())) == (56, 57)  # the entries_count of quantized files
    assert (read.chunk_count, read.chunk_size, read.datasets) == (6, 64, (str(TEXT),))


def test_matrices_are_added_up_and_shown_without_a_model(run: Run, folder: Path) -> None:
    assert run("imatrix", EXAMPLE, *CUT, "--no-ppl", "--output-format", "dat").out.endswith("imatrix.dat\n")
    both = run("imatrix", "--in-file", "imatrix.dat", "--in-file", "imatrix.dat", "-c", 64, "-o", "both.gguf")
    assert both.out == "56 tensors, 12 chunks: wrote both.gguf\n"
    shown = run("imatrix", "--in-file", "both.gguf", "--show-statistics")
    assert "CosSim" in shown.out and "wrote" not in shown.out
    found = json.loads(run("imatrix", "--in-file", "both.gguf", "--json").out)
    assert (found["chunk_count"], len(found["tensors"]), found["file"]) == (12, 56, None)
    assert names_in(folder) == {"imatrix.dat", "both.gguf"}


def test_a_destination_that_exists_is_told_before_any_work(run: Run, folder: Path) -> None:
    (folder / "imatrix.gguf").write_text("mine")
    outcome = run("imatrix", EXAMPLE, *CUT)
    assert outcome.status == 2 and "exists already" in outcome.err and outcome.out == ""


# ---- bench ---------------------------------------------------------------------------------------


def test_bench(run: Run, small: Path) -> None:
    outcome = run("bench", EXAMPLE, small, "-p", 16, "-p", 8, "-n", 4, "-r", 2, "-t", 1)
    assert (outcome.status, outcome.err) == (0, "")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in outcome.out.splitlines()]
    assert rows[0] == ["model", "size", "params", "backend", "threads", "test", "t/s"]
    assert [row[5] for row in rows[2:]] == ["pp16", "pp8", "tg4"] * 2
    assert all(row[4] == "1" and re.fullmatch(r"[\d.]+ ± [\d.]+", row[6]) for row in rows[2:])
    found = json.loads(run("bench", small, "-p", 0, "-n", 4, "-r", 1, "--json").out)
    assert [(one["test"], one["n_gen"]) for one in found] == [("tg4", 4)]


# ---- generate ------------------------------------------------------------------------------------

PROMPT = "The following table lists the"
RANDOM = ("--temp", "3", "--top-k", "0", "--top-p", "1", "--min-p", "0", "-s", "5")


def test_generate_streams_what_follows(run: Run) -> None:
    outcome = run("generate", EXAMPLE, "-p", PROMPT, "-n", 8, "--temp", 0)
    assert (outcome.status, outcome.err) == (0, "")
    model = q4hifi.Model(EXAMPLE)
    tokens = model.tokenizer.encode(PROMPT)
    expected = list(model.generate_tokens(tokens, n=8, temperature=0))
    assert outcome.out == model.detokenize(expected) + "\n"
    assert "".join(q4hifi.generate(model, PROMPT, n=8, temperature=0)) + "\n" == outcome.out
    with pytest.raises(q4hifi.BadOptionError, match=r"`top_p` is 2"):
        q4hifi.generate(model, PROMPT, top_p=2)


def test_a_seed_decides_the_text(run: Run) -> None:
    texts = [run("generate", EXAMPLE, "-p", PROMPT, "-n", 12, "-s", seed).out for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_generation_ends_where_the_context_is_full(run: Run) -> None:
    words = len(q4hifi.Model(EXAMPLE).tokenizer.encode(PROMPT))
    outcome = run("generate", EXAMPLE, "-p", PROMPT, "-c", words + 5, "--temp", 0)
    shorter = run("generate", EXAMPLE, "-p", PROMPT, "-n", 6, "--temp", 0)
    assert outcome.status == 0 and outcome.out == shorter.out


def test_a_text_that_goes_on_is_read_from_there() -> None:
    model = q4hifi.Model(EXAMPLE)
    prompt = model.tokenizer.encode(PROMPT)
    follow = list(model.generate_tokens(prompt, n=6, temperature=0))
    writer = q4hifi.Writer(model, q4hifi.Sampler(temperature=0))
    assert "".join(writer.write(prompt, 4)) == model.tokenizer.decode(follow[:4])
    assert (writer.effort.n_read, writer.effort.n_written) == (len(prompt), 4)
    assert "".join(writer.write(prompt + follow[:4], 2)) == model.tokenizer.decode(follow[4:])
    assert (writer.effort.n_read, writer.effort.n_written) == (1, 2)  # the last was not read yet
    assert "".join(writer.write(prompt, 4)) == model.tokenizer.decode(follow[:4])
    assert writer.effort.n_read == 1  # what came after it is forgotten
    other = [*prompt[:2], *prompt[3:]]
    expected = list(model.generate_tokens(other, n=4, temperature=0))
    assert "".join(writer.write(other, 4)) == model.tokenizer.decode(expected)
    assert writer.effort.n_read == len(other) - 2


def test_a_chat_remembers() -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    model = q4hifi.Model(EXAMPLE)
    model.metadata = {**model.metadata, "tokenizer.chat_template": template}
    chat = q4hifi.Chat(model, q4hifi.Sampler(temperature=0), system="Say little.")

    def expected(prompt: str) -> str:
        tokens = model.tokenizer.encode(prompt)
        return model.tokenizer.decode(model.generate_tokens(tokens, n=5, temperature=0))

    prompt = "system: Say little.\nuser: What is a table?\nassistant:"
    first = "".join(chat.answer("What is a table?", 5))
    assert first == expected(prompt)
    prompt += f" {first}\nuser: And a row?\nassistant:"
    second = "".join(chat.answer("And a row?", 5))
    assert second == expected(prompt)
    interrupted = chat.answer("And a column?", 5)
    begun = next(interrupted)
    interrupted.close()  # as Ctrl-C does
    assert [m["content"] for m in chat.messages[3:]] == ["And a row?", second, "And a column?", begun]


def test_words_in_a_chat_cannot_be_control_tokens() -> None:
    template = "{{ eos_token }}{% for m in messages %}{{ m.content | trim }}{% endfor %}{{ eos_token }}"
    model = q4hifi.Model(EXAMPLE)
    model.metadata = {**model.metadata, "tokenizer.chat_template": template}
    read: list[list[int]] = []
    chat = q4hifi.Chat(model, q4hifi.Sampler(temperature=0), system="Be <|endoftext|> brief.")
    chat.writer.write = lambda prompt, n: read.append(prompt) or iter(())  # type: ignore[method-assign]
    list(chat.answer(" <|endoftext|>Hi "))
    eos = model.tokenizer.eos
    words = model.tokenizer.encode("Be <|endoftext|> brief.<|endoftext|>Hi")
    assert read == [[eos, *words, eos]] and eos not in words


TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def _chat(n_ctx: int, read: list[str]) -> q4hifi.Chat:
    """A chat that answers "Yes." and notes the prompts."""
    model = q4hifi.Model(EXAMPLE, n_ctx=n_ctx)
    chat = q4hifi.Chat(model, q4hifi.Sampler(), system="Be brief.", template=TEMPLATE)

    def write(prompt: list[int], n: int | None) -> Iterator[str]:
        read.append(model.tokenizer.decode(prompt))
        yield "Yes."

    chat.writer.write = write  # type: ignore[method-assign,assignment]
    return chat


def test_a_full_context_forgets_the_oldest_turns() -> None:
    read: list[str] = []
    chat = _chat(100, read)
    for number in range(30):
        before = chat.n_forgotten
        assert "".join(chat.answer(f"Is {number} a number?")) == "Yes."
        lines = read[-1].splitlines()
        assert lines[0] == "system: Be brief."
        kept = range(chat.n_forgotten // 2, number + 1)
        questions = [f"user: Is {i} a number?" for i in kept]
        assert lines[1:] == [*"\nassistant: Yes.\n".join(questions).splitlines(), "assistant:"]
        assert chat.n_forgotten in (before, before + len(chat.messages[before:]) // 4 * 2)
    assert len(chat.messages) == 61 and 40 < chat.n_forgotten < 60


def test_a_message_that_is_too_long_changes_nothing() -> None:
    model = q4hifi.Model(EXAMPLE, n_ctx=100)
    chat = q4hifi.Chat(model, q4hifi.Sampler(temperature=0), template=TEMPLATE)
    "".join(chat.answer("Is this short?", 3))
    said = list(chat.messages)
    with pytest.raises(q4hifi.BadOptionError, match="fill the context of 100"):
        list(chat.answer("long " * 200))
    assert (chat.messages, chat.n_forgotten) == (said, 0)
    "".join(chat.answer("Is this short?", 3))
    assert len(chat.messages) == 4


def _type(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def test_lines_of_standard_input_are_a_chat(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "chat.jinja").write_text(TEMPLATE)
    talk = ("generate", EXAMPLE, "--chat", "-n", 8, "-s", 1, "-c", 80)
    _type(monkeypatch, b"What is a table?\n\n" * 8 + b"caf\xe9?\n")
    outcome = run(*talk, "--chat-template-file", "chat.jinja")
    assert outcome.status == 0
    assert re.fullmatch(
        r"(\[the context of 80 tokens is full: the oldest \d+ messages are no longer read\]\n){2,4}",
        outcome.err,
    )
    _type(monkeypatch, b"What is a table?\n")
    once = run(*talk, "--chat-template", TEMPLATE)
    assert (once.status, once.err) == (0, "") and outcome.out.startswith(once.out.rstrip("\n") + "\n")


def test_a_text_that_is_not_utf_8_has_a_note(run: Run, folder: Path) -> None:
    (folder / "latin.txt").write_bytes("a caf\u00e9 ".encode("latin-1") * 300)
    outcome = run("perplexity", EXAMPLE, "-f", "latin.txt", "-c", 64, "--chunks", 2)
    assert outcome.status == 0
    assert "note: latin.txt: 300 bytes among the first 2100 characters are not UTF-8; " in outcome.err
    assert "iconv -f LATIN1 -t UTF-8 latin.txt > NEW.txt\n" in outcome.err


def test_a_prompt_from_standard_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("-n", 4, "--temp", 0)
    _type(monkeypatch, PROMPT.encode() + b"\n")
    assert run("generate", EXAMPLE, "-f", "-", *options) == run("generate", EXAMPLE, "-p", PROMPT, *options)


@pytest.mark.parametrize("size", [1, 3, 100])
def test_lines_break_between_words(size: int) -> None:
    wrap = WordWrap(lambda: 10)
    text = "one two three four\n\tfive 一二三四五六七八 \x1b[2Jsix-seven-eight-nine ten\r\neleven twelve"
    pieces = [wrap.feed(text[i : i + size]) for i in range(0, len(text), size)]
    assert ("".join(pieces) + wrap.flush()).split("\n") == [
        *("one two ", "three four", "\t", "five 一二", "三四五六七", "八 "),
        *(
            "[2Jsix-seven-eight-nine ten",
            "eleven ",
            "twelve",
        ),  # the terminal breaks what is longer than a line
    ]


class _Terminal:
    """A command that runs in a terminal of 60 columns, and what it has printed."""

    def __init__(self, *arguments: object) -> None:
        self._leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 60, 0, 0))
        self.process = subprocess.Popen(
            [script(), *map(str, arguments)],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env={**os.environ, "TERM": "xterm"},
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            start_new_session=True,
        )
        os.close(follower)
        self.printed, self._at = "", 0

    def __enter__(self) -> _Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._leader)

    def type(self, keys: str) -> None:
        os.write(self._leader, keys.encode())

    def press_ctrl_c(self) -> None:
        """Press Ctrl-C while the command waits for a key.

        Python's readline only notices a signal that ends its wait: one that comes between a key and the next
        wait stays unseen until another key.
        """
        state = Path(f"/proc/{self.process.pid}/stat")  # of the main thread; S: it sleeps
        deadline = time.monotonic() + 60
        while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < deadline, self.printed
            time.sleep(0.01)
        self.type("\x03")

    def wait_for(self, text: str) -> str:
        """Return what is printed since the last call, up to ``text``."""
        start, deadline = self._at, time.monotonic() + 60
        while (found := self.printed.find(text, start)) < 0:
            assert time.monotonic() < deadline, self.printed
            if select.select([self._leader], [], [], 1)[0]:
                self.printed += os.read(self._leader, 65536).decode()
        self._at = found + len(text)
        return self.printed[start : self._at]


def test_a_chat_in_a_terminal() -> None:
    pytest.importorskip("readline")
    with _Terminal("generate", EXAMPLE, "--chat", "--chat-template", TEMPLATE, "-n", 5, "-s", 1) as terminal:
        banner = terminal.wait_for("> ")
        assert re.search(r"tiny-qwen3-f16.gguf .*, context of\s+256\s+tokens", banner)
        assert "Ctrl-D" in banner and banner.count("\n") <= 4
        terminal.type("What is abl")
        terminal.wait_for("abl")
        terminal.type("\x1b[D\x1b[D\x1b[Dt\r")  # three arrows to the left
        assert "^[[D" not in terminal.wait_for("wrote 5 tokens")
        terminal.wait_for("> ")
        terminal.type("half a li")
        terminal.wait_for("half a li")
        terminal.press_ctrl_c()
        terminal.wait_for("> ")
        terminal.type("\x1b[A")  # an arrow up
        terminal.wait_for("What is tabl")
        terminal.press_ctrl_c()
        terminal.wait_for("> ")
        terminal.press_ctrl_c()
        assert terminal.process.wait(60) == 0
        assert "Traceback" not in terminal.printed


def test_ctrl_c_ends_the_text_in_a_terminal_cleanly() -> None:
    leader, follower = pty.openpty()
    command = [script(), "generate", str(EXAMPLE), "-p", "The", "-c", "100000", *RANDOM]
    with subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower) as process:
        os.close(follower)
        printed = b""
        deadline = time.monotonic() + 60
        while len(printed) < 200 and time.monotonic() < deadline:
            printed += os.read(leader, 65536)
        process.send_signal(signal.SIGINT)
        try:
            while chunk := os.read(leader, 65536):
                printed += chunk
        except OSError:
            pass
        os.close(leader)
    assert process.returncode == 130
    assert b"Traceback" not in printed and b"Aborted" not in printed
    assert b"[read " in printed.splitlines()[-1]
