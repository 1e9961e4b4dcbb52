// Activations as Q8_1: blocks of 32, x = d · q, q in -127..=127.
//
// As in ggml, but in two arrays, the numbers of all blocks and then their factors, so that both are read in
// whole words; and with d and d · Σ q as f32, which neither round nor overflow.
#pragma once

#include "words.cuh"

constexpr int Q8 = 32; // activations in a block

struct Activations {
    const s8 *numbers;     // [columns, row length]
    const float2 *factors; // [columns, row length / 32]: d, d · Σ q
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(Half x) { return half_to_float(x.bits); }

// One lane an activation, one warp a block. A NaN or an infinity makes the block's d NaN or infinite, and so
// every product with it NaN: magnitudes are compared as bits, of which a NaN has the most.
template <class In> __device__ void quantize_q8_1_block(const In *x, s8 *numbers, float2 *factors, int lane) {
    const float value = to_float(x[lane]);
    u32 bits = __float_as_uint(value) & 0x7fffffff;
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) {
        bits = max(bits, __shfl_xor_sync(ALL_LANES, bits, lanes));
    }
    const float magnitude = __uint_as_float(bits);
    const float inverse = magnitude == 0.0f ? 0.0f : 127.0f / magnitude;
    const s8 q = s8(__float2int_rn(value * inverse));
    int sum = q;
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) {
        sum += __shfl_xor_sync(ALL_LANES, sum, lanes);
    }
    numbers[lane] = q;
    if (lane == 0) {
        const float d = magnitude / 127.0f;
        *factors = make_float2(d, d * float(sum));
    }
}
