"""Evaluation gives the same figures, bit for bit, on every instruction set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import q4hifi
from architectures import write_architecture
from synthetic import ROOT

AVAILABLE = q4hifi.cpu_features().available
KINDS = ("Q4_K_M", "Q4_0", "Q5_1", "Q2_K", "Q6_K", "Q8_0", "IQ4_XS", "Q4_HIFI")
TEXT = (ROOT / "tests/golden/text.txt").read_text()


@pytest.mark.skipif(len(AVAILABLE) == 1, reason="this CPU has one instruction set only")
def test_every_instruction_set_gives_the_same_figures(short_model: Path, tmp_path: Path) -> None:
    mixture = write_architecture(tmp_path / "mixture.gguf", "qwen3moe", vocabulary=True)
    models = [short_model, mixture]
    for source, kind in [*((short_model, kind) for kind in KINDS), (mixture, "Q4_K_M"), (mixture, "Q4_HIFI")]:
        models.append(tmp_path / f"{source.stem}-{kind}.gguf")
        q4hifi.quantize_file(source, models[-1], kind)

    def figures(isa: str) -> dict[str, dict[str, str]]:
        folder = tmp_path / isa
        folder.mkdir()
        run = subprocess.run(
            [sys.executable, ROOT / "tests/isa_figures.py", TEXT, folder, *models],
            env={**os.environ, "Q4HIFI_ISA": isa},
            capture_output=True,
            text=True,
            check=True,
        )
        found: dict[str, dict[str, str]] = json.loads(run.stdout)
        return found

    expected = figures("scalar")
    for isa in AVAILABLE[1:]:
        assert figures(isa) == expected, isa
