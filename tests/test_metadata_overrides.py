"""``--override-kv``: pairs of metadata that a user sets."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFValueType

import q4hifi
from command import Run
from q4hifi import BadOptionError
from synthetic import EXAMPLE


def test_pairs_are_set_and_keep_the_type_that_they_have(tmp_path: Path, run: Run) -> None:
    pairs = {
        "tokenizer.ggml.add_bos_token=bool:false": (GGUFValueType.BOOL, False),
        "qwen3.context_length=int:1024": (GGUFValueType.UINT32, 1024),
        "qwen3.rope.freq_base=float:5e5": (GGUFValueType.FLOAT32, 5e5),
        "general.name=str:a = b: c": (GGUFValueType.STRING, "a = b: c"),
        "new.negative=int:-3": (GGUFValueType.INT64, -3),
        "new.large=int:5000000000": (GGUFValueType.INT64, 5_000_000_000),
        "new.small=int:3": (GGUFValueType.UINT32, 3),
    }
    options = [word for pair in pairs for word in ("--override-kv", pair)]
    out = tmp_path / "out.gguf"
    assert run("quantize", EXAMPLE, out, "Q8_0", *options).status == 0
    reader = GGUFReader(out)
    for pair, (kind, value) in pairs.items():
        field = reader.fields[pair.split("=")[0]]
        assert (field.types[0], field.contents()) == (kind, value)
    assert run("verify", out).status == 0


def test_the_planned_size_is_that_of_the_file(tmp_path: Path) -> None:
    overrides = ["general.description=str:" + "long " * 99]
    plan = q4hifi.plan_file(EXAMPLE, "Q8_0", override_kv=overrides)
    report = q4hifi.quantize_file(EXAMPLE, tmp_path / "out.gguf", "Q8_0", override_kv=overrides)
    assert plan.file_bytes == (tmp_path / "out.gguf").stat().st_size
    assert report.plan.file_bytes == plan.file_bytes


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("key", "write KEY=TYPE:VALUE, where TYPE is int, float, bool, str"),
        ("=int:3", "write KEY=TYPE:VALUE"),
        ("a.key=uint:3", "write KEY=TYPE:VALUE"),
        ("a.key=int:3.5", "'3.5' is no int"),
        ("a.key=float:nan", "'nan' is no float"),
        ("a.key=bool:yes", "'yes' is no bool"),
        ("general.alignment=int:64", "general.alignment describes the file itself"),
        ("split.count=int:3", "describes the file itself"),
    ],
)
def test_other_pairs_are_refused(pair: str, message: str) -> None:
    with pytest.raises(BadOptionError, match=message):
        q4hifi.QuantizeOptions(override_kv=[pair])


def test_a_value_that_does_not_fit_its_pair_is_refused(tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out.gguf"
    found = run("quantize", EXAMPLE, out, "Q8_0", "--override-kv", "qwen3.context_length=int:-1")
    assert found.status == 2 and "qwen3.context_length: -1 does not fit UINT32" in found.err
    assert not out.exists()
