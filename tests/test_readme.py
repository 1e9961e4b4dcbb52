"""Every command and every line of Python in the README and in docs/ runs, in the order in which it stands."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import q4hifi
from command import Outcome, Run
from q4hifi.cli.group import main
from synthetic import EXAMPLE

ROOT = EXAMPLE.parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = sorted(ROOT.glob("*.md"))
SOURCES = ("benches", "python", "src", "tests")
TEXT = (ROOT / "tests" / "golden" / "text.txt").read_text()


def blocks(document: Path, language: str) -> list[str]:
    """The blocks of code of a language in a document."""
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)


def commands(block: str) -> Iterator[list[str]]:
    """The arguments of every q4hifi command of a block, those after an && as well."""
    for line in block.splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while "&&" in words:
            words = words[words.index("&&") + 1 :]
        if words[:1] == ["q4hifi"]:
            yield words[1:]


@pytest.fixture
def folder(short_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a newcomer has it: the repository's examples, a model, and two texts."""
    (tmp_path / "examples").symlink_to(EXAMPLE.parent)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    (tmp_path / "model-f16.gguf").symlink_to(short_model)
    (tmp_path / "calibration.txt").write_text(2 * TEXT)  # two chunks
    (tmp_path / "text.txt").write_text(2 * TEXT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())  # what chats read
    return tmp_path


def test_the_readme_runs_in_order(run: Run, folder: Path) -> None:
    pytest.importorskip("matplotlib")
    ran = 0
    for block in blocks(README, "sh"):
        for arguments in commands(block):
            outcome = run(*arguments)
            assert (outcome.status, without_notes(outcome.err)) == (0, ""), arguments
            ran += 1
    assert ran >= 14
    (program,) = blocks(README, "python")
    exec(compile(program, "README.md", "exec"), {})  # it uses files that the commands wrote


def test_the_readme_shows_what_is_printed(run: Run, folder: Path) -> None:
    shown = blocks(README, "console")
    assert shown
    for block in shown:
        ((arguments,), (_, _, expected)) = list(commands(block)), block.partition("\n")
        outcome = run(*arguments)
        assert (outcome.status, outcome.err) == (0, "")
        assert without_times(outcome.out) == without_times(expected)


def without_notes(text: str) -> str:
    """Without what the command notes where the documents' chunks are longer than the example can use."""
    return re.sub(r"^note: .* was trained on 256 tokens .*\n", "", text)


def without_times(text: str) -> str:
    return re.sub(r"[\d.]+ s, [\d.]+ million", "TIME", text)


# ---- docs ----------------------------------------------------------------------------------------


def prepared(folder: Path) -> None:
    """Make the files that documents take for granted."""
    q4hifi.quantize_file("model-f16.gguf", "model-Q4_HIFI.gguf")
    q4hifi.quantize_file("model-f16.gguf", "model-Q4_K_M.gguf", "Q4_K_M")
    (folder / "model.gguf").symlink_to("model-Q4_HIFI.gguf")


def make_room(run: Run, arguments: list[str], written: set[str]) -> Outcome:
    """Run a command; where only a file that no command of the block wrote is in its way, remove that."""
    before = set(Path().iterdir())
    outcome = run(*arguments)
    in_the_way = re.match(r"Error: (\S+): exists already", outcome.err)
    if in_the_way and in_the_way[1] not in written:
        Path(in_the_way[1]).unlink()
        before = set(Path().iterdir())
        outcome = run(*arguments)
    written |= {path.name for path in set(Path().iterdir()) - before}
    return outcome


DOC_BLOCKS = [
    pytest.param(block, id=f"{document.stem}-{number}")
    for document in DOCS
    for number, block in enumerate(blocks(document, "sh"))
    if any(commands(block))
]


@pytest.mark.parametrize("block", DOC_BLOCKS)
def test_commands_of_the_documents_run(block: str, run: Run, folder: Path) -> None:
    prepared(folder)
    for name in ("imatrix.gguf", "one.gguf", "two.gguf"):
        if name in block:
            assert run("imatrix", "model-f16.gguf", "-f", "text.txt", "-o", name).status == 0
    written: set[str] = set()
    for arguments in commands(block):
        if "--chat" in arguments:  # the example has no template
            arguments += ["--chat-template", "{{ messages[-1].content }}"]
        outcome = make_room(run, arguments, written)
        assert (outcome.status, without_notes(outcome.err)) == (0, ""), arguments


# ---- what documents name -------------------------------------------------------------------------


def test_the_readme_links_to_nothing_that_an_index_page_lacks() -> None:
    """A package index shows the README without the repository around it."""
    links = re.findall(r"\]\(([^)]*)\)", README.read_text())
    assert links
    assert [link for link in links if not link.startswith("https://")] == []


@pytest.mark.parametrize("document", [*PAGES, *DOCS], ids=lambda path: path.name)
def test_files_that_a_document_names_are_there(document: Path) -> None:
    text = document.read_text()
    named = set(re.findall(r"`((?:docs|benches|tests|src|python|examples)/[\w./-]+|[A-Z]+\.md)`", text))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    sources = {f"/{path.relative_to(ROOT)}" for folder in SOURCES for path in (ROOT / folder).rglob("*.*")}
    short = set(re.findall(r"`([\w/]+\.(?:cu|cuh|py|rs))`", text))
    assert [name for name in sorted(short) if not any(path.endswith(f"/{name}") for path in sources)] == []
    linked = {link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link}
    assert [link for link in sorted(linked) if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", [README, *DOCS], ids=lambda path: path.name)
def test_options_that_a_document_names_are_there(document: Path) -> None:
    context = click.Context(main)
    known = {"--help", "--version"}
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        known |= {flag for param in command.params for flag in (*param.opts, *param.secondary_opts)}
    named = {
        flag
        for block in blocks(document, "sh")
        for arguments in commands(block)
        for flag in arguments
        if flag.startswith("-")
    }
    if document == README:
        named |= set(re.findall(r"`(--[a-z-]+)", document.read_text()))
    assert named <= known


def test_git_ignores_what_the_commands_write() -> None:
    """A newcomer who runs them in a clone finds it clean afterwards."""
    words = {
        word for page in PAGES for block in blocks(page, "sh") for line in commands(block) for word in line
    }
    names = {word for word in words if re.fullmatch(r"[\w-]+\.(gguf|dat|kld|json|png|svg|pdf|txt)", word)}
    names |= {"base.kld.partial", "imatrix.gguf.sensitivity.json", ".model.gguf.q4hifi-1a2b3c4d.part"}
    assert {"plot.png", "imatrix.gguf", "text.txt"} <= names
    command = ["git", "check-ignore", "--no-index", *sorted(names)]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if found.returncode == 128:
        pytest.skip("this is no clone")
    assert set(found.stdout.split()) == names
