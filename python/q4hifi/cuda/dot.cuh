// The dot product of a share of weights with Q8_1 activations, and the outliers' part of it.
#pragma once

#include "activations.cuh"
#include "outliers.cuh"

// The activations that one block of 256 weights is multiplied by: 256 quants, 8 pairs of scales.
__device__ inline Activations of_block(const Activations &a, u64 block) {
    return {a.quants + block * K, a.scales + block * (K / Q8)};
}

// The activations that one share of weights is multiplied by, in the same order.
struct ActivationShare {
    int q[2][4];
    float2 scales[2];
};

template <class Type> __device__ ActivationShare load_activations(const Activations &block, int share) {
    ActivationShare activations;
    for (int group = 0; group < 2; ++group) {
        const int position = Type::position(share, group);
        const int4 q = __ldg(reinterpret_cast<const int4 *>(block.quants + position));
        activations.q[group][0] = q.x;
        activations.q[group][1] = q.y;
        activations.q[group][2] = q.z;
        activations.q[group][3] = q.w;
        activations.scales[group] = __ldg(block.scales + position / Q8);
    }
    return activations;
}

// The sum over the groups of scale · d · Σ q · q8 - min · (d · Σ q8). The inner sums are exact integers.
__device__ inline float dot(const Share &share, const ActivationShare &activations) {
    float result = 0.0f;
    for (int group = 0; group < 2; ++group) {
        int sum = 0;
        for (int i = 0; i < 4; ++i) {
            sum = __dp4a(share.q[group][i], activations.q[group][i], sum);
        }
        result += share.scale[group] * activations.scales[group].x * float(sum);
        result -= share.min[group] * activations.scales[group].y;
    }
    return result;
}

// The sum of residual · activation over a share's outliers. The activations are the quantized ones, d · q,
// as in the product with the base weights and as on the CPU (src/dot/scalar.rs).
template <int ROUNDS>
__device__ float correction(const Outlier (&outliers)[ROUNDS], const Activations &block) {
    float result = 0.0f;
    for (const Outlier &outlier : outliers) {
        const float d = __ldg(block.scales + outlier.index / Q8).x;
        result += outlier.residual * (d * float(__ldg(block.quants + outlier.index)));
    }
    return result;
}
