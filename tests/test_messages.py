"""Messages name keyword arguments in backquotes, and each is an option of the commands that show the message.

A message that names ``n_ctx`` reads ``--ctx-size`` on the command line, if the command has this option.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import q4hifi
from q4hifi.cli.group import COMMANDS, main

ROOT = Path(q4hifi.__file__).parent

CHUNKS = ("compare", "imatrix", "perplexity")
QUANTIZING = ("plan", "quantize")

SHOWN_BY = {
    "allocation/measured_plan.py": QUANTIZING,
    "engines/llama/model.py": ("calibrate", *CHUNKS),
    "engines/opening.py": ("bench", "calibrate", "generate", *CHUNKS),
    "evaluate/chunks.py": CHUNKS,
    "evaluate/collect_imatrix.py": ("imatrix",),
    "evaluate/log_probs_file.py": ("perplexity",),
    "evaluate/resuming.py": CHUNKS,
    "files/output_file.py": (*CHUNKS, "dequantize", "export", *QUANTIZING),
    "files/partial_file.py": CHUNKS,
    "imatrix/belongs.py": QUANTIZING,
    "imatrix/entries.py": ("calibrate", "imatrix", *QUANTIZING),
    "imatrix/sums.py": ("imatrix",),
    "pipeline/export.py": ("export",),
    "pipeline/quantize.py": ("quantize",),
    "pipeline/quantize_options.py": QUANTIZING,
    "plan/model_shape.py": ("generate", "calibrate", *CHUNKS),
    "plan/metadata_overrides.py": QUANTIZING,
    "plan/options.py": QUANTIZING,
    "plan/pruning.py": QUANTIZING,
    "plan/shapes_file.py": ("plan",),
    "plan/size_classes.py": QUANTIZING,
    "plan/tensor_patterns.py": QUANTIZING,
    "plan/type_rules.py": QUANTIZING,
    "runtime/chat_template.py": ("generate",),
    "engines/generation.py": ("generate",),
    "runtime/template_process.py": ("generate",),
    "threads.py": tuple(sorted(set(COMMANDS) - {"inspect"})),
}
"""Module -> the commands that can show its messages with keywords."""

ONLY_BY = {
    ("engines/llama/model.py", "fisher_chunks"): ("imatrix",),
    ("evaluate/chunks.py", "from_chunk"): ("imatrix",),
    ("files/output_file.py", "resume"): CHUNKS,
}
"""(Module, keyword) -> the commands that can show this message, if they are not those of the module."""

ONLY_IN_PYTHON = {
    # the command checks these ranges by itself
    "allocation/calibration_options.py": {"n_ctx", "n_chunks", "group"},
    "codec/input_sums.py": {"matrices"},
    "codec/quantized_tensor.py": {"data"},
    "pipeline/with_options.py": {"options"},
}
"""Module -> the keywords in messages that no command shows."""

KEYWORD = re.compile(r"`(\w+)(?:=[^`]*)?`")


def trees() -> Iterator[tuple[str, ast.Module]]:
    """Yield the modules below the command, by their path in the package."""
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(("cli/", "cuda/")):
            yield name, ast.parse(path.read_text())


def texts(tree: ast.AST) -> Iterator[str]:
    """Yield the strings of a program, without docstrings; values in an f-string become "..."."""
    nodes = list(ast.walk(tree))
    bodies = (body for node in nodes if isinstance(body := getattr(node, "body", None), list))
    others = {id(each.value) for body in bodies for each in body if is_text(each)}
    others |= {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "..." for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in others:
            yield node.value


def is_text(statement: ast.AST) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def options(command: str) -> set[str]:
    found = main.get_command(click.Context(main), command)
    assert found is not None
    return {param.name or "" for param in found.params if isinstance(param, click.Option)}


KEYWORDS = sorted(
    {(name, keyword) for name, tree in trees() for text in texts(tree) for keyword in KEYWORD.findall(text)}
)


def test_the_walk_finds_the_keywords() -> None:
    assert len(KEYWORDS) > 40
    assert {name for name, _ in KEYWORDS} == set(SHOWN_BY) | set(ONLY_IN_PYTHON)


@pytest.mark.parametrize(("module", "keyword"), KEYWORDS)
def test_a_keyword_in_a_message_is_an_option_of_the_commands_that_show_it(module: str, keyword: str) -> None:
    if keyword in ONLY_IN_PYTHON.get(module, ()):
        return
    commands = ONLY_BY.get((module, keyword), SHOWN_BY[module])
    assert [command for command in commands if keyword not in options(command)] == []


def test_no_message_names_a_keyword_without_backquotes() -> None:
    known = {name for command in COMMANDS for name in options(command) if "_" in name.strip("_")}
    bare = []
    for module, tree in trees():
        raised = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc is not None)
        for error in raised:
            for text in texts(error):
                words = set(re.findall(r"\w+", re.sub(r"`[^`]*`", "", text)))
                bare += [(module, word) for word in sorted(words & known)]
    assert bare == []
