"""Names: roles, layers, which tensors are quantized, and the order of work."""

import pytest

from q4hifi.formats.tensor_names import (
    alike_layers,
    first_with_same_input,
    is_quantizable,
    layer_of,
    processing_order,
    role_of,
    split_at_layer,
)


@pytest.mark.parametrize(
    ("name", "role", "layer"),
    [
        ("token_embd.weight", "token_embd", None),
        ("per_layer_token_embd.weight", "token_embd", None),
        ("token_embd_norm.weight", "norm", None),
        ("output.weight", "output", None),
        ("output_norm.weight", "norm", None),
        ("lm_head.weight", "lm_head", None),
        ("blk.7.attn_v.weight", "attn_v", 7),
        ("blk.7.attn_v.bias", "bias", 7),
        ("blk.12.attn_qkv.weight", "attn_qkv", 12),
        ("blk.12.attn_kv_b.weight", "attn_kv_b", 12),
        ("blk.12.attn_k_b.weight", "other", 12),
        ("blk.0.attn_k.weight", "attn_k", 0),
        ("blk.0.attn_q.weight", "attn_q", 0),
        ("blk.0.attn_q_norm.weight", "norm", 0),
        ("blk.0.attn_output.weight", "attn_output", 0),
        ("blk.0.ffn_up_exps.weight", "ffn_up", 0),
        ("blk.0.ffn_gate_inp.weight", "router", 0),
        ("blk.0.ffn_gate_inp_shexp.weight", "router", 0),
        ("blk.0.ffn_gate_shexp.weight", "ffn_gate", 0),
        ("blk.103.ffn_down.5.weight", "ffn_down", 103),
        ("blk.3.ffn_down_exps.weight", "ffn_down", 3),
        ("dec.blk.3.cross_attn_v.weight", "attn_v", 3),
        ("v.blk.21.ffn_down.weight", "ffn_down", 21),
        ("blk.1.ssm_in.weight", "other", 1),
        ("rope_freqs.weight", "other", None),
        ("myblk.3.x", "other", None),
        ("blk.x.attn_v.weight", "attn_v", None),
    ],
)
def test_role_and_layer(name, role, layer):
    assert (role_of(name), layer_of(name)) == (role, layer)
    prefix, found, rest = split_at_layer(name)
    assert (name if found is None else f"{prefix}blk.{found}{rest}") == name


@pytest.mark.parametrize(
    ("size", "expected"),
    [(None, [0, None, None, None, None, None, 6]), (1, [0, 1, 2, 3, 4, 5, 6]), (2, [0, 1, 1, 3, 3, 5, 6])],
)
def test_the_first_and_the_last_layer_are_like_no_other(size: int | None, expected: list[int | None]) -> None:
    assert [alike_layers(layer, 7, size) for layer in range(7)] == expected


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blk.0.attn_q.weight", (256, 256), True),
        ("blk.0.ffn_down_exps.weight", (256, 256, 8), True),
        ("blk.0.attn_q.weight", (256,), False),
        ("blk.0.attn_q.weight", (256, 1), False),
        ("blk.0.attn_q.weight", (256, 1, 8), True),
        ("blk.0.attn_q.weight", (), False),
        ("blk.0.attn_q.bias", (256, 2), False),
        ("blk.0.ssm_a", (16, 512), False),
        ("blk.0.attn_norm.weight", (256, 2), False),
        ("blk.0.ffn_gate_inp.weight", (256, 8), False),
        ("blk.0.ffn_gate_inp_shexp.weight", (256, 8), True),
        ("position_embd.weight", (256, 64), False),
        ("token_types.weight", (256, 2), False),
        ("v.position_embd.weight", (256, 64), False),
        ("v.patch_embd.weight", (14, 14, 3, 256), False),
        ("blk.0.time_mix_w1.weight", (256, 64), False),
        ("blk.0.time_mix_key.weight", (256, 64), True),
        ("blk.0.hc_fn.weight", (256, 24), True),
        ("output.weight", (256, 32), True),
    ],
)
def test_is_quantizable(name, shape, expected):
    assert is_quantizable(name, shape, "llama") is expected


def test_one_matrix_stands_for_all_of_the_same_inputs():
    assert (
        first_with_same_input("blk.3.attn_v.weight")
        == first_with_same_input("blk.3.attn_q.weight")
        == "blk.3.attn_q.weight"
    )
    assert first_with_same_input("blk.0.ffn_up.weight") == "blk.0.ffn_gate.weight"
    assert first_with_same_input("blk.0.ffn_down.weight") == "blk.0.ffn_down.weight"


def test_is_quantizable_by_architecture_and_option():
    assert not is_quantizable("blk.0.hc_fn.weight", (256, 24), "glm5-next")
    assert not is_quantizable("output.weight", (256, 32), "llama", leave_output_tensor=True)
    assert is_quantizable("token_embd.weight", (256, 32), "llama", leave_output_tensor=True)


def test_processing_order_is_by_layer_number_then_name():
    names = ["blk.10.a", "blk.2.b", "v.blk.0.x", "blk.2.a", "token_embd.weight", "output.weight", "blk.0.z"]
    assert sorted(names, key=processing_order) == [
        *("output.weight", "token_embd.weight", "v.blk.0.x"),
        *("blk.0.z", "blk.2.a", "blk.2.b", "blk.10.a"),
    ]
