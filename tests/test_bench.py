"""Speeds: what is run, what is computed of the times, and llama-bench's table."""

from __future__ import annotations

import json

import pytest

from q4hifi import BadOptionError, Speed
from q4hifi import bench as measure_speed
from q4hifi.cli.evaluation_tables import speed_table
from stand_ins import ToyModel, toy
from synthetic import EXAMPLE


def speed(**changes: object) -> Speed:
    facts = {"model": "m.gguf", "description": "llama 7B Q4_K_M", "n_bytes": 4 << 30}
    times = {"n_params": 6_738_415_616, "backend": "avx2", "n_threads": 8, "test": "pp512", "n_tokens": 512}
    return Speed(**{**facts, **times, "seconds": (4.0, 5.12, 8.0), **changes})  # type: ignore[arg-type]


def test_each_test_is_warmed_up_and_repeated() -> None:
    model = toy(path=EXAMPLE, bos=1)
    prompt, gen = measure_speed(model, n_prompt=9, n_gen=4, repetitions=3, threads=2)
    assert [len(tokens) for tokens in model.read] == [9, 9, 9, 9, 1, 4, 4, 4]
    assert all(tokens[0] == 1 for tokens in model.read)
    assert (prompt.test, prompt.n_tokens, len(prompt.seconds)) == ("pp9", 9, 3)
    assert (gen.test, gen.n_tokens, len(gen.seconds)) == ("tg4", 4, 3)
    assert (gen.n_params, gen.n_threads) == (5_772_544, 2)


def test_several_lengths_and_none() -> None:
    model = toy(path=EXAMPLE)
    found = measure_speed(model, n_prompt=(4, 8), n_gen=0, repetitions=1)
    assert [one.test for one in found] == ["pp4", "pp8"]
    for options in ({"n_prompt": 0, "n_gen": ()}, {"repetitions": 0}):
        with pytest.raises(BadOptionError, match="nothing to measure"):
            measure_speed(model, **options)


def test_progress_counts_tokens() -> None:
    calls: list[tuple[int, int, str]] = []
    model: ToyModel = toy(path=EXAMPLE)
    measure_speed(model, n_prompt=8, n_gen=4, repetitions=2, progress=lambda *call: calls.append(call))
    assert calls == [(0, 24, "pp8"), (8, 24, "pp8"), (16, 24, "tg4"), (20, 24, "tg4")]


def test_rates_and_their_deviation() -> None:
    rate = speed().tokens_per_second  # 128, 100 and 64 tokens per second
    assert rate.value == pytest.approx(292 / 3)
    assert rate.error == pytest.approx(32.0833, rel=1e-4)
    assert speed(seconds=(4.0,)).tokens_per_second.error == 0
    plain = json.loads(json.dumps(speed().as_dict()))
    assert plain["samples_ns"] == [4_000_000_000, 5_120_000_000, 8_000_000_000]
    assert (plain["n_prompt"], plain["n_gen"], plain["avg_ts"]) == (512, 0, rate.value)


def test_the_table_is_llama_benchs() -> None:
    small = speed(n_bytes=100 << 20, n_params=5_772_544, test="tg128", n_tokens=128, seconds=(1.0,))
    head, line, *rows = speed_table([speed(), small]).splitlines()
    assert head == (
        "| model                          |       size |     params | backend    | threads |"
        "            test |                  t/s |"
    )
    assert line == (
        "| ------------------------------ | ---------: | ---------: | ---------- | ------: |"
        " --------------: | -------------------: |"
    )
    assert rows == [
        "| llama 7B Q4_K_M                |   4.00 GiB |     6.74 B | avx2       |       8 |"
        "           pp512 |        97.33 ± 32.08 |",
        "| llama 7B Q4_K_M                | 100.00 MiB |     5.77 M | avx2       |       8 |"
        "           tg128 |        128.00 ± 0.00 |",
    ]
