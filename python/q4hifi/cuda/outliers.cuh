// Q4_HIFI: Q4_K blocks, and a few weights of each kept in f16.
//
// A type with outliers says how many a block has, where, and what the weight there is; and, for dot products,
// holds in its Raw the outliers that one share answers for: the share's number, and every eighth from there.
// They are loaded together with the share's numbers, so they cost no wait of their own.
#pragma once

#include "blocks.cuh"

struct Outlier {
    int place;
    float residual; // 0 where there is none
};

// The split layout: places and residuals lie beside the blocks. ROUNDS = outliers a block / 8, rounded up.
template <int ROUNDS_> struct Q4_HIFI : Q4_K {
    static constexpr bool OUTLIERS = true;
    static constexpr int ROUNDS = ROUNDS_;

    struct Raw {
        Q4_K::Raw base;
        Outlier outlier[ROUNDS];
    };

    __device__ static int count(const Tensor &t, u64) { return t.outliers; }

    __device__ static int outlier_place(const Tensor &t, u64 block, int k) {
        return __ldg(t.index + block * t.outliers + k);
    }

    // The weight of outlier k, whose base is given.
    __device__ static float weight(const Tensor &t, u64 block, int k, float base) {
        return base + half_to_float(__ldg(t.residual + block * t.outliers + k));
    }

    __device__ static Raw load(const Tensor &t, u64 block, int share) {
        Raw raw{Q4_K::load(t, block, share), {}};
        for (int i = 0; i < ROUNDS; ++i) {
            const int k = share + i * SHARES;
            if (k < t.outliers) {
                raw.outlier[i] = {outlier_place(t, block, k), weight(t, block, k, 0.0f)};
            }
        }
        return raw;
    }

    __device__ static Share unpack(const Raw &raw, int share) { return Q4_K::unpack(raw.base, share); }
};

// The fork layout: blocks of 244 bytes, which are the 144 of Q4_K, then 32 places, 32 weights in f16, their
// count and three zeros. A weight replaces the base's.
struct Q4_HIFI_FORK : WithMin<4, 244, 4> {
    using Base = WithMin<4, 244, 4>;
    static constexpr bool OUTLIERS = true;
    static constexpr int ROUNDS = 4, INDEX = 144, VALUE = 176, COUNT = 240;

    struct Raw {
        Base::Raw base;
        Outlier outlier[ROUNDS];
    };

    __device__ static const u8 *bytes(const Tensor &t, u64 block) { return t.data + block * 244; }

    __device__ static int count(const Tensor &t, u64 block) {
        return min(int(__ldg(bytes(t, block) + COUNT)), 32);
    }

    __device__ static int outlier_place(const Tensor &t, u64 block, int k) {
        return __ldg(bytes(t, block) + INDEX + k);
    }

    __device__ static float weight(const Tensor &t, u64 block, int k, float) {
        return half_to_float(__ldg(reinterpret_cast<const u16 *>(bytes(t, block) + VALUE) + k));
    }

    __device__ static Raw load(const Tensor &t, u64 block, int share) {
        Raw raw{Base::load(t, block, share), {}};
        for (int i = 0; i < ROUNDS; ++i) {
            const int k = share + i * SHARES;
            if (k < count(t, block)) {
                const int place = outlier_place(t, block, k);
                raw.outlier[i] = {place, weight(t, block, k, 0.0f) - Base::value(bytes(t, block), place)};
            }
        }
        return raw;
    }

    __device__ static Share unpack(const Raw &raw, int share) { return Base::unpack(raw.base, share); }
};
