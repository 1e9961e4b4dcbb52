"""Recipes: the decisions of Q4_HIFI, and what options are refused."""

import pytest

from described_models import MODELS, expand
from q4hifi.errors import BadOptionError, UnsupportedModelError
from q4hifi.formats.layout import StoredTensor
from q4hifi.formats.types import F16, F32, Q4_HIFI, TYPES
from q4hifi.plan.model_shape import ModelShape
from q4hifi.plan.options import TypeOptions
from q4hifi.plan.recipes import RECIPES, find_recipe
from q4hifi.plan.tensor_type_rules import parse_tensor_type, read_tensor_type_file
from q4hifi.plan.type_rules import Choice, choose_types, open_tensors


def recorded_model(name):
    """The tensors of a described model, in its file's order, and its shape."""
    described = MODELS[name]
    tensors = [
        StoredTensor(tensor, shape, TYPES[kind])
        for tensor, (kind, shape) in expand(described["tensors"]).items()
    ]
    return tensors, ModelShape.from_metadata(described["metadata"])


# --- Q4_HIFI -------------------------------------------------------------------------------------


def choose(model, **options):
    """Name -> choice for a recorded model."""
    tensors, shape = recorded_model(model)
    choices = choose_types(tensors, shape, TypeOptions(**options))
    return {t.name: c for t, c in zip(tensors, choices, strict=True)}


def layers_with(choices, part, kind=Q4_HIFI):
    return sorted(int(n.split(".")[1]) for n, c in choices.items() if part in n and c.type == kind)


def test_hifi_covers_attn_v_and_the_first_half_of_ffn_down():
    choices = choose("qwen3")
    assert layers_with(choices, "attn_v.weight") == list(range(28))
    assert layers_with(choices, "ffn_down") == list(range(14))
    assert choices["blk.0.attn_v.weight"] == Choice(Q4_HIFI, 8)
    assert choices["output.weight"] == Choice(TYPES["Q6_K"])
    assert choices["token_embd.weight"] == choices["blk.27.ffn_down.weight"] == Choice(TYPES["Q4_K"])
    assert choices["blk.0.attn_norm.weight"] == Choice(F32)


@pytest.mark.parametrize(
    ("coverage", "n"),
    [(0, 0), (0.25, 20), (0.26, 20), (0.29, 23), (0.3, 24), (0.7, 56), (1.0, 80)],
)
def test_ffn_down_coverage_is_the_first_layers_rounded_down(coverage, n):
    assert layers_with(choose("llama-80", ffn_down_coverage=coverage), "ffn_down") == list(range(n))


def test_coverage_of_29_percent_of_100_layers_is_29():
    tensors = [StoredTensor(f"blk.{i}.ffn_down.weight", (256, 2), F16) for i in range(100)]
    choices = choose_types(tensors, ModelShape("llama", 100), TypeOptions(ffn_down_coverage=0.29))
    assert sum(c.type == Q4_HIFI for c in choices) == 29


def test_minimal_covers_the_first_quarter_of_attn_v_only():
    tensors = [StoredTensor("token_embd.weight", (256, 400_000_000), F16)]
    for i in range(10):
        tensors += [StoredTensor(f"blk.{i}.{part}.weight", (256, 2), F16) for part in ("attn_v", "ffn_down")]
    choices = choose_types(tensors, ModelShape("llama", 10), TypeOptions(minimal=True))
    covered = [t.name for t, c in zip(tensors, choices, strict=True) if c == Choice(Q4_HIFI, 16)]
    assert covered == ["blk.0.attn_v.weight", "blk.1.attn_v.weight"]


def test_hifi_covers_experts_fused_and_compressed_values():
    assert layers_with(choose("mixtral"), "ffn_down_exps") == list(range(16))
    assert layers_with(choose("phi3"), "attn_qkv") == list(range(32))
    assert layers_with(choose("deepseek2-lite"), "attn_kv_b") == list(range(27))


def test_full_coverage_takes_tensors_without_a_layer():
    tensors = [StoredTensor(f"mm.{part}.weight", (256, 2), F16) for part in ("attn_v", "ffn_down")]
    choices = choose_types(tensors, ModelShape("llama", 4), TypeOptions())
    assert [c.type.name for c in choices] == ["Q4_HIFI", "Q4_K"]


def test_hifi_of_a_tied_model_gives_the_embeddings_the_outputs_type():
    assert choose("qwen3-tied")["token_embd.weight"] == Choice(TYPES["Q6_K"])
    assert choose("qwen3-tied", output_tensor_type="q8_0")["token_embd.weight"] == Choice(TYPES["Q8_0"])


