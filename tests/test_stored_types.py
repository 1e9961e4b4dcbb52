"""Types that q4hifi does not encode (MXFP4, NVFP4, IQ1 to IQ3, TQ): decoded, kept by rules, dequantized."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType, GGUFValueType

import q4hifi
from command import Run
from q4hifi.errors import BadOptionError, NotFiniteError, UnsupportedModelError
from q4hifi.formats.layout import StoredTensor
from q4hifi.formats.types import F16, GGUF_DECODED_TYPES, STORED_TYPES, TYPES
from q4hifi.plan.keep_rules import keep_rules
from synthetic import names_in, read_tensors, write_stored

EXPERTS, QUERY = "blk.0.ffn_down_exps.weight", "blk.0.attn_q.weight"
PAIRS = [
    ("general.architecture", "gpt-oss", GGUFValueType.STRING),
    ("gpt-oss.block_count", 1, GGUFValueType.UINT32),
    ("gpt-oss.expert_count", 4, GGUFValueType.UINT32),
]


def blocks(name: str, n: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Return ``n`` blocks of a type, all of whose scales are finite."""
    kind = TYPES[name]
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (n, kind.block_bytes), np.uint8)
    if name == "MXFP4":
        data[:, 0] = rng.integers(110, 125, n)
    elif name == "NVFP4":
        data[:, :4] = rng.integers(0, 0x78, (n, 4))
    elif name == "IQ1_M":  # the f16 of a block is in the upper four bits of each scale
        data[:, 49::2] &= 0x3F
        data[:, 55] = 0x20 | data[:, 55] & 0xF
    else:  # an f16, first or last
        at = -2 if name in ("TQ1_0", "TQ2_0") else 0
        scales = (0.01 * rng.standard_normal(n)).astype(np.float16).view(np.uint8).reshape(n, 2)
        data[:, at : at + 2 or None] = scales
    return data


