// Activations quantized to Q8_1: blocks of 32 values, x = d · q, with q in -127..=127.
//
// Differences from ggml's Q8_1: quants and scales are in two arrays, so that both are read in aligned
// words; d and d · Σ q are f32 instead of f16, so that they do not overflow.
#pragma once

#include "words.cuh"

constexpr int Q8 = 32; // activations per block

struct Activations {
    const s8 *quants;     // [columns, row length]
    const float2 *scales; // [columns, row length / 32]: the pair d, d · Σ q
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(Half x) { return half_to_float(x.bits); }

// Quantizes one block with one warp: each lane takes one activation.
//
// The maximum is taken over the magnitudes' bits as integers, where NaN is above infinity. So a NaN or an
// infinity in a block makes its d NaN or infinite, and every product with the block NaN.
template <class In> __device__ void quantize_q8_1_block(const In *x, s8 *quants, float2 *scales, int lane) {
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
    quants[lane] = q;
    if (lane == 0) {
        const float d = magnitude / 127.0f;
        *scales = make_float2(d, d * float(sum));
    }
}
