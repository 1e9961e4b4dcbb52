"""Plans of shapes alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import q4hifi
from command import Run
from q4hifi import BadFileError, BadOptionError
from synthetic import EXAMPLE


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Of the example model."""
    with q4hifi.open(EXAMPLE) as model:
        found: dict[str, Any] = {
            "architecture": "qwen3",
            "block_count": 8,
            "head_count": 4,
            "head_count_kv": 2,
            "tensors": {name: tensor.shape for name, tensor in model.tensors.items()},
        }
    (tmp_path / "shapes.json").write_text(json.dumps(found))
    return tmp_path / "shapes.json"


@pytest.mark.parametrize("type", ["Q4_HIFI", "Q4_K_M", "Q2_K"])
def test_they_give_the_plan_of_the_model(type: str, shapes: Path) -> None:
    ours, whole = q4hifi.plan_shapes(shapes, type), q4hifi.plan_file(EXAMPLE, type)
    assert ours.tensors == whole.tensors and ours.size_class == whole.size_class
    assert ours.file_bytes is None and ours.tensor_bytes == whole.tensor_bytes


def test_what_a_token_reads(shapes: Path) -> None:
    tied = q4hifi.plan_shapes(shapes, "Q4_K_S")
    assert tied.token_bytes == tied.tensor_bytes
    found = json.loads(shapes.read_text())
    found["tensors"]["output.weight"] = found["tensors"]["token_embd.weight"]
    shapes.write_text(json.dumps(found))
    apart = q4hifi.plan_shapes(shapes, "Q4_K_S")
    assert apart.tensor_bytes - apart.token_bytes == 4096 * 144  # embeddings in Q4_K


@pytest.mark.parametrize(
    "text", ["", "[]", '{"tensors": {}}', '{"architecture": "a", "block_count": 1, "tensors": {"x": [0]}}']
)
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(BadFileError, match="holds no shapes of a model"):
        q4hifi.plan_shapes(tmp_path / "x.json")


def test_measuring_needs_weights(shapes: Path) -> None:
    with pytest.raises(BadOptionError, match="measured coverage measures the errors of weights"):
        q4hifi.plan_shapes(shapes, like="Q4_K_M")


def test_the_command_takes_them(run: Run, shapes: Path) -> None:
    outcome = run("plan", shapes, "Q4_K_S")
    plan = q4hifi.plan_shapes(shapes, "Q4_K_S")
    assert outcome.status == 0 and f"{plan.bits_per_weight:.3f} bits per weight" in outcome.out
    assert "of tensors" in outcome.out
    assert json.loads(run("plan", shapes, "--json").out)["token_bytes"] > 0
    outcome = run("plan", shapes, "--imatrix", "x.gguf")
    assert outcome.status == 2 and "imatrix: for a model file" in outcome.err