def by_gguf(name: str, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return gguf.quants.dequantize(data, GGMLQuantizationType(TYPES[name].id))


@pytest.fixture
def mxfp4(tmp_path: Path) -> Path:
    """A model whose experts are MXFP4 and the rest BF16, as gpt-oss is published."""
    stored = {
        "output.weight": ("BF16", (64, 256)),
        "token_embd.weight": ("BF16", (64, 256)),
        QUERY: ("BF16", (32, 256)),
        EXPERTS: ("MXFP4", (4, 8, 256)),
        "blk.0.ffn_up_exps.weight": ("MXFP4", (4, 8, 256)),
        "blk.0.attn_q_norm.weight": ("F32", (256,)),
    }
    data = {
        EXPERTS: blocks("MXFP4", 4 * 8 * 8).tobytes(),
        "blk.0.ffn_up_exps.weight": blocks("MXFP4", 4 * 8 * 8, seed=1).tobytes(),
    }
    return write_stored(tmp_path / "gpt-oss.gguf", stored, pairs=PAIRS, data=data)


# ---- decoding ------------------------------------------------------------------------------------


def test_the_table_names_what_the_gguf_package_decodes() -> None:
    def decodes(kind: GGMLQuantizationType) -> bool:
        try:
            gguf.quants.dequantize(np.zeros((1, STORED_TYPES[kind].block_bytes), np.uint8), kind)
        except NotImplementedError:
            return False
        return True

    blocks_only = [kind for kind, t in STORED_TYPES.items() if t.quantized]
    assert {kind for kind in blocks_only if decodes(GGMLQuantizationType(kind))} == {
        kind for kind in blocks_only if STORED_TYPES[kind].decodable
    }
    assert all(t.decodable for t in TYPES.values() if t.codec)


@pytest.mark.parametrize("name", GGUF_DECODED_TYPES)
def test_weights_are_those_of_the_gguf_package(name: str, tmp_path: Path) -> None:
    kind = TYPES[name]
    data = blocks(name, 6 * 512 // kind.block_size).reshape(6, -1)
    expected = by_gguf(name, data)
    assert np.isfinite(expected).all() and expected.any()
    assert np.array_equal(q4hifi.dequantize(data, name, (6, 512)), expected)
    path = write_stored(
        tmp_path / "in.gguf", {QUERY: (name, (6, 512))}, pairs=PAIRS, data={QUERY: data.tobytes()}
    )
    assert q4hifi.verify_file(path) == []
    with q4hifi.open(path) as model:
        assert np.array_equal(model[QUERY].dequantize(), expected)
    q4hifi.dequantize_file(path, tmp_path / "out.gguf", "F32")
    assert np.array_equal(read_tensors(tmp_path / "out.gguf")[QUERY].weights(), expected)
    report = q4hifi.quantize_file(path, tmp_path / "q.gguf", "Q8_0", allow_requantize=True)
    made = q4hifi.quantize(expected, "Q8_0").data.tobytes()
    assert read_tensors(tmp_path / "q.gguf")[QUERY].data == made
    assert 0 < report.errors[QUERY].relative < 1e-3


def test_scales_that_are_not_finite_are_found(tmp_path: Path) -> None:
    data = blocks("IQ3_S", 12)
    data[5, :2] = np.array([np.inf], np.float16).view(np.uint8)
    path = write_stored(
        tmp_path / "in.gguf", {QUERY: ("IQ3_S", (6, 512))}, pairs=PAIRS, data={QUERY: data.tobytes()}
    )
    (finding,) = q4hifi.verify_file(path)
    assert finding.tensor == QUERY and "row 2, column 256 is NaN or infinite" in finding.message
    with pytest.raises(NotFiniteError, match="row 2, column 256"):
        q4hifi.quantize_file(path, tmp_path / "out.gguf", "Q8_0", allow_requantize=True)


# ---- keeping them --------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["exps=mxfp4", "ffn_.*=MXFP4", "ffn_(down|up)_exps=MxFp4"])
def test_a_rule_with_the_type_that_tensors_have_copies_them(
    rule: str, mxfp4: Path, run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    outcome = run("quantize", mxfp4, out, "Q8_0", "--tensor-type", rule)
    assert (outcome.status, outcome.err) == (0, "")
    before, after = read_tensors(mxfp4), read_tensors(out)
    assert after[EXPERTS] == before[EXPERTS]
    assert (after[QUERY].type_name, after["output.weight"].type_name) == ("Q8_0", "Q8_0")
    assert q4hifi.verify_file(out) == []


def test_what_is_quantized_is_not_quantized_again_without_leave(
    mxfp4: Path, run: Run, tmp_path: Path
) -> None:
    """And the message names a way out, which works."""
    outcome = run("quantize", mxfp4, tmp_path / "out.gguf", "Q4_K_M")
    assert outcome.status == 1
    assert "2 tensors would be quantized a second time" in outcome.err
    found = re.search(r"--tensor-type '(\S+)'", outcome.err)
    assert found is not None and found[1] == "ffn_.*_exps=mxfp4"
    assert names_in(tmp_path) == {mxfp4.name}
    assert run("quantize", mxfp4, tmp_path / "out.gguf", "Q4_K_M", "--tensor-type", found[1]).status == 0
    assert run("quantize", mxfp4, tmp_path / "again.gguf", "Q4_K_M", "--allow-requantize").status == 0
    types = {name: t.type_name for name, t in read_tensors(tmp_path / "again.gguf").items()}
    assert types[EXPERTS] in ("Q4_K", "Q6_K")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"tensor_types": [("attn_q", "mxfp4")]}, f"tensor {QUERY} is BF16 and was to become MXFP4"),
        ({"tensor_types": [("exps", "iq2_xs")]}, "is MXFP4 and was to become IQ2_XS, which q4hifi cannot"),
        ({"output_tensor_type": "mxfp4"}, r"tensor output\.weight is BF16 and was to become MXFP4"),
        ({"token_embedding_type": "nvfp4"}, r"tensor token_embd\.weight is BF16 and was to become NVFP4"),
        ({"tensor_types": [("attn_q", "i8")]}, "was to become I8"),
        ({"tensor_types": [("attn_q", "mxfp5")]}, "unknown tensor type 'mxfp5'"),
    ],
)
def test_a_type_that_cannot_be_made_is_refused_with_the_tensor(
    options: dict[str, object], match: str, mxfp4: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadOptionError, match=match):
        q4hifi.quantize_file(mxfp4, tmp_path / "out.gguf", "Q8_0", **options)  # type: ignore[arg-type]
    assert names_in(tmp_path) == {mxfp4.name}


