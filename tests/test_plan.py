"""Plans: published sizes, exact bytes, order, and what a plan reports."""

import json
from pathlib import Path

import gguf
import pytest

from described_models import expand
from q4hifi.errors import BadOptionError, UnsupportedModelError
from q4hifi.formats.layout import StoredTensor
from q4hifi.formats.types import F16, F32, Q4_HIFI, STORED_TYPES, TYPES
from q4hifi.plan.model_shape import ModelShape
from q4hifi.plan.options import TypeOptions
from q4hifi.plan.plan import TypeTotal, make_plan
from q4hifi.plan.size_classes import SizeClass

HERE = Path(__file__).parent
PUBLISHED = json.loads((HERE / "golden" / "model_shapes.json").read_text())["models"]
QWEN, DEVSTRAL = "Qwen3-0.6B", "Devstral-2-123B"
MIB, GIB = 2**20, 2**30

DEVSTRAL_HEADER = 7 * MIB
"""About what Devstral's 131 072 tokens and 269 443 merges take in a GGUF header. Its published sizes
are of whole files (any header of 4.1 to 16.9 MiB gives these three); Qwen3's are of the tensors alone."""


def published_plan(name, **options):
    model = PUBLISHED[name]
    tensors = [
        StoredTensor(tensor, shape, TYPES[kind]) for tensor, (kind, shape) in expand(model["tensors"]).items()
    ]
    return make_plan(tensors, ModelShape.from_metadata(model["metadata"]), TypeOptions(**options))


@pytest.mark.parametrize(
    ("options", "published"),
    [
        ({"type": "Q4_K_S"}, "443 MiB"),
        ({"type": "Q4_K_M"}, "456 MiB"),
        ({"type": "Q4_HIFI", "layout": "fork"}, "469 MiB"),
        ({"type": "Q4_HIFI", "layout": "fork", "ffn_down_coverage": 0.5}, "469 MiB"),
    ],
)
def test_published_sizes_of_qwen(options, published):
    assert published in PUBLISHED[QWEN]["published"].values()
    plan = published_plan(QWEN, **options)
    assert f"{plan.tensor_bytes / MIB:.0f} MiB" == published


@pytest.mark.parametrize(
    ("options", "published"),
    [
        ({"type": "Q4_K_S"}, "66.4 GiB"),
        ({"type": "Q4_K_M"}, "69.8 GiB"),
        ({"type": "Q4_HIFI", "layout": "fork", "ffn_down_coverage": 0.5}, "71.9 GiB"),
    ],
)
def test_published_sizes_of_devstral(options, published):
    assert published in PUBLISHED[DEVSTRAL]["published"].values()
    plan = published_plan(DEVSTRAL, **options)
    assert f"{(plan.tensor_bytes + DEVSTRAL_HEADER) / GIB:.1f} GiB" == published


@pytest.mark.parametrize("layout", ["fork", "split"])
def test_devstral_by_its_scale_stays_under_68_gib(layout):
    plan = published_plan(DEVSTRAL, layout=layout)
    assert plan.size_class == SizeClass(16, 0.0, 1.0)
    assert plan.tensor_bytes + DEVSTRAL_HEADER <= 68 * GIB
    minimal = published_plan(DEVSTRAL, layout=layout, minimal=True)
    assert minimal.by_type["Q4_HIFI"].tensors == 22
    assert minimal.tensor_bytes < plan.tensor_bytes


def test_minimal_needs_a_large_model():
    with pytest.raises(BadOptionError, match=r"this model has 0\.752 B"):
        published_plan(QWEN, minimal=True)


# --- a model small enough to count by hand -------------------------------------------------------

SMALL = [
    StoredTensor("blk.0.ffn_down.weight", (512, 3), F16),
    StoredTensor("output.weight", (256, 5), F16),
    StoredTensor("blk.1.attn_v.weight", (256, 2, 4), F16),
    StoredTensor("blk.1.attn_q.weight", (96, 2), F16),
    StoredTensor("output_norm.weight", (256,), F32),
]