def test_hifi_where_rows_do_not_fit_falls_back_as_q4_k():
    choices = choose("odd-rows")  # rows of 320, and of 848 in ffn_down
    assert choices["blk.0.attn_v.weight"] == Choice(TYPES["Q5_0"], fallback_from=Q4_HIFI)
    assert choices["blk.0.attn_q.weight"] == Choice(TYPES["Q5_0"], fallback_from=TYPES["Q4_K"])
    assert choices["blk.0.ffn_down.weight"] == Choice(F16, fallback_from=Q4_HIFI)
    assert choices["output.weight"] == Choice(TYPES["Q8_0"], fallback_from=TYPES["Q6_K"])


def test_hifi_without_outliers_is_q4_k():
    choices = choose("qwen3", outliers=0)
    assert choices["blk.0.attn_v.weight"] == Choice(TYPES["Q4_K"])
    assert not layers_with(choices, "blk")


@pytest.mark.parametrize(("outliers", "massive"), [(5, 10), (16, 32), (20, 32), (32, 32)])
def test_massive_tensors_take_twice_the_outliers_up_to_32(outliers, massive):
    types = (("token_embd|output.weight", "q4_hifi"),)
    choices = choose("qwen3", type="Q4_K_M", outliers=outliers, tensor_types=types)
    assert choices["token_embd.weight"] == choices["output.weight"] == Choice(Q4_HIFI, massive)
    assert choices["blk.0.attn_output.weight"] == Choice(Q4_HIFI, outliers)


def test_pure_hifi_is_hifi_everywhere():
    choices = choose("qwen3", pure=True)
    assert choices["blk.27.ffn_up.weight"] == Choice(Q4_HIFI, 8)
    assert choices["token_embd.weight"] == choices["output.weight"] == Choice(Q4_HIFI, 16)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_types_of_single_weights_take_no_other_override(kind):
    # llama-quantize ignores --tensor-type here; only Q4_HIFI, which it does not have, is possible
    rules = (("attn_q", "q8_0"), ("attn", "q4_hifi"))
    choices = choose("qwen3", type=kind, tensor_types=rules)
    assert choices["blk.3.attn_q.weight"] == Choice(TYPES[kind])
    assert choices["blk.3.attn_v.weight"] == Choice(Q4_HIFI, 8)


@pytest.mark.parametrize("kind", [name for name in RECIPES if name != "COPY"])
def test_every_recipe_takes_a_hifi_override(kind):
    choices = choose("qwen3", type=kind, tensor_types=((r"blk\.3\.attn_q\b", "Q4_HIFI"),))
    assert choices["blk.3.attn_q.weight"] == Choice(Q4_HIFI, 8)


@pytest.mark.parametrize("option", ["output_tensor_type", "token_embedding_type"])
@pytest.mark.parametrize("kind", ["q5_k", "q4_hifi", "mxfp4"])
def test_an_option_for_one_matrix_never_falls_back(option, kind):
    # llama-quantize aborts here
    tensors = [StoredTensor(f"{name}.weight", (336, 8), F16) for name in ("output", "token_embd")]
    with pytest.raises(BadOptionError, match=rf"has rows of 336 weights.*such as .*, with `{option}`"):
        choose_types(tensors, ModelShape("llama", 1), TypeOptions("Q4_K_M", **{option: kind}))


def test_the_type_of_the_output_falls_back_in_tied_embeddings():
    choices = choose("falcon-tied-odd", type="Q4_K_M", output_tensor_type="q5_k")
    assert choices["token_embd.weight"] == Choice(TYPES["Q5_1"], fallback_from=TYPES["Q5_K"])


@pytest.mark.parametrize(("model", "open_names"), [("qwen3-tied", set()), ("qwen3", {"token_embd.weight"})])
def test_errors_do_not_decide_a_type_that_an_option_names(model, open_names):
    tensors, shape = recorded_model(model)
    found = open_tensors(tensors, shape, TypeOptions(like="Q4_K_M", output_tensor_type="q6_k"))
    assert {name for name in found if not name.startswith("blk.")} == open_names


@pytest.mark.parametrize(
    ("part", "kind", "fallback"),
    [("ffn_down", "MXFP4", "F16"), ("ffn_down", "IQ2_S", "F16"), ("attn_q", "IQ2_S", "IQ4_NL")],
)
def test_types_that_cannot_be_encoded_fall_back_too(part, kind, fallback):
    choices = choose("odd-rows", type="Q4_K_M", tensor_types=((part, kind),))  # rows of 320, or of 848
    assert choices[f"blk.0.{part}.weight"] == Choice(TYPES[fallback], fallback_from=TYPES[kind])


