"""What an error in a tensor costs: by the residual stream, or from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import pytest

from q4hifi.allocation.calibration_file import Calibration, load_sensitivities
from q4hifi.allocation.sensitivities import (
    DEFAULT_SOURCE,
    FIRST_LAYER,
    FISHER_SOURCE,
    OUTPUT,
    STREAM,
    TOKEN_EMBD,
    UNKNOWN_SHARE,
    UNKNOWN_VARIANCE,
    WRITTEN_BY,
    Energy,
    Sensitivities,
    default_sensitivities,
)
from q4hifi.errors import BadFileError
from q4hifi.formats.tensor_names import is_tied, layer_of, role_of


def energies_of(values: dict[str, float | None]) -> dict[str, Energy | None]:
    return {name: None if value is None else Energy(value, value) for name, value in values.items()}


def sensitivities_of(energies: Mapping[str, Energy | None], *others: Any) -> Sensitivities:
    """The default sensitivities of a model whose matrices are those in ``energies``."""
    return default_sensitivities(energies, *others, tied=is_tied(energies))


ENERGIES = energies_of(
    {
        "token_embd.weight": 1.0,
        "output.weight": None,
        "blk.0.attn_v.weight": 50.0,
        "blk.0.attn_output.weight": 1.0,
        "blk.0.ffn_down.weight": 6.0,
        "blk.0.ffn_up.weight": 70.0,
        "blk.1.attn_output.weight": 2.0,
        "blk.1.ffn_down.weight": 10.0,
    }
)


def part_of(name: str) -> float:
    role = role_of(name)
    return WRITTEN_BY[role][1] * (FIRST_LAYER.get(role, 1.0) if layer_of(name) == 0 else 1.0)


def test_what_writes_most_to_the_stream_is_most_sensitive() -> None:
    values = sensitivities_of(ENERGIES, 1).values
    assert values["token_embd.weight"] == TOKEN_EMBD
    assert values["output.weight"] == OUTPUT
    stream = {
        "blk.0.attn_output.weight": 1 / 2,
        "blk.0.ffn_down.weight": 6 / 8,
        "blk.1.attn_output.weight": 2 / 10,
        "blk.1.ffn_down.weight": 10 / 20,
    }
    for name, share in stream.items():
        assert values[name] == pytest.approx(STREAM * share * part_of(name))
    assert values["blk.0.ffn_up.weight"] < values["blk.0.ffn_down.weight"]
    assert values["blk.0.attn_v.weight"] > values["blk.0.attn_output.weight"]


def test_tied_embeddings_are_the_output_as_well() -> None:
    energies = {name: e for name, e in ENERGIES.items() if name != "output.weight"}
    assert sensitivities_of(energies, 1).values["token_embd.weight"] == TOKEN_EMBD + OUTPUT


def test_all_are_in_proportion_to_the_logits_variance() -> None:
    one, two = (sensitivities_of(ENERGIES, variance).values for variance in (1.5, 3.0))
    assert two == {name: 2 * value for name, value in one.items()}
    unknown = sensitivities_of(ENERGIES).values
    assert unknown == sensitivities_of(ENERGIES, UNKNOWN_VARIANCE).values


def test_the_parts_of_one_block_add_up() -> None:
    """Routed and shared experts write to the stream together."""
    energies = energies_of(
        {
            "token_embd.weight": 2.0,
            "output.weight": None,
            "blk.0.ffn_down_exps.weight": 1.0,
            "blk.0.ffn_down_shexp.weight": 1.0,
            "blk.0.ffn_up_exps.weight": None,
        }
    )
    values = sensitivities_of(energies, 1).values
    for name, share in {"ffn_down_exps": 1 / 4, "ffn_down_shexp": 1 / 4, "ffn_up_exps": 1 / 2}.items():
        full = f"blk.0.{name}.weight"
        assert values[full] == pytest.approx(STREAM * share * part_of(full))


def test_massive_activations_make_noise_but_no_stream() -> None:
    energies = {**ENERGIES, "blk.0.ffn_down.weight": Energy(600.0, 6.0)}
    before, after = (sensitivities_of(e).values for e in (ENERGIES, energies))
    assert after["blk.0.ffn_down.weight"] == pytest.approx(100 * before["blk.0.ffn_down.weight"])
    for name in ENERGIES:
        assert name == "blk.0.ffn_down.weight" or after[name] == before[name]


def test_without_energies_all_layers_are_alike() -> None:
    values = sensitivities_of(dict.fromkeys(ENERGIES), 1).values
    for name in ("blk.0.attn_output.weight", "blk.1.attn_output.weight", "blk.1.ffn_down.weight"):
        assert values[name] == STREAM * part_of(name) * UNKNOWN_SHARE
    assert values["blk.0.ffn_down.weight"] < values["blk.1.ffn_down.weight"], "what layer 0 adds counts less"


def test_the_fisher_information_says_how_large_the_values_of_a_group_are() -> None:
    by_stream = sensitivities_of(ENERGIES, 1)
    fisher = dict.fromkeys(ENERGIES, 4.0) | {"blk.0.ffn_up.weight": 0.0}
    joined = sensitivities_of(ENERGIES, 1, fisher)
    assert (by_stream.source, joined.source) == (DEFAULT_SOURCE, FISHER_SOURCE)
    alone = [name for name in fisher if fisher[name] and name != "token_embd.weight"]
    for name in alone:  # the first and the last layer, and what is in no layer, are groups of their own
        assert joined.values[name] == pytest.approx(4)
    assert joined.values["blk.0.ffn_up.weight"] == 0
    factors = [4 / by_stream.values[name] for name in alone]
    typical = geometric_mean(factors)
    embeddings = typical * by_stream.values["token_embd.weight"]  # their rows serve one token each
    assert joined.values["token_embd.weight"] == pytest.approx(embeddings)


def test_inside_a_group_fisher_information_and_stream_are_weighed_alike() -> None:
    names = [f"blk.{layer}.ffn_down.weight" for layer in range(5)]
    energies = energies_of(dict.fromkeys(names, 1.0) | {"token_embd.weight": 1.0})
    by_stream = sensitivities_of(energies, 1).values
    fisher = dict(zip(names, (9.0, 1.0, 2.0, 3.0, 9.0), strict=True))
    found = sensitivities_of(energies, 1, fisher).values
    factor = 6 / sum(by_stream[name] for name in names[1:4])
    for name in names[1:4]:
        assert found[name] == pytest.approx((factor * by_stream[name] * fisher[name]) ** 0.5)
    assert found[names[0]] == found[names[4]] == pytest.approx(9)


def test_matrices_without_fisher_information_get_the_typical_factor() -> None:
    names = [f"blk.{layer}.ffn_down.weight" for layer in range(3)]
    by_stream = sensitivities_of(dict.fromkeys(names), 1).values
    fisher = {name: 10 * by_stream[name] for name in names[:2]}
    found = sensitivities_of(dict.fromkeys(names), 1, fisher).values
    assert found == pytest.approx({name: 10 * value for name, value in by_stream.items()})


def test_fisher_information_of_tied_embeddings_counts_as_that_of_an_output() -> None:
    energies = {name: e for name, e in ENERGIES.items() if name != "output.weight"}
    value = sensitivities_of(energies, 1, dict.fromkeys(energies, 4.0)).values["token_embd.weight"]
    assert value == pytest.approx(4)


def test_nothing_is_insensitive_by_default() -> None:
    names = ("enc.blk.0.ssm_in.weight", "blk.3.attn_qkv.weight", "mm.0.weight", "lm_head.weight")
    assert all(value > 0 for value in sensitivities_of(dict.fromkeys(names)).values.values())
    assert sensitivities_of(energies_of({"token_embd.weight": 0.0, "blk.0.ffn_down.weight": 0.0})).values


def test_a_file_says_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "sensitivities.json"
    path.write_text(json.dumps({"sensitivities": {"a": 0.5, "b": 0}, "more": [1]}))
    found = load_sensitivities(path)
    assert (found.values, found.source) == ({"a": 0.5, "b": 0.0}, str(path))


def test_probes_are_read_with_the_parser_of_calibrations(tmp_path: Path) -> None:
    path = tmp_path / "sensitivities.json"
    found = {"sensitivities": {"a": 0.5}, "matrices": {"a": {"probe": "Q4_K", "error": 0.25}}}
    path.write_text(json.dumps(found))
    assert load_sensitivities(path).probes == {"a": ("Q4_K", 0.25)}
    with pytest.raises(BadFileError, match="is no calibration"):
        Calibration.load(path)  # it has no setting
    path.write_text(json.dumps(found | {"version": 2}))
    for load in (load_sensitivities, Calibration.load):
        with pytest.raises(BadFileError, match="version 2, and this q4hifi knows 1"):
            load(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "\xff",
        '{"sensitivities": 3}',
        '{"sensitivities": {"a": "b"}}',
        '{"sensitivities": {"a": -1}}',
        '{"sensitivities": {"a": NaN}}',
        '{"sensitivities": {"a": 1e999}}',
    ],
)
def test_other_files_are_refused_by_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "sensitivities.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(BadFileError, match=r"sensitivities\.json: .*sensitivit"):
        load_sensitivities(path)
    with pytest.raises(BadFileError, match="cannot be read"):
        load_sensitivities(tmp_path / "missing.json")


@pytest.mark.parametrize("value", [-1e-3, 1e31, float("inf"), float("nan")])
def test_a_sensitivity_that_nothing_has_is_refused(value: float, tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    file.write_text(json.dumps({"sensitivities": {"a": 1.0, "b": value}}))
    with pytest.raises(BadFileError, match=r"s\.json: the sensitivity of b is .*; it must be at least 0"):
        load_sensitivities(file)