def small_plan(tensors=SMALL, keep_order=False, **options):
    return make_plan(tensors, ModelShape("llama", 2, 4, 1), TypeOptions(**options), keep_order=keep_order)


def test_plan_counts_every_byte():
    plan = small_plan(outliers=3)
    sizes = {t.name: (t.type.name, t.outliers, t.nbytes) for t in plan.tensors}
    assert sizes == {
        "output.weight": ("Q6_K", 0, 5 * 210),
        "output_norm.weight": ("F32", 0, 256 * 4),
        "blk.0.ffn_down.weight": ("Q4_HIFI", 3, 3 * 2 * (144 + 3 * 3)),
        "blk.1.attn_q.weight": ("Q5_0", 0, 2 * 3 * 22),
        "blk.1.attn_v.weight": ("Q4_HIFI", 3, 8 * (144 + 3 * 3)),
    }
    assert plan.tensor_bytes == 1050 + 1024 + 918 + 132 + 1224
    # padded: 1056 + 1024; 864 + 32 + 64; 160; 1152 + 32 + 64
    assert plan.data_bytes() == 1056 + 1024 + 960 + 160 + 1248
    assert plan.data_bytes(1) == plan.tensor_bytes
    assert plan.n_params == 1536 + 1280 + 2048 + 192 + 256
    assert plan.bits_per_weight == 8 * plan.tensor_bytes / plan.n_params
    assert list(plan.by_type.items()) == [
        ("Q4_HIFI", TypeTotal(2, 3584, 2142)),
        ("Q6_K", TypeTotal(1, 1280, 1050)),
        ("F32", TypeTotal(1, 256, 1024)),
        ("Q5_0", TypeTotal(1, 192, 132)),
    ]
    assert [t.name for t in plan.fallbacks] == ["blk.1.attn_q.weight"]


def test_fork_layout_stores_244_bytes_a_block():
    plan = small_plan(layout="fork")
    assert plan.by_type["Q4_HIFI"].bytes == (3 * 2 + 8) * 244
    assert all(len(t.stored) == 1 for t in plan.tensors)


def test_stored_tensors_of_the_split_layout():
    tensor = small_plan().tensors[2]
    assert [(part.name, part.shape, part.type.name) for part in tensor.stored] == [
        ("blk.0.ffn_down.weight", (512, 3), "Q4_K"),
        ("blk.0.ffn_down.weight.outlier_index", (8, 2, 3), "I8"),
        ("blk.0.ffn_down.weight.outlier_residual", (8, 2, 3), "F16"),
    ]


def test_order_is_llama_quantizes_or_the_files():
    assert [t.name for t in small_plan().tensors] == [
        *("output.weight", "output_norm.weight"),
        *("blk.0.ffn_down.weight", "blk.1.attn_q.weight", "blk.1.attn_v.weight"),
    ]
    assert [t.name for t in small_plan(keep_order=True).tensors] == [t.name for t in SMALL]


@pytest.mark.parametrize(
    ("options", "file_type", "scale"),
    [
        ({}, 14, SizeClass(8, 0.5)),
        ({"layout": "fork"}, 42, SizeClass(8, 0.5)),
        ({"outliers": 4, "ffn_down_coverage": 1}, 14, SizeClass(4, 1)),
        ({"outliers": 0}, 14, None),
        ({"type": "Q4_K_M"}, 15, None),
        ({"type": "Q4_K_M", "layout": "fork"}, 15, None),
        ({"type": "Q6_K", "tensor_types": (("attn_v", "q4_hifi"),)}, 18, SizeClass(8, 0.5)),
        ({"type": "Q6_K", "tensor_types": (("attn_v", "q4_hifi"),), "layout": "fork"}, 42, SizeClass(8, 0.5)),
        ({"type": "F32"}, 0, None),
        ({"type": "BF16"}, 32, None),
        ({"type": "COPY"}, None, None),
    ],
)
def test_file_type_and_scale(options, file_type, scale):
    plan = small_plan(**options)
    assert (plan.file_type, plan.size_class) == (file_type, scale)


