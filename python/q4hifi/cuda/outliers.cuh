// Q4_HIFI: Q4_K blocks with a few weights ("outliers") of each block in f16.
//
// A type with outliers has functions for a block's number of outliers, their indices in the block, and their
// weights. For dot products, the outliers of a block are divided among its shares: share s takes outliers s,
// s + 8, s + 16 and so on, and keeps them in its Raw. They are loaded together with the share's quants, so
// that there is no second wait for memory.
#pragma once

#include "blocks.cuh"

struct Outlier {
    int index; // in the block
    float residual; // 0 where there is none
};

// The split layout: indices and residuals are in separate tensors. ROUNDS is the number of outliers per
// block divided by 8, rounded up.
template <int ROUNDS_> struct Q4_HIFI : Q4_K {
    static constexpr bool OUTLIERS = true;
    static constexpr int ROUNDS = ROUNDS_;

    struct Raw {
        Q4_K::Raw base;
        Outlier outlier[ROUNDS];
    };

    __device__ static int count(const Tensor &t, u64) { return t.outliers; }

    __device__ static int outlier_index(const Tensor &t, u64 block, int k) {
        return __ldg(t.index + block * t.outliers + k);
    }

    // The weight of outlier k; `base` is the Q4_K weight at its index.
    __device__ static float weight(const Tensor &t, u64 block, int k, float base) {
        return base + half_to_float(__ldg(t.residual + block * t.outliers + k));
    }

    __device__ static Raw load(const Tensor &t, u64 block, int share) {
        Raw raw{Q4_K::load(t, block, share), {}};
        for (int i = 0; i < ROUNDS; ++i) {
            const int k = share + i * SHARES;
            if (k < t.outliers) {
                raw.outlier[i] = {outlier_index(t, block, k), weight(t, block, k, 0.0f)};
            }
        }
        return raw;
    }

    __device__ static Share unpack(const Raw &raw, int share) { return Q4_K::unpack(raw.base, share); }
};

// The fork layout: blocks of 244 bytes. These are the 144 bytes of Q4_K, 32 indices, 32 weights in f16, the
// number of outliers, and three zeros. The f16 weights replace those of Q4_K.
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

    __device__ static int outlier_index(const Tensor &t, u64 block, int k) {
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
                const int index = outlier_index(t, block, k);
                const float base = Base::value(bytes(t, block), index);
                raw.outlier[i] = {index, weight(t, block, k, 0.0f) - base};
            }
        }
        return raw;
    }

    __device__ static Share unpack(const Raw &raw, int share) { return Base::unpack(raw.base, share); }
};
