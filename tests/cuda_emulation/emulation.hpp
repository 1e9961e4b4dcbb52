// CUDA for a host compiler: what the kernels use of it, so that they can be run and checked without a GPU.
//
// The threads of a block are fibers of one thread of the host; blocks run one after another. A fiber runs
// until it has to wait for others, so every run is the same; and because it is so, `backwards` has them run
// in the opposite order: a kernel that lacks a barrier gives another result then. When all wait for each other,
// the launch fails. Shared memory is static, and not cleared between blocks, as on a GPU.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static dim3 threadIdx, blockIdx, blockDim;

namespace emulation {

constexpr int LANES = 32;
constexpr size_t STACK = 1 << 16;

// Where fibers wait for each other.
struct Meeting {
    int arrived = 0, round = 0;
};

struct Warp {
    Meeting meeting;
    unsigned long long slots[2][LANES]; // in turn, so that a lane may go on while others still read
    unsigned registers[LANES][6];
};

struct Fiber {
    ucontext_t context;
    dim3 index;
    int number;
    bool done;
    std::vector<char> stack;
};

static std::vector<Fiber> fibers;
static std::vector<Warp> warps;
static Meeting block_meeting;
static Fiber *current;
static ucontext_t scheduler;
static bool progress;
static std::function<void()> body;

inline void wait_for(Meeting &meeting, int everyone) {
    const int round = meeting.round;
    if (++meeting.arrived == everyone) {
        meeting.arrived = 0;
        ++meeting.round;
        progress = true;
        return;
    }
    while (meeting.round == round) {
        swapcontext(&current->context, &scheduler);
    }
}

inline Warp &warp() { return warps[current->number / LANES]; }
inline int lane() { return current->number % LANES; }

// The value that another lane brings.
template <class T> T exchange(T value, int from) {
    static_assert(sizeof(T) <= 8);
    auto &slots = warp().slots[warp().meeting.round % 2];
    std::memcpy(&slots[lane()], &value, sizeof value);
    wait_for(warp().meeting, LANES);
    std::memcpy(&value, &slots[from], sizeof value);
    return value;
}

inline void run_fiber() {
    body();
    current->done = true;
    progress = true;
    swapcontext(&current->context, &scheduler);
}

inline void run_block(int threads, bool backwards) {
    fibers.resize(threads);
    warps.assign((threads + LANES - 1) / LANES, {});
    block_meeting = {};
    for (int i = 0; i < threads; ++i) {
        Fiber &fiber = fibers[i];
        const unsigned number = i;
        fiber.index = {number % blockDim.x, number / blockDim.x % blockDim.y, number / blockDim.x / blockDim.y};
        fiber.number = i;
        fiber.done = false;
        fiber.stack.resize(STACK);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = STACK;
        makecontext(&fiber.context, run_fiber, 0);
    }
    for (int left = threads; left > 0;) {
        progress = false;
        for (int i = 0; i < threads; ++i) {
            current = &fibers[backwards ? threads - 1 - i : i];
            if (!current->done) {
                threadIdx = current->index;
                swapcontext(&scheduler, &current->context);
                left -= current->done;
            }
        }
        if (!progress) {
            throw std::runtime_error("threads wait for others that never come");
        }
    }
}

using Launcher = std::function<void(void **)>;

template <class... A, size_t... I>
Launcher launcher(void (*kernel)(A...), std::index_sequence<I...>) {
    return [kernel](void **arguments) { kernel(*static_cast<A *>(arguments[I])...); };
}

template <class... A> Launcher launcher(void (*kernel)(A...)) {
    return launcher(kernel, std::index_sequence_for<A...>{});
}

// Runs a kernel; each argument by its address.
inline void launch(const Launcher &kernel, unsigned grid, dim3 block, void **arguments, bool backwards) {
    body = [&] { kernel(arguments); };
    blockDim = block;
    for (unsigned i = 0; i < grid; ++i) {
        blockIdx = {backwards ? grid - 1 - i : i, 0, 0};
        run_block(block.x * block.y * block.z, backwards);
    }
}

} // namespace emulation

inline void __syncthreads() { emulation::wait_for(emulation::block_meeting, emulation::fibers.size()); }
inline void __syncwarp() { emulation::wait_for(emulation::warp().meeting, emulation::LANES); }

template <class T> T __shfl_xor_sync(unsigned, T value, int lanes) {
    return emulation::exchange(value, emulation::lane() ^ lanes);
}

template <class T> T __ldg(const T *p) { return *p; }

inline int __dp4a(int a, int b, int sum) {
    for (int i = 0; i < 32; i += 8) {
        sum += static_cast<signed char>(a >> i) * static_cast<signed char>(b >> i);
    }
    return sum;
}

template <class T> T min(T a, T b) { return a < b ? a : b; }
template <class T> T max(T a, T b) { return a > b ? a : b; }

inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// To nearest, ties to even; saturating, and 0 for NaN.
inline int __float2int_rn(float value) {
    if (std::isnan(value)) {
        return 0;
    }
    const double limit = 2147483647.0;
    return static_cast<int>(std::fmin(std::fmax(std::nearbyint(double(value)), -limit - 1), limit));
}

inline float half_to_float(unsigned short bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float value = exponent == 31  ? fraction ? NAN : INFINITY
                  : exponent == 0 ? std::ldexp(float(fraction), -24)
                                  : std::ldexp(float(fraction + 1024), exponent - 25);
    return bits & 0x8000 ? -value : value;
}

// To nearest, ties to even: in steps of the last place.
inline unsigned short float_to_half(float value) {
    const unsigned short sign = std::signbit(value) ? 0x8000 : 0;
    const float magnitude = std::fabs(value);
    if (std::isnan(value)) {
        return sign | 0x7fff;
    }
    if (magnitude >= 65520.0f) {
        return sign | 0x7c00;
    }
    const int exponent = std::max(std::ilogb(magnitude), -14); // of zero it is very small
    const int steps = static_cast<int>(std::nearbyintf(std::ldexp(magnitude, 10 - exponent)));
    return sign | (((exponent + 14) << 10) + steps); // 1024 steps more are the next exponent
}

inline unsigned floats_to_halves(float first, float second) {
    return float_to_half(first) | static_cast<unsigned>(float_to_half(second)) << 16;
}

// One instruction of tensor cores: every lane brings its registers, and finds its sums in those of all.
inline void multiply_16x8x16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    auto &registers = emulation::warp().registers;
    const int lane = emulation::lane();
    std::memcpy(registers[lane], a, sizeof a);
    std::memcpy(registers[lane] + 4, b, sizeof b);
    emulation::wait_for(emulation::warp().meeting, emulation::LANES);
    const auto half = [&](int lane, int number, int k) {
        return half_to_float(static_cast<unsigned short>(registers[lane][number] >> k % 2 * 16));
    };
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; ++k) {
            const int from = k % 8 / 2;
            d[i] += half(row % 8 * 4 + from, row / 8 + k / 8 * 2, k) * half(column * 4 + from, 4 + k / 8, k);
        }
    }
    emulation::wait_for(emulation::warp().meeting, emulation::LANES);
}