def test_copied_and_requantized():
    tensors = [
        StoredTensor("blk.0.attn_q.weight", (256, 2), TYPES["Q8_0"]),
        StoredTensor("blk.0.attn_k.weight", (256, 2), TYPES["Q4_K"]),
        StoredTensor("blk.1.attn_q.weight", (256, 2), F16),
        StoredTensor("blk.1.attn_norm.weight", (256,), F32),
    ]
    plan = small_plan(tensors, type="Q4_K_S")
    state = {t.name: (t.copied, t.requantized) for t in plan.tensors}
    assert state == {
        "blk.0.attn_q.weight": (False, True),
        "blk.0.attn_k.weight": (True, False),
        "blk.1.attn_q.weight": (False, False),
        "blk.1.attn_norm.weight": (True, False),
    }
    assert all(t.copied for t in small_plan(tensors, type="COPY").tensors)


def test_a_source_type_that_nothing_decodes_is_refused_unless_copied():
    tensors = [
        StoredTensor("blk.0.attn_q.weight", (256, 2), TYPES["Q8_K"]),
        StoredTensor("blk.0.attn_v.weight", (256, 2), F16),
    ]
    match = r"blk\.0\.attn_q\.weight is stored as Q8_K, which .* keep it with --tensor-type 'attn_q=q8_k'"
    with pytest.raises(UnsupportedModelError, match=match):
        small_plan(tensors)
    assert small_plan(tensors, type="COPY").tensor_bytes == 2 * 292 + 2 * 512
    kept = small_plan(tensors, type="Q8_0", tensor_types=(("attn_q", "q8_k"),))
    assert [t.type.name for t in kept.tensors] == ["Q8_K", "Q8_0"]


# --- names too long for companions ---------------------------------------------------------------


