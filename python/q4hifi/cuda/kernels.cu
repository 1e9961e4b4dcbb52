// The kernels. kernels.py has their names and launches; the .cuh files have the work of a single thread.

#include "activations.cuh"
#include "dot.cuh"
#include "outliers.cuh"
#include "tiles.cuh"

// ---- dequantize ----------------------------------------------------------------------------------------
//
// A thread writes eight consecutive weights, which are 16 bytes of f16. A warp writes one block of a
// K-quant, and reads it in words of eight bytes. Writing to memory takes longer than the arithmetic.

constexpr int DEQUANTIZE_THREADS = 256;

// Puts the outliers of a warp's block into its weights. The indices differ, so two lanes never write the
// same weight.
template <class Type> __device__ void apply_outliers(const Tensor &t, u64 block, float (&w)[8]) {
    __shared__ float tiles[DEQUANTIZE_THREADS / WARP][K];
    const int lane = threadIdx.x % WARP;
    float *tile = tiles[threadIdx.x / WARP];
    store_8(tile + 8 * lane, w);
    __syncwarp();
    if (lane < Type::count(t, block)) {
        float &weight = tile[Type::outlier_index(t, block, lane)];
        weight = Type::weight(t, block, lane, weight);
    }
    __syncwarp();
    for (int i = 0; i < 8; ++i) {
        w[i] = tile[8 * lane + i];
    }
}

template <class Type, class Out>
__global__ void __launch_bounds__(DEQUANTIZE_THREADS)
    dequantize(const u8 *data, u64 blocks, const u8 *index, const u16 *residual, int outliers, Out *out) {
    const Tensor t{data, blocks, index, residual, outliers};
    const u64 group = u64(blockIdx.x) * DEQUANTIZE_THREADS + threadIdx.x;
    if (group >= blocks * (Type::WEIGHTS / 8)) {
        return; // for K-quants, whole warps end here, so __syncwarp below is safe
    }
    float w[8];
    Type::dequantize(t, group, w);
    if constexpr (Type::OUTLIERS) {
        apply_outliers<Type>(t, group / WARP, w);
    }
    store_8(out + 8 * group, w);
}

// ---- activations ---------------------------------------------------------------------------------------

constexpr int QUANTIZE_THREADS = 256;

template <class In>
__global__ void __launch_bounds__(QUANTIZE_THREADS)
    quantize_q8_1(const In *x, u64 blocks, s8 *quants, float2 *scales) {
    const u64 block = u64(blockIdx.x) * (QUANTIZE_THREADS / WARP) + threadIdx.x / WARP;
    if (block < blocks) {
        quantize_q8_1_block(x + block * Q8, quants + block * Q8, scales + block, threadIdx.x % WARP);
    }
}

// ---- matrix times one to eight columns -----------------------------------------------------------------
//
// Generating a token reads every weight once, so memory bandwidth decides the time, if enough loads are in
// flight: bandwidth times latency. An H100 has 3.35 TB/s for 132 SMs and a latency of about 0.8 µs under
// load, so it needs 20 KiB in flight per SM. A warp loads four blocks of each of two rows at once (Q4_K:
// 1152 bytes; every lane makes two loads of 16 bytes, and those of the headers). With one column, a thread
// uses at most 64 registers, so that an SM holds 32 warps, with 36 KiB in flight.
//
// blockDim is (32, warps that share a row, groups of rows). grid.x covers the rows. Activations come from
// the L1 cache, and each load of them is used for two rows.

constexpr int MATVEC_WARPS = 4;
constexpr int MATVEC_ROWS = 2; // rows per warp

template <class Type, int COLUMNS>
__global__ void __launch_bounds__(MATVEC_WARPS *WARP, COLUMNS == 1 ? 8 : COLUMNS <= 4 ? 5 : 4)
    matvec(const u8 *data, u64 blocks, const u8 *index, const u16 *residual, int outliers, int rows,
           int row_blocks, const s8 *quants, const float2 *scales, float *out) {
    constexpr int BLOCKS = WARP / SHARES; // blocks of a row that a warp reads at once
    const Tensor t{data, blocks, index, residual, outliers};
    const Activations activations{quants, scales};
    const int lane = threadIdx.x, share = lane % SHARES;
    const int first_row = (blockIdx.x * blockDim.z + threadIdx.z) * MATVEC_ROWS;

    float sums[MATVEC_ROWS][COLUMNS] = {};
    for (int b = threadIdx.y * BLOCKS + lane / SHARES; b < row_blocks; b += blockDim.y * BLOCKS) {
        typename Type::Raw raw[MATVEC_ROWS];
#pragma unroll
        for (int r = 0; r < MATVEC_ROWS; ++r) {
            const int row = min(first_row + r, rows - 1); // past the end, the last row is read again
            raw[r] = Type::load(t, u64(row) * row_blocks + b, share);
        }
        Share shares[MATVEC_ROWS];
#pragma unroll
        for (int r = 0; r < MATVEC_ROWS; ++r) {
            shares[r] = Type::unpack(raw[r], share);
        }
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) {
            const Activations block = of_block(activations, u64(c) * row_blocks + b);
            const ActivationShare x = load_activations<Type>(block, share);
#pragma unroll
            for (int r = 0; r < MATVEC_ROWS; ++r) {
                sums[r][c] += dot(shares[r], x);
                if constexpr (Type::OUTLIERS) {
                    sums[r][c] += correction(raw[r].outlier, block);
                }
            }
        }
    }

    // add up the lanes with shuffles, then the warps that share a row through shared memory
    __shared__ float partial[MATVEC_WARPS][MATVEC_ROWS * COLUMNS];
    const int warp = threadIdx.z * blockDim.y + threadIdx.y;
