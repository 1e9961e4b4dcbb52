// Integer types, f16 conversions, loads and stores, which all other files here use.
//
// No CUDA header is included, so that NVRTC needs only this folder. The f16 conversions are PTX. A host
// compiler gets them, and everything else that is built into CUDA, from tests/cuda_emulation/emulation.hpp.
#pragma once

using u8 = unsigned char;
using s8 = signed char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

constexpr int WARP = 32;
constexpr u32 ALL_LANES = 0xffffffff;

// The bits of an f16.
struct Half {
    u16 bits;
};

#ifdef __CUDACC__
__device__ inline float half_to_float(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

// Rounds two floats to f16, to nearest with ties to even. `first` is in the low half of the result.
__device__ inline u32 floats_to_halves(float first, float second) {
#if __CUDA_ARCH__ >= 800
    u32 halves;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(halves) : "f"(second), "f"(first));
    return halves;
#else
    u16 low, high;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(low) : "f"(first));
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(high) : "f"(second));
    return low | u32(high) << 16;
#endif
}
#endif

__device__ inline float low_half(u32 halves) { return half_to_float(u16(halves)); }
__device__ inline float high_half(u32 halves) { return half_to_float(u16(halves >> 16)); }

// Load 4, 8 or 16 bytes through the read-only cache. The address is a multiple of ALIGN.
template <int ALIGN> __device__ inline u32 load_4(const u8 *p) {
    if constexpr (ALIGN >= 4) {
        return __ldg(reinterpret_cast<const u32 *>(p));
    } else {
        const u16 *halves = reinterpret_cast<const u16 *>(p);
        return __ldg(halves) | u32(__ldg(halves + 1)) << 16;
    }
}

template <int ALIGN> __device__ inline uint2 load_8(const u8 *p) {
    if constexpr (ALIGN >= 8) {
        return __ldg(reinterpret_cast<const uint2 *>(p));
    } else {
        return make_uint2(load_4<ALIGN>(p), load_4<ALIGN>(p + 4));
    }
}

template <int ALIGN> __device__ inline uint4 load_16(const u8 *p) {
    if constexpr (ALIGN >= 16) {
        return __ldg(reinterpret_cast<const uint4 *>(p));
    } else {
        const uint2 low = load_8<ALIGN>(p), high = load_8<ALIGN>(p + 8);
        return make_uint4(low.x, low.y, high.x, high.y);
    }
}

// Store eight consecutive weights. The address is a multiple of 16.
__device__ inline void store_8(float *out, const float (&w)[8]) {
    reinterpret_cast<float4 *>(out)[0] = make_float4(w[0], w[1], w[2], w[3]);
    reinterpret_cast<float4 *>(out)[1] = make_float4(w[4], w[5], w[6], w[7]);
}

__device__ inline void store_8(Half *out, const float (&w)[8]) {
    *reinterpret_cast<uint4 *>(out) = make_uint4(floats_to_halves(w[0], w[1]), floats_to_halves(w[2], w[3]),
                                                 floats_to_halves(w[4], w[5]), floats_to_halves(w[6], w[7]));
}

// Returns the sum over the lanes of a warp, in every lane.
__device__ inline float warp_sum(float value) {
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, lanes);
    }
    return value;
}
