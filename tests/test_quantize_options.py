"""The options of quantizing: one dataclass, from which the functions and the command take theirs."""

from __future__ import annotations

import inspect
import re
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

import q4hifi
from command import Run
from q4hifi.allocation.calibrate import calibrate
from q4hifi.allocation.calibration_options import CalibrationOptions
from q4hifi.cli.group import main
from q4hifi.cli.quantize_options import MADE_BY_COMMANDS
from q4hifi.errors import BadOptionError
from q4hifi.gguf_io.reader import GgufFile
from q4hifi.plan.option import text_of
from q4hifi.plan.option_values import VALUES
from synthetic import EXAMPLE

FIELDS = {field.name: field for field in fields(q4hifi.QuantizeOptions)}


def option_of(command: str, field: str) -> click.Option | None:
    found = main.get_command(click.Context(main), command)
    assert found is not None
    options = [option for option in found.params if isinstance(option, click.Option)]
    return next((option for option in options if option.name == field), None)


# ---- one place -----------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [q4hifi.quantize_file, q4hifi.plan_file])
def test_signatures_and_docstrings_have_every_option(function: Any) -> None:
    shown = inspect.signature(function).parameters
    for name, field in FIELDS.items():
        assert shown[name].default == field.default
        assert shown[name].annotation == field.type
        assert (shown[name].kind is inspect.Parameter.KEYWORD_ONLY) == (name != "type")
        for doc in (function.__doc__, q4hifi.QuantizeOptions.__doc__):
            assert f"    {name} : " in doc
            assert text_of(field).help in re.sub(r"\s+", " ", doc)
    assert function.__module__ == "q4hifi.pipeline.quantize"


@pytest.mark.parametrize("command", ["quantize", "plan"])
@pytest.mark.parametrize("name", sorted(set(FIELDS) - MADE_BY_COMMANDS))
def test_the_command_has_every_option(command: str, name: str) -> None:
    option, text = option_of(command, name), text_of(FIELDS[name])
    if option is None:
        assert (command, name) == ("plan", "allow_requantize")  # a plan never refuses
        return
    assert option.help is not None and option.help.startswith(text.help)
    default = option.get_default(click.Context(click.Command(command)))
    assert default == FIELDS[name].default or (option.multiple and default is None)


def test_values_of_the_command_become_those_of_the_options(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def plan_file(src: str, options: Any) -> Any:
        given.append(options)
        raise BadOptionError("enough")

    monkeypatch.setattr("q4hifi.pipeline.quantize.plan_file", plan_file)
    words = "--tensor-type ATTN_V=q8_0 --tensor-type ffn=q6_k --target-size 3.5MB --no-refine --threads 1"
    run("plan", EXAMPLE, *words.split(), "--split-max-size", "1KiB", "--stock")
    (options,) = given
    assert options == q4hifi.QuantizeOptions(
        tensor_types=(("attn_v", "q8_0"), ("ffn", "q6_k")),
        target_size=3_500_000,
        refine=False,
        threads=1,
        split_max_size=1024,
        stock=True,
        progress=options.progress,
    )


# ---- an object or keywords -----------------------------------------------------------------------


def test_an_object_is_as_good_as_keywords(tmp_path: Path) -> None:
    options = q4hifi.QuantizeOptions("Q5_K_S", output_tensor_type="Q8_0")
    plans = [
        q4hifi.plan_file(EXAMPLE, options),
        q4hifi.plan_file(EXAMPLE, options=options),
        q4hifi.plan_file(src=EXAMPLE, type="Q5_K_S", output_tensor_type="Q8_0"),
        q4hifi.plan_file(EXAMPLE, "Q5_K_S", output_tensor_type="Q8_0"),
    ]
    assert all(plan == plans[0] for plan in plans)
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    assert q4hifi.quantize_file(EXAMPLE, one, options).plan == plans[0]
    q4hifi.quantize_file(EXAMPLE, two, "Q5_K_S", output_tensor_type="Q8_0")
    assert one.read_bytes() == two.read_bytes()
    with pytest.raises(q4hifi.BadOptionError, match="exists already"):
        q4hifi.quantize_file(EXAMPLE, one, options)
    q4hifi.quantize_file(EXAMPLE, one, replace(options, type="Q4_0", overwrite=True))


def test_an_object_and_keywords_together_are_refused() -> None:
    options = q4hifi.QuantizeOptions("Q5_K_S")
    with pytest.raises(BadOptionError, match="`options` holds all options; leave out stock"):
        q4hifi.plan_file(EXAMPLE, options=options, stock=True)  # type: ignore[call-overload]
    with pytest.raises(BadOptionError, match="leave out type"):
        q4hifi.plan_file(EXAMPLE, "Q4_0", options=options)  # type: ignore[call-overload]


def test_unknown_keywords_are_refused_by_the_functions_name() -> None:
    with pytest.raises(TypeError, match=r"^plan_file\(\) got an unexpected keyword argument 'stok'"):
        q4hifi.plan_file(EXAMPLE, stok=True)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"^quantize_file\(\) missing a required argument: 'dst'"):
        q4hifi.quantize_file(EXAMPLE)  # type: ignore[call-overload]