#pragma unroll
    for (int i = 0; i < MATVEC_ROWS * COLUMNS; ++i) {
        const float sum = warp_sum(sums[i / COLUMNS][i % COLUMNS]);
        if (lane == 0) {
            partial[warp][i] = sum;
        }
    }
    __syncthreads();
    const int row = first_row + lane / COLUMNS;
    if (threadIdx.y == 0 && lane < MATVEC_ROWS * COLUMNS && row < rows) {
        float sum = 0.0f;
        for (unsigned w = 0; w < blockDim.y; ++w) {
            sum += partial[warp + w][lane];
        }
        out[u64(lane % COLUMNS) * rows + row] = sum;
    }
}

// ---- matrix times many columns -------------------------------------------------------------------------
//
// Tiles of weights are dequantized to f16 in shared memory, once for 128 columns. Tensor cores multiply
// them, with sums in f32. Only the product is written to memory. A thread block computes a tile of 128 rows
// by 128 columns of the product; each of its eight warps computes 32 rows by 64 columns of the tile.

constexpr int MATMUL_THREADS = 256;
constexpr int MATMUL_ROWS = 128;
constexpr int MATMUL_COLUMNS = 128;

// Loads rows from `first` on, and of each row the weights from `depth` on. Weights past a row's end are 0;
// rows past the last repeat the last.
template <class Type, int ROWS>
__device__ void load_weights(Tile<ROWS> &tile, const Tensor &t, int first, int rows, int length, int depth) {
    for (int i = threadIdx.x; i < ROWS * (DEPTH / 8); i += MATMUL_THREADS) {
        const int row = min(first + i / (DEPTH / 8), rows - 1), offset = i % (DEPTH / 8) * 8;
        float w[8] = {};
        if (depth + offset < length) {
            Type::dequantize(t, (u64(row) * length + depth + offset) / 8, w);
        }
        store_8(reinterpret_cast<Half *>(&tile.at(i / (DEPTH / 8), offset)), w);
    }
    if constexpr (Type::OUTLIERS) {
        __syncthreads();
        constexpr int MOST = Type::ROUNDS * SHARES;
        for (int i = threadIdx.x; i < ROWS * MOST; i += MATMUL_THREADS) {
            const int row = min(first + i / MOST, rows - 1), k = i % MOST;
            const u64 block = (u64(row) * length + depth) / K;
            const bool exists = k < Type::count(t, block);
            const int offset = exists ? Type::outlier_index(t, block, k) - depth % K : -1;
            if (offset >= 0 && offset < DEPTH) {
                u16 &half = tile.at(i / MOST, offset);
                half = u16(floats_to_halves(Type::weight(t, block, k, half_to_float(half)), 0.0f));
            }
        }
    }
}

// Loads activations [columns, length] in the same way.
template <int ROWS>
__device__ void load_columns(Tile<ROWS> &tile, const Half *x, int first, int columns, int length, int depth) {
    for (int i = threadIdx.x; i < ROWS * (DEPTH / 8); i += MATMUL_THREADS) {
        const int column = min(first + i / (DEPTH / 8), columns - 1), offset = i % (DEPTH / 8) * 8;
        uint4 halves = {};
        if (depth + offset < length) {
            halves = load_16<16>(reinterpret_cast<const u8 *>(x + u64(column) * length + depth + offset));
        }
        *reinterpret_cast<uint4 *>(&tile.at(i / (DEPTH / 8), offset)) = halves;
    }
}

template <class Type>
__global__ void __launch_bounds__(MATMUL_THREADS, 2)
    matmul(const u8 *data, u64 blocks, const u8 *index, const u16 *residual, int outliers, int rows, int length,
           const Half *x, int columns, float *out) {
    constexpr int ROWS = 2, COLUMNS = 8; // a warp has 2 x 8 small tiles of 16 rows by 8 columns each
    __shared__ Tile<MATMUL_ROWS> weights;
    __shared__ Tile<MATMUL_COLUMNS> activations;
    const Tensor t{data, blocks, index, residual, outliers};
    const int column_tiles = (columns + MATMUL_COLUMNS - 1) / MATMUL_COLUMNS;
    const int first_row = int(blockIdx.x) / column_tiles * MATMUL_ROWS;
    const int first_column = int(blockIdx.x) % column_tiles * MATMUL_COLUMNS;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int row = warp % 4 * ROWS * 16, column = warp / 4 * COLUMNS * 8; // where the warp's part begins

    float sums[ROWS][COLUMNS][4] = {};
    for (int depth = 0; depth < length; depth += DEPTH) {
        __syncthreads();
        load_weights<Type>(weights, t, first_row, rows, length, depth);
        load_columns(activations, x, first_column, columns, length, depth);
        __syncthreads();
        for (int offset = 0; offset < DEPTH; offset += 16) {
            u32 a[ROWS][4];
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                weights.left(a[r], row + 16 * r, offset, lane);
            }
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
                if (first_column + column + 8 * c < columns) { // true or false for the whole warp
                    u32 b[2];
                    activations.right(b, column + 8 * c, offset, lane);
#pragma unroll
                    for (int r = 0; r < ROWS; ++r) {
                        multiply_16x8x16(sums[r][c], a[r], b);
                    }
                }
            }
        }
    }

#pragma unroll
    for (int i = 0; i < ROWS * COLUMNS * 4; ++i) {
        const int r = i / (COLUMNS * 4), c = i / 4 % COLUMNS;
        const int at_row = first_row + row + 16 * r + lane / 4 + i % 4 / 2 * 8;
        const int at_column = first_column + column + 8 * c + lane % 4 * 2 + i % 2;
        if (at_row < rows && at_column < columns) {
            out[u64(at_column) * rows + at_row] = sums[r][c][i % 4];
        }
    }
}