@pytest.mark.parametrize("name", ["Q8_K", "Q1_0", "Q8_1"])
def test_types_that_nothing_decodes_can_be_kept(name: str, tmp_path: Path) -> None:
    stored = {QUERY: (name, (2, 256)), "output.weight": ("F16", (2, 256)), "w.weight": ("F16", (3, 256))}
    path, out = write_stored(tmp_path / "in.gguf", stored, pairs=PAIRS), tmp_path / "out.gguf"
    for options in ({}, {"allow_requantize": True}):
        with pytest.raises(UnsupportedModelError, match=f"cannot decode; .* 'attn_q={name.lower()}'"):
            q4hifi.quantize_file(path, out, "Q8_0", **options)  # type: ignore[arg-type]
    q4hifi.quantize_file(path, out, "Q8_0", tensor_types=[("attn_q", name)])
    assert read_tensors(out)[QUERY] == read_tensors(path)[QUERY]
    with pytest.raises(UnsupportedModelError, match=rf"{QUERY}: is stored as {name}, which q4hifi cannot"):
        q4hifi.dequantize_file(path, tmp_path / "f16.gguf")


STORED_NAMES = [name for name, kind in TYPES.items() if kind.quantized and name != "Q4_HIFI"]
FULL = {"output.weight", "token_embd.weight", QUERY}
COPYING: dict[str, tuple[set[str], dict[str, object]]] = {
    "a rule": (FULL, {"tensor_types": [(".", "KIND")]}),
    "a rule, pure": (FULL, {"tensor_types": [(".", "KIND")], "pure": True}),
    "options": (
        FULL,
        {
            "output_tensor_type": "KIND",
            "token_embedding_type": "KIND",
            "tensor_types": [("attn_q", "KIND")],
        },
    ),
    "tied": (FULL - {"output.weight"}, {"output_tensor_type": "KIND", "tensor_types": [("attn_q", "KIND")]}),
}
"""Options that give all tensors the type KIND, and the names of the tensors."""


@pytest.mark.parametrize("case", COPYING)
@pytest.mark.parametrize("kind", STORED_NAMES)
def test_the_type_of_the_source_means_a_copy(kind: str, case: str, tmp_path: Path) -> None:
    names, options = COPYING[case]
    path = write_stored(tmp_path / "in.gguf", dict.fromkeys(names, (kind, (2, 512))), pairs=PAIRS)
    given = {key: _named(value, kind) for key, value in options.items()}
    recipes = ["Q4_K_M", "Q2_K_S", *(["F16", "BF16"] if case == "a rule" else [])]
    for recipe in recipes:
        out = tmp_path / f"{recipe}.gguf"
        report = q4hifi.quantize_file(path, out, recipe, **given)  # type: ignore[arg-type]
        assert read_tensors(out) == read_tensors(path)
        assert all(t.copied for t in report.plan.tensors)


def _named(value: object, kind: str) -> object:
    if isinstance(value, list):
        return [(pattern, kind) for pattern, _ in value]
    return kind if value == "KIND" else value


@pytest.mark.parametrize("recipe", ["Q8_0", "Q4_0", "Q6_K", "IQ4_XS", "F16", "BF16", "F32"])
def test_a_recipe_copies_what_has_its_type(recipe: str, tmp_path: Path) -> None:
    path = write_stored(tmp_path / "in.gguf", dict.fromkeys(FULL, (recipe, (2, 512))), pairs=PAIRS)
    q4hifi.quantize_file(path, tmp_path / "out.gguf", recipe, pure=True)
    assert read_tensors(tmp_path / "out.gguf") == read_tensors(path)


@pytest.mark.parametrize("rule", [True, False])
def test_q4_hifi_keeps_its_outliers_unless_others_are_asked_for(rule: bool, tmp_path: Path) -> None:
    stored = {"token_embd.weight": ("F16", (2, 256)), QUERY: ("F16", (2, 256))}
    path = write_stored(tmp_path / "in.gguf", stored, pairs=PAIRS)
    five = q4hifi.quantize_file(path, tmp_path / "5.gguf", pure=True, outliers=5).destination[0]
    options = {"type": "Q6_K", "tensor_types": [(".", "q4_hifi")]} if rule else {"pure": True}
    q4hifi.quantize_file(five, tmp_path / "out.gguf", **options)  # type: ignore[arg-type]
    assert read_tensors(tmp_path / "out.gguf") == read_tensors(tmp_path / "5.gguf")
    with pytest.raises(UnsupportedModelError, match="is Q4_HIFI already"):
        q4hifi.quantize_file(five, tmp_path / "6.gguf", pure=True, outliers=6)