def long_named(n_bytes, role="attn_v", letter="x"):
    """A tensor of that many bytes in its name."""
    name = f".{role}.weight"
    fill = letter * ((n_bytes - len(name)) // len(letter.encode()))
    return StoredTensor(fill + name, (256, 2), F16)


@pytest.mark.parametrize("letter", ["x", "ж"])
def test_q4_hifi_falls_back_where_its_companions_names_are_too_long(letter):
    """By the bytes of a name, not by its letters."""
    fits, long = long_named(46, letter=letter), long_named(48, letter=letter)
    assert (len(fits.name.encode()), len(long.name.encode())) == (46, 48)
    plan = small_plan([fits, long])
    kinds = {t.name: (t.type.name, t.fallback_from and t.fallback_from.name) for t in plan.tensors}
    assert kinds == {fits.name: ("Q4_HIFI", None), long.name: ("Q4_K", "Q4_HIFI")}
    (warning,) = plan.warnings
    assert "1 of 2 tensors cannot be Q4_HIFI" in warning and long.name in warning and "63 bytes" in warning
    read = json.loads(json.dumps(plan.as_dict()))
    assert (read["warnings"], read["fallbacks"]) == ([warning], 1)
    assert all(len(part.name.encode()) <= 63 for t in plan.tensors for part in t.stored)


@pytest.mark.parametrize("n_bytes", range(44, 64))
def test_names_of_every_length_are_planned(n_bytes):
    tensor = long_named(n_bytes)
    kind = small_plan([tensor]).tensors[0].type.name
    assert kind == ("Q4_HIFI" if n_bytes <= 46 else "Q4_K")
    assert small_plan([tensor], layout="fork").tensors[0].type == Q4_HIFI
    assert small_plan([tensor], layout="fork").warnings == ()
    by_rule = small_plan([tensor], type="Q8_0", tensor_types=(("attn_v", "q4_hifi"),))
    assert by_rule.tensors[0].type.name == kind
    assert small_plan([tensor], outliers=0).warnings == ()


def test_a_long_name_can_be_made_an_error():
    with pytest.raises(UnsupportedModelError, match="names of Q4_HIFI's companions would have more than 63"):
        small_plan([long_named(50)], no_fallback=True)


# --- models without layers, and adapters ----------------------------------------------------------


def test_an_adapter_is_copied_and_says_so():
    tensors = [
        StoredTensor("blk.0.attn_q.weight", (256, 2), F16),
        StoredTensor("output.weight", (256, 2), F16),
    ]
    adapter = ModelShape("llama", None, adapter=True)
    for kind in ("Q8_0", "F32", "Q6_K"):
        plan = make_plan(tensors, adapter, TypeOptions(type=kind))
        assert all(t.copied for t in plan.tensors)
        assert plan.file_type is None
        assert "adapter, whose matrices no recipe changes" in plan.warnings[0]
    for kind in ("Q4_K_M", "Q4_HIFI"):
        with pytest.raises(
            UnsupportedModelError, match="adapter, whose matrices no recipe changes; use COPY"
        ):
            make_plan(tensors, adapter, TypeOptions(type=kind))
    assert make_plan(tensors, adapter, TypeOptions(type="COPY")).warnings == ()


def test_a_model_without_an_architecture_says_what_is_missing():
    with pytest.raises(UnsupportedModelError, match=r"general\.architecture is missing, and so block_count"):
        make_plan(SMALL, ModelShape("", None), TypeOptions(type="Q4_K_M"))
    assert make_plan(SMALL, ModelShape("", None), TypeOptions(type="Q6_K")).by_type["Q6_K"].tensors == 3


def test_as_dict_is_json():
    plan = small_plan()
    read = json.loads(json.dumps(plan.as_dict()))
    assert read["recipe"] == "Q4_HIFI"
    assert read["size_class"] == {"outliers": 8, "ffn_down_coverage": 0.5, "attn_v_coverage": 1.0}
    assert read["tensor_bytes"] == sum(t["bytes"] for t in read["tensors"])
    assert read["by_type"]["Q5_0"] == {"tensors": 1, "weights": 192, "bytes": 132}
    assert read["tensors"][3] == {
        "name": "blk.1.attn_q.weight",
        "role": "attn_q",
        "layer": 1,
        "shape": [96, 2],
        "source_type": "F16",
        "type": "Q5_0",
        "outliers": 0,
        "fallback_from": "Q4_K",
        "bytes": 132,
    }


def test_a_plan_of_nothing_is_empty():
    plan = small_plan([])
    assert (plan.tensor_bytes, plan.n_params, plan.bits_per_weight, plan.size_class) == (0, 0, 0, None)


def test_the_example_plans_as_llama_quantize_says():
    """3.53 and 3.40 MiB are what llama.cpp's tool says of the example's Q4_K_M and Q4_K_S."""
    reader = gguf.GGUFReader(HERE.parent / "examples" / "tiny-qwen3-f16.gguf")
    tensors = [
        StoredTensor(t.name, tuple(int(n) for n in t.shape), STORED_TYPES[t.tensor_type])
        for t in reader.tensors
    ]
    keys = ("general.architecture", "qwen3.block_count", "qwen3.attention.head_count")
    model = ModelShape.from_metadata({key: reader.fields[key].contents() for key in keys})
    for kind, published in (("Q4_K_M", "3.53"), ("Q4_K_S", "3.40"), ("Q8_0", "5.86"), ("Q6_K", "4.53")):
        plan = make_plan(tensors, model, TypeOptions(type=kind))
        assert f"{plan.tensor_bytes / MIB:.2f}" == published
    plan = make_plan(tensors, model, TypeOptions())
    assert [t.layer for t in plan.tensors if t.role == "ffn_down" and t.type == Q4_HIFI] == [0, 1, 2, 3]