def test_options_are_checked_when_they_are_made() -> None:
    with pytest.raises(BadOptionError, match="`outliers` is 99"):
        q4hifi.QuantizeOptions(outliers=99)
    with pytest.raises(
        BadOptionError, match="`include_weights` and `exclude_weights` choose from an imatrix"
    ):
        q4hifi.QuantizeOptions(include_weights=["attn"])
    with pytest.raises(BadOptionError, match="`keep_split` and `split_max_size` cannot go together"):
        replace(q4hifi.QuantizeOptions(keep_split=True), split_max_size=10)
    with pytest.raises(FrozenInstanceError):
        q4hifi.QuantizeOptions().type = "Q4_0"  # type: ignore[misc]


# ---- opened once ---------------------------------------------------------------------------------


def test_a_model_and_an_imatrix_are_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the model is run, its errors are measured, and it is quantized."""
    text, imatrix = "The cat sat on the mat. " * 40, tmp_path / "imatrix.gguf"
    (tmp_path / "text.txt").write_text(text)
    q4hifi.collect_importance(EXAMPLE, text, n_ctx=32, fisher_chunks=1).save(imatrix)
    file = tmp_path / "imatrix.gguf.sensitivity.json"
    opened: list[str] = []
    open_file = GgufFile.open

    def noted(path: Any, *purpose: Any) -> GgufFile:
        opened.append(str(path))
        return open_file(path, *purpose)

    def calibrated(*arguments: Any, options: CalibrationOptions, **others: Any) -> Any:
        return measure(*arguments, **others, options=replace(options, n_ctx=16, n_chunks=1, group=9))

    from q4hifi.pipeline import planner

    measure = planner.measure_sensitivities
    monkeypatch.setattr(GgufFile, "open", noted)
    monkeypatch.setattr(planner, "measure_sensitivities", calibrated)
    options = q4hifi.QuantizeOptions(
        imatrix=imatrix, like="Q4_K_M", tensor_types=[("blk", "q4_0")], refine=False, threads=2
    )
    report = q4hifi.quantize_file(
        EXAMPLE, tmp_path / "out.gguf", replace(options, calibrate=tmp_path / "text.txt")
    )
    assert sorted(opened) == sorted([str(EXAMPLE), str(imatrix)])
    assert report.plan.measured is not None and report.plan.measured.sensitivities == str(file)
    # what was used is what the calibration left in its file
    assert q4hifi.plan_file(EXAMPLE, replace(options, sensitivities=file)) == report.plan
    kept = calibrate(EXAMPLE, text, file, imatrix=imatrix, n_ctx=16, n_chunks=1, group=9)
    assert kept.as_sensitivities().values == {n: e.value for n, e in kept.sensitivities.items()}


# ---- values --------------------------------------------------------------------------------------


def test_every_option_of_quantizing_has_a_type_that_is_checked() -> None:
    unchecked = {name for name, field in FIELDS.items() if field.type.removesuffix(" | None") not in VALUES}
    assert unchecked == {"progress"}


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("type", None, "a str"),
        ("pure", "no", "True or False"),
        ("outliers", 4.0, "a whole number"),
        ("threads", True, "a whole number"),
        ("target_size", "2MB", "a number of bytes"),
        ("target_bpw", "4.5", "a number"),
        ("imatrix", 5, "a path"),
        ("include_weights", "attn", "a list of str"),
        ("prune_layers", 3, "a list of whole numbers"),
        ("tensor_types", "ffn=q8_0", "a list of .pattern, type."),
        ("tensor_types", {"ffn": "q8_0"}, "a list of .pattern, type."),
        ("tensor_types", [("ffn", 3)], "a list of .pattern, type."),
    ],
)
def test_a_value_of_another_type_is_an_error_that_names_the_option(
    name: str, value: object, wanted: str
) -> None:
    with pytest.raises(BadOptionError, match=f"^`{name}` is .*; give {wanted}"):
        q4hifi.plan_file(EXAMPLE, **{name: value})


def test_numbers_of_numpy_are_numbers() -> None:
    options = q4hifi.QuantizeOptions(outliers=np.int64(4), ffn_down_coverage=np.float32(0.5))
    assert (options.outliers, options.ffn_down_coverage) == (4, 0.5)