def test_output_types_keep_too(tmp_path: Path) -> None:
    stored = {"output.weight": ("IQ2_XS", (2, 256)), "token_embd.weight": ("TQ1_0", (2, 256))}
    path = write_stored(tmp_path / "in.gguf", {**stored, QUERY: ("F16", (2, 256))}, pairs=PAIRS)
    q4hifi.quantize_file(
        path, tmp_path / "out.gguf", "Q4_K_M", output_tensor_type="IQ2_XS", token_embedding_type="tq1_0"
    )
    types = {name: t.type_name for name, t in read_tensors(tmp_path / "out.gguf").items()}
    assert types == {"output.weight": "IQ2_XS", "token_embd.weight": "TQ1_0", QUERY: "Q4_K"}


def test_measured_coverage_reads_them(mxfp4: Path, tmp_path: Path) -> None:
    """It measures what it may change, and leaves what a rule keeps."""
    q4hifi.quantize_file(mxfp4, tmp_path / "a.gguf", like="Q6_K", stock=True, allow_requantize=True)
    q4hifi.quantize_file(
        mxfp4, tmp_path / "b.gguf", like="Q6_K", stock=True, tensor_types=[("exps", "mxfp4")]
    )
    assert read_tensors(tmp_path / "a.gguf")[EXPERTS].type_name != "MXFP4"
    assert read_tensors(tmp_path / "b.gguf")[EXPERTS] == read_tensors(mxfp4)[EXPERTS]


def test_copies_are_not_decoded(mxfp4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(gguf.quants, "dequantize", fail)
    q4hifi.quantize_file(mxfp4, tmp_path / "out.gguf", "COPY")
    with pytest.raises(AssertionError, match="decoded"):
        q4hifi.verify_file(mxfp4)


# ---- the rule that a message names ---------------------------------------------------------------


def tensors(*named: tuple[str, str]) -> list[StoredTensor]:
    return [StoredTensor(name, (256, 2), TYPES[kind]) for name, kind in named]


def test_a_rule_matches_what_is_to_be_kept_and_nothing_else() -> None:
    kept = tensors(("blk.0.attn_q.weight", "Q8_0"), ("blk.1.attn_q.weight", "Q8_0"))
    other = tensors(("blk.0.attn_k.weight", "F16"))
    assert keep_rules(kept, kept + other) == "--tensor-type 'attn_q=q8_0'"
    one_more = tensors(("blk.2.attn_q.weight", "F16"))
    names = r"^blk\.0\.attn_q\.weight$|^blk\.1\.attn_q\.weight$"
    assert keep_rules(kept, kept + other + one_more) == f"--tensor-type '{names}=q8_0'"
    two_types = tensors(("blk.0.attn_q.weight", "Q8_0"), ("blk.0.attn_v.weight", "IQ1_S"))
    rules = "--tensor-type 'attn_q=q8_0' --tensor-type 'attn_v=iq1_s'"
    assert keep_rules(two_types, two_types) == rules


def test_a_rule_can_be_typed() -> None:
    odd = [StoredTensor("Model.W=Q'.weight", (256, 2), TYPES["IQ1_S"])]
    (pattern,) = re.findall(r"'(.*)=iq1_s'", keep_rules(odd, odd))
    assert pattern == pattern.lower() and not set("='") & set(pattern)
    assert re.search(pattern, odd[0].name)
    many = tensors(*((f"tensor_{i}_of_many.weight", "IQ1_S") for i in range(50)))
    assert keep_rules(many, many) == ""
    assert keep_rules([], many) == ""


def test_norms_do_not_count_as_other_tensors() -> None:
    kept = tensors(("blk.0.attn_q.weight", "MXFP4"))
    norm = StoredTensor("blk.0.attn_q_norm.weight", (256,), F16)
    assert keep_rules(kept, [*kept, norm]) == "--tensor-type 'attn_q=mxfp4'"