def test_types_without_a_fallback_are_refused():
    with pytest.raises(BadOptionError, match=r"has rows of 848 weights, and NVFP4 has blocks of 64"):
        choose("odd-rows", type="Q4_K_M", tensor_types=(("ffn_down", "NVFP4"),))


def test_iq4_xs_falls_back_to_iq4_nl():
    choices = choose("odd-rows", type="IQ4_XS")
    assert choices["blk.0.attn_q.weight"] == Choice(TYPES["IQ4_NL"], fallback_from=TYPES["IQ4_XS"])
    assert choices["blk.0.ffn_down.weight"] == Choice(F16, fallback_from=TYPES["IQ4_XS"])


def test_no_fallback_refuses_and_names_the_tensors():
    with pytest.raises(UnsupportedModelError, match=r"72 tensors.*rows of 320.*multiple of 256.*69 more"):
        choose("odd-rows", type="Q4_K_M", no_fallback=True)
    assert choose("qwen3", no_fallback=True) == choose("qwen3")


# --- names of recipes, options, model ------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("q4_hifi", "Q4_HIFI"),
        (" Q4_k_M ", "Q4_K_M"),
        ("Q4_K", "Q4_K_M"),
        ("q3_k", "Q3_K_M"),
        ("q5_k", "Q5_K_M"),
        ("14", "Q4_K_S"),
        ("15", "Q4_K_M"),
        ("0", "F32"),
        ("1", "F16"),
        ("32", "BF16"),
        ("copy", "COPY"),
    ],
)
def test_find_recipe(text, name):
    assert find_recipe(text).name == name


@pytest.mark.parametrize("text", ["", "Q3_K_XL", "99", "-1", "Q4"])
def test_find_recipe_lists_the_choices(text):
    with pytest.raises(BadOptionError, match=r"choose one of Q4_HIFI, Q4_K_S, .*COPY"):
        find_recipe(text)


def test_parse_tensor_type():
    assert parse_tensor_type("ATTN_V=Q6_K") == ("attn_v", "Q6_K")
    for bad in ("attn_v", "=q8_0", "attn_v=", ""):
        with pytest.raises(BadOptionError, match="REGEX=TYPE"):
            parse_tensor_type(bad)


def test_tensor_type_file(tmp_path):
    path = tmp_path / "types.txt"
    path.write_text("attn_v=q6_k ffn_down=q8_0\n\n\tOutput=f16\n")
    assert read_tensor_type_file(path) == (("attn_v", "q6_k"), ("ffn_down", "q8_0"), ("output", "f16"))
    path.write_text("attn_v=q6_k\n# a comment\n")
    with pytest.raises(BadOptionError, match=r"types\.txt.*'#'"):
        read_tensor_type_file(path)
    path.write_bytes(b"\xff\xfe=\n")
    with pytest.raises(BadOptionError, match=r"types\.txt"):
        read_tensor_type_file(path)
    with pytest.raises(BadOptionError, match="No such file"):
        read_tensor_type_file(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "Q9"}, "unknown type 'Q9'"),
        ({"layout": "zip"}, "unknown layout 'zip'"),
        ({"outliers": -1}, "0 to 32"),
        ({"outliers": 33}, "0 to 32"),
        ({"outliers": 2.5}, "`outliers` is 2.5; give a whole number"),
        ({"ffn_down_coverage": -0.1}, "0 to 1"),
        ({"ffn_down_coverage": 1.5}, "0 to 1"),
        ({"ffn_down_coverage": float("nan")}, "0 to 1"),
        ({"tensor_types": (("attn_v", "Q9"),)}, "unknown tensor type 'Q9'"),
        ({"tensor_types": (("(", "Q8_0"),)}, r"'\(' is no regular expression"),
        ({"output_tensor_type": "x"}, "unknown tensor type 'x'"),
        ({"token_embedding_type": ""}, "unknown tensor type ''"),
        ({"type": "COPY", "output_tensor_type": "Q8_0"}, "COPY changes no tensor"),
        ({"type": "Q4_K_M", "minimal": True}, "for type Q4_HIFI, not Q4_K_M"),
        ({"type": "Q4_K_M", "ffn_down_coverage": 0.5}, "for type Q4_HIFI, not Q4_K_M"),
        ({"type": "Q4_K_M", "outliers": 8}, "makes no such tensor"),
    ],
)
def test_options_refuse(fields, message):
    with pytest.raises(BadOptionError, match=message):
        TypeOptions(**fields)


