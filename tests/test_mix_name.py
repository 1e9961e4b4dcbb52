"""What 'inspect' calls the types of a file: a recipe only where the tensors have that recipe's types."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import q4hifi
from command import Run
from q4hifi.codec.overview import Overview
from q4hifi.gguf_io.metadata import GGUFValueType
from q4hifi.plan.mix_name import mix_name
from q4hifi.plan.recipes import RECIPES
from synthetic import EXAMPLE, random_sums, random_weights, write_imatrix, write_model, write_small_model

NAMED = [name for name in RECIPES if name not in ("COPY", "Q4_HIFI")]


def imatrix_of(model: Path, path: Path) -> Path:
    with q4hifi.open(model) as file:
        sums = {
            name: (random_sums(1, tensor.row_length, [9], seed=1), np.array([9]))
            for name, tensor in file.tensors.items()
            if name.startswith("blk.") and len(tensor.shape) == 2
        }
    return write_imatrix(path, sums)


@pytest.mark.parametrize("recipe", NAMED)
@pytest.mark.parametrize("rows", [256, 96])
def test_a_recipes_own_files_have_its_name(recipe: str, rows: int, tmp_path: Path) -> None:
    names = [
        f"blk.{i}.{part}.weight" for i in range(8) for part in ("attn_v", "attn_output", "ffn_down", "ffn_up")
    ]
    tensors = {name: random_weights(32, rows) for name in (*names, "token_embd.weight")}
    source = write_model(tmp_path / "in.gguf", tensors, n_layer=8)
    imatrix = imatrix_of(source, tmp_path / "i.gguf")
    for options in ({"imatrix": imatrix}, {}, {"refine": True}):
        if RECIPES[recipe].requires_imatrix and "imatrix" not in options:
            continue
        out = tmp_path / "out.gguf"
        q4hifi.quantize_file(source, out, recipe, overwrite=True, **options)
        assert mix_name(Overview.open(out)) == recipe


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"like": "Q4_K_M", "stock": True}, r"mixed: \d+% \w+, .* \(general\.file_type is \w+\)"),
        ({"like": "Q4_K_M"}, r"mixed: \d+% \w+, .* \(general\.file_type is \w+\)"),
        ({"type": "Q4_K_M", "pure": True}, r"99% Q4_K \(general\.file_type is Q4_K_M\)"),
        (
            {"type": "Q4_K_M", "tensor_types": [("attn_q", "q8_0")]},
            r"mixed: \d\d% Q4_K, .*Q8_0.* \(general\.file_type is Q4_K_M\)",
        ),
        ({"type": "Q4_K_M", "leave_output_tensor": True, "pure": True}, r"99% Q4_K .*"),
        ({}, "Q4_HIFI, split layout"),
    ],
    ids=str,
)
def test_other_mixes_are_named_by_the_shares_of_their_types(
    options: dict[str, Any], name: str, tmp_path: Path
) -> None:
    q4hifi.quantize_file(EXAMPLE, tmp_path / "out.gguf", **options)
    overview = Overview.open(tmp_path / "out.gguf")
    found = mix_name(overview)
    assert re.fullmatch(name, found)
    for share, kind in re.findall(r"(\d+)% (\w+)", found):
        size = sum(t.nbytes or 0 for t in overview.tensors if t.type == kind)
        assert int(share) == round(100 * size / overview.n_bytes)


def test_what_cannot_be_known_has_the_name_of_the_file_type(tmp_path: Path) -> None:
    q4hifi.quantize_file(write_small_model(tmp_path / "in.gguf"), tmp_path / "q.gguf", "Q4_K_M")
    with q4hifi.open(tmp_path / "q.gguf") as model:
        metadata = model.gguf.metadata
    for file_type, name in ((99, "file type 99"), (19, "IQ2_XXS"), ("Q4", "no file type")):
        kind = GGUFValueType.UINT32 if isinstance(file_type, int) else GGUFValueType.STRING
        pairs = [("general.file_type", file_type, kind)]
        path = write_model(tmp_path / "m.gguf", {"blk.0.attn_q.weight": random_weights(4, 256)}, pairs=pairs)
        assert mix_name(Overview.open(path)) == name
    assert metadata.get("general.file_type") == 15


def test_inspect_shows_the_mix(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    q4hifi.quantize_file(EXAMPLE, out, like="Q4_K_M", stock=True)
    last = run("inspect", out).out.splitlines()[-1]
    assert last.startswith("mixed: ") and "(general.file_type is IQ4_XS), 5,772,544 parameters" in last
