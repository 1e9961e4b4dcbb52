"""Hundreds of damaged models and importance matrices: each is worked on or refused, never a crash."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import q4hifi
from q4hifi.errors import Q4HifiError
from q4hifi.gguf_io.reader import GgufFile
from synthetic import names_in, patch, random_sums, random_weights, write_imatrix, write_model

ROUNDS = 60
"""Damaged files of each kind."""

SHAPES = {
    "attn_q": (2, 256),
    "attn_v": (3, 256),
    "ffn_down": (2, 512),
    "ffn_up": (3, 96),
    "attn_norm": (256,),
}


def small_model(path: Path) -> Path:
    """Write a model whose header is most of what a random byte hits."""
    tensors = {f"blk.0.{part}.weight": random_weights(*shape) for part, shape in SHAPES.items()}
    tensors["blk.0.ffn_gate_exps.weight"] = random_weights(2, 2, 256)
    return write_model(path, tensors)


def make(folder: Path, kind: str) -> tuple[bytes, int]:
    """Return a sound file of that kind and the length of its header."""
    source = small_model(folder / "source.gguf")
    path = folder / "sound.gguf"
    if kind in ("split", "fork"):
        q4hifi.quantize_file(source, path, layout=kind, outliers=3, ffn_down_coverage=1)
    elif kind == "imatrix":
        counts = [3, 4]
        sums = {f"blk.0.{part}.weight": (random_sums(1, SHAPES[part][1], [5], seed=1), np.array([5]))
                for part in ("attn_q", "attn_v")}  # fmt: skip
        sums["blk.0.ffn_gate_exps.weight"] = random_sums(2, 256, counts, seed=2), np.array(counts)
        write_imatrix(path, sums)
    else:
        q4hifi.quantize_file(source, path, kind)
    with GgufFile.open(path) as model:
        header = min(tensor.offset for tensor in model.tensors.values())
    return path.read_bytes(), header


def flip_bytes(data: bytearray, rng: random.Random, where: int) -> None:
    for _ in range(rng.randint(1, 4)):
        data[min(where + rng.randrange(32), len(data) - 1)] = rng.choice(
            [0, 1, 0x7F, 0xFF, rng.randrange(256)]
        )


def change_a_number(data: bytearray, rng: random.Random, where: int) -> None:
    value = rng.choice([0, 1, 2, 3, 8, 12, 24, 41, 96, 255, 256, 512, 2**31, 2**32, 2**63, 2**64 - 1])
    data[where : where + 8] = struct.pack("<Q", value)


def remove_bytes(data: bytearray, rng: random.Random, where: int) -> None:
    del data[where : where + rng.choice([1, 8, 32, len(data)])]


def exchange_bytes(data: bytearray, rng: random.Random, where: int) -> None:
    other, n = rng.randrange(len(data)), rng.randint(1, 32)
    data[where : where + n], data[other : other + n] = data[other : other + n], data[where : where + n]


DAMAGES: list[Callable[[bytearray, random.Random, int], None]] = [
    flip_bytes,
    change_a_number,
    remove_bytes,
    exchange_bytes,
]


def work_on(path: Path, kind: str) -> int:
    """Do all that q4hifi does with such a file; return how much of it was refused."""
    dst = path.with_name("out.gguf")
    quantize = partial(q4hifi.quantize_file, path, dst, overwrite=True)
    export = partial(q4hifi.export_file, path, dst, overwrite=True)
    tasks: list[Callable[[], object]] = [
        partial(quantize, "Q4_K_M", allow_requantize=True),
        partial(quantize, "Q4_HIFI", allow_requantize=True),
        partial(quantize, "COPY"),
        partial(q4hifi.dequantize_file, path, dst, overwrite=True),
        partial(q4hifi.plan_file, path, "Q6_K", split_max_size=1000),
        partial(export, as_="q8_0"),
        partial(export, as_="drop"),
        partial(export, layout="fork" if kind == "split" else "split"),
    ]
    if kind == "imatrix":
        quantize = partial(q4hifi.quantize_file, path.with_name("source.gguf"), dst, overwrite=True)
        tasks = [partial(quantize, recipe, imatrix=path) for recipe in ("Q4_K_M", "Q4_HIFI")]
    refused = 0
    for task in tasks:
        try:
            result = task()
            if isinstance(result, q4hifi.QuantizeReport):
                json.dumps(result.as_dict(), allow_nan=False)
        except Q4HifiError as error:
            refused += 1
            assert str(error)
            assert len(str(error)) < 1000
    return refused


@pytest.mark.parametrize("kind", ["F16", "Q5_K_M", "split", "fork", "imatrix"])
def test_damaged_files_are_worked_on_or_refused(kind: str, tmp_path: Path) -> None:
    sound, header = make(tmp_path, kind)
    path = tmp_path / "damaged.gguf"
    path.write_bytes(sound)
    work_on(path, kind)  # must not fail in another way either
    rng = random.Random(kind)
    refused = 0
    for _ in range(ROUNDS):
        data = bytearray(sound)
        damage = rng.choice(DAMAGES)
        damage(data, rng, rng.randrange(header) if rng.random() < 0.7 else rng.randrange(len(data)))
        path.write_bytes(data)
        findings = q4hifi.verify_file(path)
        assert all(finding.message for finding in findings)
        refused += work_on(path, kind) > 0
        assert path.read_bytes() == data
    assert refused > ROUNDS // 4
    assert names_in(tmp_path) <= {"source.gguf", "sound.gguf", "damaged.gguf", "out.gguf"}


@pytest.mark.parametrize("kind", ["F16", "Q5_K_M", "split", "fork"])
def test_what_verify_finds_sound_can_be_worked_on(kind: str, tmp_path: Path) -> None:
    """Damage of the weights alone: verify and the workers agree on it."""
    sound, header = make(tmp_path, kind)
    path, dst = tmp_path / "damaged.gguf", tmp_path / "out.gguf"
    path.write_bytes(sound)
    rng = random.Random(kind)
    outcomes = set()
    for _ in range(ROUNDS):
        path.write_bytes(sound)
        for _ in range(3):
            patch(
                path,
                rng.randrange(header, len(sound) - 1),
                rng.choice([b"\x7e", b"\xff\xff", b"\x00", b"\x7f"]),
            )
        is_sound = not q4hifi.verify_file(path)
        outcomes.add(is_sound)
        try:
            q4hifi.quantize_file(path, dst, "F32", allow_requantize=True, overwrite=True,
                                 layout=kind if kind == "fork" else "split")  # fmt: skip
            assert is_sound
        except Q4HifiError:
            assert not is_sound
    assert outcomes == {True, False}
