// The dot product of a share of weights with Q8_1 activations, and what the outliers add to it.
#pragma once

#include "activations.cuh"
#include "outliers.cuh"

// The activations of one block of 256: 256 numbers, 8 pairs of factors.
__device__ inline Activations of_block(const Activations &a, u64 block) {
    return {a.numbers + block * K, a.factors + block * (K / Q8)};
}

// The activations that a share is multiplied by.
struct Partner {
    int q[2][4];
    float2 factors[2];
};

template <class Type> __device__ Partner load_partner(const Activations &block, int share) {
    Partner partner;
    for (int group = 0; group < 2; ++group) {
        const int place = Type::place(share, group);
        const int4 q = __ldg(reinterpret_cast<const int4 *>(block.numbers + place));
        partner.q[group][0] = q.x;
        partner.q[group][1] = q.y;
        partner.q[group][2] = q.z;
        partner.q[group][3] = q.w;
        partner.factors[group] = __ldg(block.factors + place / Q8);
    }
    return partner;
}

// Σ over groups of scale · d · Σ q · q8 - min · (d · Σ q8): integers are exact, then f32.
__device__ inline float dot(const Share &share, const Partner &partner) {
    float result = 0.0f;
    for (int group = 0; group < 2; ++group) {
        int sum = 0;
        for (int i = 0; i < 4; ++i) {
            sum = __dp4a(share.q[group][i], partner.q[group][i], sum);
        }
        result += share.scale[group] * partner.factors[group].x * float(sum);
        result -= share.min[group] * partner.factors[group].y;
    }
    return result;
}

// Σ residual · activation over a share's outliers, the activations as the blocks stand for them, d · q: the
// same vector that the base is multiplied by, and the same as on the CPU (src/dot/scalar.rs).
template <int ROUNDS>
__device__ float correction(const Outlier (&outliers)[ROUNDS], const Activations &block) {
    float result = 0.0f;
    for (const Outlier &outlier : outliers) {
        const float d = __ldg(block.factors + outlier.place / Q8).x;
        result += outlier.residual * (d * float(__ldg(block.numbers + outlier.place)));
    }
    return result;
}
