"""How the package and the command start: little is loaded, and a signal ends them quietly at any moment."""

from __future__ import annotations

import ast
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import q4hifi
from synthetic import EXAMPLE

COMMAND = "import sys; from q4hifi.cli import main; main(sys.argv[1:])"
HEAVY = {"numpy", "gguf", "rich", "tokenizers", "jinja2", "matplotlib", "yaml", "q4hifi._core"}

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def loaded_by(program: str, *arguments: str) -> tuple[int, set[str]]:
    """Run a program; return its exit status and the names of the modules that it loaded."""
    report = "import sys, atexit; atexit.register(lambda: print(*sys.modules, file=sys.stderr));"
    done = subprocess.run(
        [sys.executable, "-c", report + program, *arguments], capture_output=True, text=True, check=False
    )
    return done.returncode, set(done.stderr.splitlines()[-1].split())


# ---- the package ---------------------------------------------------------------------------------


def test_importing_the_package_loads_nothing_else() -> None:
    status, modules = loaded_by("import q4hifi")
    assert status == 0
    assert {name for name in modules if name.startswith("q4hifi")} == {"q4hifi"}
    assert not modules & (HEAVY | {"typing", "click"})


@pytest.mark.parametrize(
    ("module", "others"),
    [
        ("formats.types", set()),
        ("plan.options", set()),
        ("plan.plan", set()),
        ("pipeline.quantize_options", set()),
        ("codec.model_file", {"numpy", "q4hifi._core"}),
        ("cli.quantize", set()),
        ("cli.bench", set()),
        ("cli.calibrate", set()),
        ("cli.compare", set()),
        ("cli.imatrix", set()),
        ("cli.perplexity", set()),
        ("cli.generate", set()),
        ("cli.inspect", set()),
    ],
)
def test_modules_load_what_they_need(module: str, others: set[str]) -> None:
    status, modules = loaded_by(f"import q4hifi.{module}")
    assert (status, modules & HEAVY) == (0, others)


def test_every_public_name_is_found_where_the_type_checker_finds_it() -> None:
    tree = ast.parse(Path(str(q4hifi.__file__)).read_text())
    (block,) = [n for n in tree.body if isinstance(n, ast.If)]
    imported = {
        alias.name: statement.module
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert imported == q4hifi._MODULE_OF
    assert sorted([*imported, "__version__", "open"]) == sorted(q4hifi.__all__)
    for name, module in imported.items():
        value = getattr(q4hifi, name)
        assert value is getattr(sys.modules[f"q4hifi.{module}"], name)


def test_the_public_names_behave_as_those_of_any_package() -> None:
    program = """
        import importlib, pickle, pydoc
        import q4hifi.evaluate.bench, q4hifi.pipeline.quantize  # modules of the same names as functions
        import q4hifi
        from q4hifi import *
        assert callable(q4hifi.bench) and bench is q4hifi.bench
        assert q4hifi.bench.__module__ == "q4hifi.evaluate.bench"
        assert q4hifi.quantize.__module__ == "q4hifi.codec.quantized_tensor"
        from q4hifi.pipeline.quantize import quantize_file as there
        assert there is q4hifi.quantize_file is quantize_file
        assert open == q4hifi.ModelFile.open == q4hifi.open
        assert set(q4hifi.__all__) <= set(dir(q4hifi))
        assert "quantize_file(" in pydoc.plain(pydoc.render_doc(q4hifi))
        assert pickle.loads(pickle.dumps(q4hifi.TensorType)) is TensorType
        assert not hasattr(q4hifi, "nothing")
        try:
            from q4hifi import nothing
        except ImportError as error:
            assert "nothing" in str(error)
        else:
            raise AssertionError
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_tables_of_the_gguf_package_leave_the_package_usable() -> None:
    program = """
        import q4hifi.formats.types, gguf
        import gguf.constants as constants
        from q4hifi.formats.gguf_constants import GGUFValueType
        assert gguf.constants is constants and gguf.GGUFValueType is constants.GGUFValueType
        assert GGUFValueType.STRING == gguf.GGUFValueType.STRING
        import pickle
        assert pickle.loads(pickle.dumps(GGUFValueType.STRING)) is GGUFValueType.STRING
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_types_are_pickled() -> None:
    assert pickle.loads(pickle.dumps(q4hifi.Format(q4hifi.formats.types.F16))) == q4hifi.Format(
        q4hifi.formats.types.F16
    )


# ---- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--version"], 0),
        (["--help"], 0),
        (["-h"], 0),
        ([], 2),
        (["quantise"], 2),
        (["quantize"], 2),
        (["quantize", "--help"], 0),
        (["quantize", "in.gguf", "--no-such-option"], 2),
        (["quantize", "in.gguf", "out.gguf", "Q4_K_M", "two"], 2),
        (["quantize", "in.gguf", "--outliers", "99"], 2),
        (["perplexity", "in.gguf"], 2),
        (["imatrix"], 2),
        (["compare", "in.gguf", "out.gguf"], 2),
        (["calibrate", "in.gguf"], 2),
        (["generate", "in.gguf"], 2),
        (["inspect"], 2),
        (["bench"], 2),
    ],
)
def test_help_and_usage_errors_load_little(arguments: Sequence[str], status: int) -> None:
    ended, modules = loaded_by(COMMAND, *arguments)
    if arguments:  # else click decides
        assert ended == status
    assert not modules & HEAVY


