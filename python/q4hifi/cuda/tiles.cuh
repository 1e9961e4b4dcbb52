// Tensor cores: tiles of f16 in shared memory, and the product of two tiles.
#pragma once

#include "words.cuh"

#ifdef __CUDACC__
// d += a · b, computed by a warp: a is 16 x 16, b is 16 x 8, d is 16 x 8. A register of a or b has two
// consecutive values. Lane 4 g + t has
//   of a: rows g and g + 8 at columns 2 t and 2 t + 1, then both rows at columns 2 t + 8 and 2 t + 9
//   of b: column g at rows 2 t and 2 t + 1, then at rows 2 t + 8 and 2 t + 9
//   of d: rows g and g + 8 at columns 2 t and 2 t + 1.
__device__ inline void multiply_16x8x16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    for (int half = 0; half < 2; ++half) {
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
                     "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
    }
#endif
}
#endif

constexpr int DEPTH = 64; // values per row of a tile: one step of the loop over the row length

// ROWS rows of DEPTH halves. Eight unused halves per row keep the eight rows that a warp reads at once in
// different memory banks.
template <int ROWS> struct alignas(16) Tile {
    static constexpr int PITCH = DEPTH + 8;
    u16 halves[ROWS * PITCH];

    __device__ u16 &at(int row, int offset) { return halves[row * PITCH + offset]; }

    __device__ u32 pair(int row, int offset) const {
        return *reinterpret_cast<const u32 *>(&halves[row * PITCH + offset]);
    }

    // Loads rows `row` to `row` + 15 at `offset` to `offset` + 15 as the left factor.
    __device__ void left(u32 (&a)[4], int row, int offset, int lane) const {
        for (int i = 0; i < 4; ++i) {
            a[i] = pair(row + lane / 4 + i % 2 * 8, offset + lane % 4 * 2 + i / 2 * 8);
        }
    }

    // Loads rows `row` to `row` + 7 at the same offsets, transposed, as the right factor.
    __device__ void right(u32 (&b)[2], int row, int offset, int lane) const {
        for (int i = 0; i < 2; ++i) {
            b[i] = pair(row + lane / 4, offset + lane % 4 * 2 + i * 8);
        }
    }
};
