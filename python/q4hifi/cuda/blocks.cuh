// The tensor types: how a block's bytes become quants and weights. Layouts are ggml's, except for Q6_K.
//
// Each type can be read in two ways:
//
//   dequantize   gives eight consecutive weights. Neighbouring lanes read and write neighbouring bytes.
//   load, unpack give a *share*, 32 of a block's 256 weights, for dot products. `load` reads the low bits of
//                the quants, sixteen bytes, at once. `unpack` makes signed bytes of them, four per word, as
//                the instruction dp4a takes them. They are two functions, so that the loads of several rows
//                are in flight before the first is needed.
//
// The results do not depend on fused multiply-add: scale · q has at most 24 bits, so it is exact.
#pragma once

#include "words.cuh"

constexpr int K = 256;      // weights per block of a K-quant
constexpr int SHARES = 8;   // shares per block

// The blocks of a whole tensor, row after row. The addresses are multiples of 16.
struct Tensor {
    const u8 *data;
    u64 blocks;
    const u8 *index;     // Q4_HIFI in the split layout: indices of the outliers, `outliers` per block
    const u16 *residual; // the f16 to add to the weights at these indices
    int outliers;
};

// Two groups of sixteen consecutive weights, w = scale · q - min. A sub-block of 32 weights is spread over
// two shares. One of them has its min, for all 32 weights; the other has 0.
struct Share {
    int q[2][4];
    float scale[2];
    float min[2];
};

__device__ inline float times(float scale, u32 quant) { return scale * float(quant); }

// Q8_0: w = d · q. 34 bytes for 32 weights: f16 d, then 32 signed quants of eight bits.
struct Q8_0 {
    static constexpr int WEIGHTS = 32;
    static constexpr bool OUTLIERS = false;

    __device__ static void dequantize(const Tensor &t, u64 group, float (&w)[8]) {
        const u8 *block = t.data + group / 4 * 34;
        const float d = half_to_float(__ldg(reinterpret_cast<const u16 *>(block)));
        const uint2 q = load_8<2>(block + 2 + group % 4 * 8);
        for (int i = 0; i < 4; ++i) {
            w[i] = float(s8(q.x >> 8 * i)) * d;
            w[i + 4] = float(s8(q.y >> 8 * i)) * d;
        }
    }
};

