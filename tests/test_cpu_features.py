"""Instruction sets: what is reported, what may be forced, and that files do not depend on it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import q4hifi
from synthetic import EXAMPLE, write_small_model

AVAILABLE = q4hifi.cpu_features().available


def q4hifi_command(isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "q4hifi", *arguments]
    environment = {**os.environ, "Q4HIFI_ISA": isa}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_scalar_path_is_always_there_and_the_active_one_is_available():
    features = q4hifi.cpu_features()
    assert features.available[0] == "scalar"
    assert features.active in features.available


@pytest.mark.parametrize("isa", AVAILABLE)
def test_the_command_tells_what_is_forced(isa: str):
    plain = q4hifi_command(isa, "--version")
    verbose = q4hifi_command(isa, "--version", "-v")
    assert plain.stdout.split() == ["q4hifi", q4hifi.__version__]
    assert f"kernels: {isa} " in verbose.stdout
    assert all(name in verbose.stdout for name in AVAILABLE)


@pytest.mark.parametrize("arguments", [["--version", "-v"], ["verify", str(EXAMPLE)]])
def test_an_instruction_set_that_is_not_there_is_an_error(arguments: list[str]):
    result = q4hifi_command("mmx", *arguments)
    assert result.returncode != 0
    assert 'Q4HIFI_ISA is "mmx"; this CPU has scalar' in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


QUANTIZE = """
import sys
import q4hifi
source, folder, *recipes = sys.argv[1:]
for recipe in recipes:
    q4hifi.quantize_file(source, f"{folder}/{recipe}.gguf", recipe)
"""


def test_files_are_the_same_on_every_instruction_set(tmp_path: Path):
    source, recipes = (
        write_small_model(tmp_path / "model.gguf"),
        ("Q4_HIFI", "Q4_K_M", "Q5_K_S", "Q5_0", "Q8_0"),
    )
    made: dict[str, list[bytes]] = {}
    for isa in AVAILABLE:
        folder = tmp_path / isa
        folder.mkdir()
        command = [sys.executable, "-c", QUANTIZE, str(source), str(folder), *recipes]
        subprocess.run(command, env={**os.environ, "Q4HIFI_ISA": isa}, check=True)
        made[isa] = [(folder / f"{recipe}.gguf").read_bytes() for recipe in recipes]
    assert len(set(made["scalar"])) == len(recipes)
    for isa in AVAILABLE[1:]:
        for recipe, got, expected in zip(recipes, made[isa], made["scalar"], strict=True):
            assert got == expected, (isa, recipe)