def test_model_shape_reads_lists_and_defaults():
    metadata = {
        "general.architecture": "deci",
        "deci.block_count": 80,
        "deci.attention.head_count": [64, 0],
        "deci.attention.head_count_kv": [8, 0],
    }
    assert ModelShape.from_metadata(metadata) == ModelShape("deci", 80, 64, 8, 0)
    del metadata["deci.attention.head_count_kv"]
    assert ModelShape.from_metadata(metadata).n_head_kv == 64
    assert ModelShape.from_metadata({"general.architecture": "clip"}).n_layer == 0


def test_counts_of_an_encoder_decide_nothing():
    counts = {"block_count": 16, "expert_count": 8, "attention.head_count": 8, "attention.head_count_kv": 1}
    metadata = {"general.architecture": "clip"} | {f"clip.{key}": value for key, value in counts.items()}
    assert ModelShape.from_metadata(metadata) == ModelShape("clip", 0)


@pytest.mark.parametrize("kind", ["Q2_K", "Q4_0", "Q4_K_M", "Q6_K"])
def test_muse_spark_has_matrices_in_q8_0_in_every_mix(kind):
    parts = ("attn_gate", "ffn_latent_down", "ffn_latent_up", "attn_q")
    tensors = [StoredTensor(f"blk.0.{part}.weight", (256, 8), F16) for part in parts]
    choices = choose_types(tensors, ModelShape("muse-spark", 4), TypeOptions(kind))
    assert [c.type.name for c in choices] == ["Q8_0"] * 3 + [find_recipe(kind).default.name]


@pytest.mark.parametrize("value", ["many", 2.0, float("inf"), [], [2], True, -1, 1 << 32])
def test_a_number_of_layers_that_is_none_is_a_fault(value):
    model = ModelShape.from_metadata({"general.architecture": "llama", "llama.block_count": value})
    assert model.n_layer is None
    assert f"llama.block_count is {value!r}" in model.fault
    with pytest.raises(UnsupportedModelError, match=r"llama\.block_count is .*`pure=True` or F16"):
        choose_types([], model, TypeOptions(type="Q4_K_M"))
    assert choose_types([], model, TypeOptions(type="F16")) == []


@pytest.mark.parametrize("key", ["attention.head_count", "attention.head_count_kv", "expert_count"])
@pytest.mark.parametrize("value", ["8", 8.0, ["8"], [[8]], -1, False])
def test_other_numbers_that_are_none_are_faults(key, value):
    metadata = {"general.architecture": "llama", "llama.block_count": 2, f"llama.{key}": value}
    model = ModelShape.from_metadata(metadata)
    assert model.fault.startswith(f"llama.{key} is ")
    with pytest.raises(UnsupportedModelError, match=key):
        choose_types([], model, TypeOptions(type="Q8_0"))


@pytest.mark.parametrize("architecture", [None, 3, ["llama"]])
def test_a_model_need_not_have_an_architecture(architecture):
    model = ModelShape.from_metadata({"general.architecture": architecture, "llama.block_count": 2})
    assert model == ModelShape("", None)


def test_an_adapter_is_known_by_its_type():
    assert ModelShape.from_metadata({"general.type": "adapter"}).adapter
    assert not ModelShape.from_metadata({"general.type": "model"}).adapter


@pytest.mark.parametrize("has_imatrix", [False, True])
@pytest.mark.parametrize("name", RECIPES)
def test_recipes_that_choose_by_layer_need_their_number(name, has_imatrix):
    """What a recipe gives depends on the number of layers just where it says so."""
    tensors = [
        StoredTensor(f"blk.{i}.{part}.weight", (256, 8), F16)
        for i in range(16)
        for part in ("ffn_down", "attn_v", "attn_output")
    ]

    def types(n_layer):
        return choose_types(
            tensors, ModelShape("llama", n_layer), TypeOptions(type=name), has_imatrix=has_imatrix
        )

    if RECIPES[name].chooses_by_layer(has_imatrix):
        with pytest.raises(UnsupportedModelError, match=f"llama.block_count is missing, {name} chooses by"):
            types(None)
        assert choose_types(tensors, ModelShape("llama", None), TypeOptions(type=name, pure=True))
    else:
        assert types(None) == types(16) == types(64)