// Q4_K and Q5_K: eight sub-blocks of 32 weights, w = d · scale · q - dmin · min, with q of four or five bits.
//
// A block has a header of 16 bytes: f16 d, f16 dmin, twelve bytes with scales and mins of six bits. In Q5_K
// 32 bytes with the fifth bits of the quants follow. Then come 128 bytes with the low four bits: byte 32 j
// + i has quant i of sub-block 2 j in its low half, and quant i of sub-block 2 j + 1 in its high half. Bit
// j of byte i of the fifth bits belongs to quant i of sub-block j.
template <int BITS, int STRIDE, int ALIGN> struct WithMin {
    static constexpr int WEIGHTS = K;
    static constexpr bool OUTLIERS = false;
    static constexpr int HIGH = 16, LOW = BITS == 5 ? 48 : 16;

    // Share 2 j + h has bytes 16 h to 16 h + 15 of the low bits of sub-blocks 2 j and 2 j + 1.
    struct Raw {
        uint4 header, low, high;
    };

    __device__ static Raw load(const Tensor &t, u64 block, int share) {
        const u8 *p = t.data + block * STRIDE;
        Raw raw{load_16<ALIGN>(p), load_16<ALIGN>(p + LOW + 16 * share), {}};
        if constexpr (BITS == 5) {
            raw.high = load_16<ALIGN>(p + HIGH + 16 * (share % 2));
        }
        return raw;
    }

    // The position in a block of the first weight of a share's group.
    __device__ static int position(int share, int group) {
        return share / 2 * 64 + group * 32 + share % 2 * 16;
    }

    __device__ static Share unpack(const Raw &raw, int share) {
        Share s;
        const int pair = share / 2;
        const u32 scales = packed_scales(raw.header, pair), mins = packed_mins(raw.header, pair);
        const float d = low_half(raw.header.x);
        const float dmin = share % 2 == 0 ? high_half(raw.header.x) : 0.0f;
        const u32 low[4] = {raw.low.x, raw.low.y, raw.low.z, raw.low.w};
        const u32 high[4] = {raw.high.x, raw.high.y, raw.high.z, raw.high.w};
        for (int group = 0; group < 2; ++group) {
            for (int i = 0; i < 4; ++i) {
                s.q[group][i] = low[i] >> 4 * group & 0x0f0f0f0f;
                if constexpr (BITS == 5) {
                    s.q[group][i] |= (high[i] >> (2 * pair + group) & 0x01010101) << 4;
                }
            }
            const int shift = pair % 2 * 16 + group * 8;
            s.scale[group] = times(d, scales >> shift & 0xff);
            s.min[group] = times(dmin, mins >> shift & 0xff);
        }
        return s;
    }

    __device__ static void dequantize(const Tensor &t, u64 group, float (&w)[8]) {
        const u8 *p = t.data + group / 32 * STRIDE;
        const int eight = group % 32, sub = eight / 4, byte = eight % 4 * 8;
        const uint4 header = load_16<ALIGN>(p);
        const int shift = sub % 4 * 8;
        const float scale = times(low_half(header.x), packed_scales(header, sub / 2) >> shift & 0xff);
        const float min = times(high_half(header.x), packed_mins(header, sub / 2) >> shift & 0xff);
        const uint2 low = load_8<ALIGN>(p + LOW + sub / 2 * 32 + byte);
        u32 q[2] = {low.x >> sub % 2 * 4 & 0x0f0f0f0f, low.y >> sub % 2 * 4 & 0x0f0f0f0f};
        if constexpr (BITS == 5) {
            const uint2 high = load_8<ALIGN>(p + HIGH + byte);
            q[0] |= (high.x >> sub & 0x01010101) << 4;
            q[1] |= (high.y >> sub & 0x01010101) << 4;
        }
        for (int i = 0; i < 8; ++i) {
            w[i] = times(scale, q[i / 4] >> i % 4 * 8 & 0xff) - min;
        }
    }

    // The weight at `position` in a block.
    __device__ static float value(const u8 *block, int position) {
        static_assert(BITS == 4);
        const int sub = position / 32, shift = sub % 4 * 8;
        const uint4 header = load_16<ALIGN>(block);
        const float scale = times(low_half(header.x), packed_scales(header, sub / 2) >> shift & 0xff);
        const float min = times(high_half(header.x), packed_mins(header, sub / 2) >> shift & 0xff);
        const u8 quants = __ldg(block + LOW + position / 64 * 32 + position % 32);
        return times(scale, quants >> sub % 2 * 4 & 0x0f) - min;
    }

private:
    // The scales (or mins) of four sub-blocks, one per byte: 0 to 3 for pairs 0 and 1, 4 to 7 for pairs 2
    // and 3. Those of 4 to 7 have their low four bits in the last word of the header. Their two high bits
    // are above the six bits of sub-blocks 0 to 3.
    __device__ static u32 packed_scales(const uint4 &header, int pair) {
        return pair < 2 ? header.y & 0x3f3f3f3f : (header.w & 0x0f0f0f0f) | (header.y >> 2 & 0x30303030);
    }
    __device__ static u32 packed_mins(const uint4 &header, int pair) {
        return pair < 2 ? header.z & 0x3f3f3f3f : (header.w >> 4 & 0x0f0f0f0f) | (header.z >> 2 & 0x30303030);
    }
};

using Q4_K = WithMin<4, 144, 16>;
using Q5_K = WithMin<5, 176, 16>;