# ---- signals -------------------------------------------------------------------------------------

AT_IMPORT = """
import os, sys
class Finder:
    def find_spec(name, path=None, target=None):
        if name == sys.argv[2]:
            os.kill(os.getpid(), int(sys.argv[1]))
            for _ in range(100):
                pass
sys.meta_path.insert(0, Finder)
import sys; from q4hifi.cli import main; main(sys.argv[3:])
"""


IMPORTED = (
    "click",
    "dataclasses",
    "q4hifi.cli.group",
    "numpy",
    "numpy.linalg",
    "q4hifi._core",
    "rich.console",
)


@pytest.mark.parametrize(
    ("wanted", "number"),
    [
        *((name, signal.SIGINT) for name in IMPORTED),
        *((name, signal.SIGTERM) for name in ("click", "numpy.linalg", "rich.console")),
        *((name, signal.SIGHUP) for name in ("q4hifi.cli.group", "numpy")),
    ],
)
def test_a_signal_during_an_import_ends_the_command_quietly(wanted: str, number: signal.Signals) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_IMPORT, str(int(number)), wanted, "inspect", str(EXAMPLE)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == STATUS[number]
    assert done.stdout == ""
    assert done.stderr.strip() == ("Interrupted." if number == signal.SIGINT else "")


SLOW_IMPORT = """
import time
print("begun", flush=True)
end = time.monotonic() + 60
while time.monotonic() < end:
    time.sleep(0.01)
"""


def test_a_second_ctrl_c_ends_an_import_that_does_not_end(tmp_path: Path) -> None:
    (tmp_path / "tokenizers.py").write_text(SLOW_IMPORT)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    with subprocess.Popen(
        [sys.executable, "-m", "q4hifi", "generate", str(EXAMPLE), "-p", "A", "-n", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert process.poll() is None, "an exception was raised inside an import"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err.strip()) == (130, "Interrupted.")


def test_a_signal_where_exceptions_are_lost_ends_the_command_a_little_later() -> None:
    program = """
        import os, signal, time
        from q4hifi.cli.signals import Raising
        class Fragile:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(100):
                    pass
        try:
            with Raising():
                Fragile()
                time.sleep(10)
        except KeyboardInterrupt:
            print("raised")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "raised\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("wanted", ["click", "numpy"])
def test_a_signal_that_is_ignored_stays_ignored(wanted: str, number: signal.Signals) -> None:
    """As nohup does it, and shells for commands in the background."""
    done = subprocess.run(
        [sys.executable, "-c", AT_IMPORT, str(int(number)), wanted, "inspect", str(EXAMPLE)],
        capture_output=True, text=True, check=False,
        preexec_fn=lambda: signal.signal(number, signal.SIG_IGN),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "general.architecture" in done.stdout


@pytest.mark.parametrize("number", STATUS)
def test_signals_at_random_moments(number: signal.Signals, tmp_path: Path) -> None:
    """From the moment on that Python has started, which is not the package's business."""
    waits = random.Random(int(number))
    for i in range(5):
        go = tmp_path / f"go{i}"
        program = f"open({str(go)!r}, 'w').close(); {COMMAND}"
        with subprocess.Popen(
            [sys.executable, "-c", "import q4hifi.cli.signals as s; s.leave_at_once();" + program,
             "quantize", str(EXAMPLE), "out.gguf", "Q4_HIFI", "--overwrite", "--json"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        ) as process:  # fmt: skip
            deadline = time.monotonic() + 60
            while not go.exists() and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(waits.uniform(0, 0.8))
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        go.unlink()
        message = "Interrupted." if number == signal.SIGINT else ""
        if process.returncode == 0:  # it was done
            assert json.loads(out) and err == ""
        else:
            assert (process.returncode, err.strip()) == (STATUS[number], message)
        assert {path.name for path in tmp_path.iterdir()} <= {"out.gguf"}
