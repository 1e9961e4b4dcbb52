"""Reads some hundred damaged files of every kind; ``python -m fuzzing`` reads millions."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzzing.kinds import KINDS
from fuzzing.run import fuzz

RUNS = {"header": 4000, "metadata": 1000, "template": 60, "quantize": 100, "run": 200}
OTHERS = 300


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_read_or_rejected(name: str, tmp_path: Path) -> None:
    tally = fuzz(KINDS[name], tmp_path, seed=1, runs=RUNS.get(name, OTHERS))
    assert not [f"block {f.block}, input {f.number}: {f.error!r}" for f in tally.faults]