// Q6_K: sixteen sub-blocks of 16 weights, w = d · scale · (q - 32), with q of six bits.
//
// Blocks of 210 bytes would not be aligned. Therefore `upload` separates their parts, and stores each part
// of all blocks together: 128 bytes of low four bits per block, then 64 bytes of high two bits per block,
// then 16 signed scales per block, then f16 d. In each half of a block, byte i of its 64 low bytes has
// quants i and i + 64, and byte i of its 32 high bytes has quants i, i + 32, i + 64 and i + 96.
struct Q6_K {
    static constexpr int WEIGHTS = K;
    static constexpr bool OUTLIERS = false;

    // Share 4 n + c has bytes 16 c to 16 c + 15 of the low bits of half n.
    struct Raw {
        uint4 low, high;
        s8 scale[2];
        u16 d;
    };

    __device__ static const u8 *low(const Tensor &t, u64 block) { return t.data + block * 128; }
    __device__ static const u8 *high(const Tensor &t, u64 block) {
        return t.data + t.blocks * 128 + block * 64;
    }
    __device__ static const u8 *scales(const Tensor &t, u64 block) {
        return t.data + t.blocks * 192 + block * 16;
    }
    __device__ static u16 d(const Tensor &t, u64 block) {
        return __ldg(reinterpret_cast<const u16 *>(t.data + t.blocks * 208) + block);
    }

    __device__ static Raw load(const Tensor &t, u64 block, int share) {
        const u8 *scale = scales(t, block) + position(share, 0) / 16;
        return {load_16<16>(low(t, block) + 16 * share),
                load_16<16>(high(t, block) + share / 4 * 32 + share % 2 * 16),
                {s8(__ldg(scale)), s8(__ldg(scale + 4))},
                d(t, block)};
    }

    __device__ static int position(int share, int group) {
        return share / 4 * 128 + group * 64 + share % 4 * 16;
    }

    __device__ static Share unpack(const Raw &raw, int share) {
        Share s;
        const u32 low[4] = {raw.low.x, raw.low.y, raw.low.z, raw.low.w};
        const u32 high[4] = {raw.high.x, raw.high.y, raw.high.z, raw.high.w};
        for (int group = 0; group < 2; ++group) {
            const int shift = group * 4 + share % 4 / 2 * 2;
            for (int i = 0; i < 4; ++i) {
                s.q[group][i] = centred(low[i] >> 4 * group & 0x0f0f0f0f, high[i] >> shift & 0x03030303);
            }
            s.scale[group] = half_to_float(raw.d) * float(raw.scale[group]);
            s.min[group] = 0.0f;
        }
        return s;
    }

    __device__ static void dequantize(const Tensor &t, u64 group, float (&w)[8]) {
        const u64 block = group / 32;
        const int eight = group % 32, half = eight / 16, quarter = eight / 4 % 4, byte = eight % 4 * 8;
        const uint2 l = load_8<8>(low(t, block) + half * 64 + quarter % 2 * 32 + byte);
        const uint2 h = load_8<8>(high(t, block) + half * 32 + byte);
        const float scale = half_to_float(d(t, block)) * float(s8(__ldg(scales(t, block) + eight / 2)));
        const int shift = quarter / 2 * 4;
        const u32 q[2] = {centred(l.x >> shift & 0x0f0f0f0f, h.x >> 2 * quarter & 0x03030303),
                          centred(l.y >> shift & 0x0f0f0f0f, h.y >> 2 * quarter & 0x03030303)};
        for (int i = 0; i < 8; ++i) {
            w[i] = scale * float(s8(q[i / 4] >> i % 4 * 8));
        }
    }

private:
    // q - 32 as a signed byte, in each of four bytes. Adding 96 carries into no other byte; flipping the
    // sign bit subtracts 128.
    __device__ static u32 centred(u32 low, u32 high) { return ((low | high << 4) + 0x60606060) ^ 0x80808080; }
};
