//! The operations of an instruction set that dot products need.

use crate::block::iq4::VALUES;
use crate::dot::activations::HalfOrder;
use crate::simd::Vector;
use std::arch::x86_64::*;

/// The largest number of rows that an instruction set multiplies at once.
pub(super) const MAX_ROWS: usize = 4;

/// How far ahead weights are prefetched, in bytes. On a Sapphire Rapids, this makes reading rows of 1536 weights of
/// Q4_K 1.6 times as fast, and rows of 8960 weights 1.25 times. Values from 8 to 32 KiB hardly differ.
const AHEAD: usize = 16 << 10;

/// Prefetches `size` bytes, beginning [`AHEAD`] bytes after `from`. They may be beyond the end of the weights, because
/// a prefetch of any address is allowed.
#[inline(always)]
pub(super) fn prefetch<T>(from: *const T, size: usize) {
    for at in (0..size).step_by(64) {
        // SAFETY: SSE, which every x86-64 CPU has; a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast::<i8>().wrapping_add(AHEAD + at)) };
    }
}

/// Vectors of integers, and f32 vectors of the same size. `Quants` are 64 unsigned bytes; a part is 128 bits of a
/// vector.
///
/// # Safety
///
/// Conditions of every function:
///
/// * the CPU has the implementor's instruction set;
/// * pointers lead to as many bytes as the function says, or to a vector's; they need no alignment.
pub(super) trait DotVector: Copy {
    type Quants: Copy;
    /// A vector of integers.
    type Integers: Copy;
    /// A vector of f32.
    type Floats: Vector;
    /// The scales of sixteen sub-blocks, ready to be multiplied.
    type Scales: Copy;
    /// Rows that are multiplied at once: the number of parts of a vector.
    const ROWS: usize = Self::Floats::LANES / 4;

    /// Sixteen bytes, then zeros.
    unsafe fn first_16(from: *const u8) -> Self::Integers;
    /// Sixteen bytes of each row, whose lengths are `stride`.
    unsafe fn rows_of_16(from: *const u8, stride: usize) -> Self::Integers;
    /// The same sixteen bytes in every part.
    unsafe fn repeat(from: *const u8) -> Self::Integers;
    /// The i32 lanes of every part in another order.
    unsafe fn shuffle<const ORDER: i32>(x: Self::Integers) -> Self::Integers;
    /// Every part with each of its i32 lanes shifted right by its number of bits.
    unsafe fn shift_right(x: Self::Integers, bits: [u32; 4]) -> Self::Integers;
    /// Every part and the mask.
    unsafe fn and(x: Self::Integers, mask: [u32; 4]) -> Self::Integers;
    unsafe fn or(a: Self::Integers, b: Self::Integers) -> Self::Integers;
    /// The first eight bytes of every part as words, and the last eight.
    unsafe fn widen_bytes(x: Self::Integers) -> [Self::Integers; 2];
    /// The first i32 lane of every part.
    unsafe fn first_dwords(x: Self::Integers) -> __m128i;
    /// Lane r is the sum of the i32 lanes of part r.
    unsafe fn part_totals(x: Self::Integers) -> __m128i;
    /// Lane r is the sum of the i32 lanes of row r's vector, for [`Self::ROWS`] rows.
    unsafe fn totals(rows: [Self::Integers; MAX_ROWS]) -> __m128i;
    /// The same for vectors of eight lanes.
    unsafe fn totals_of_eight(rows: [__m256i; MAX_ROWS]) -> __m128i;
    unsafe fn zero() -> Self::Integers;
    /// Sums of two products of words.
    unsafe fn madd(a: Self::Integers, b: Self::Integers) -> Self::Integers;
    /// Sums of i32.
    unsafe fn add(a: Self::Integers, b: Self::Integers) -> Self::Integers;
    /// Takes eight i32 off the first lanes.
    unsafe fn sub_eight(this: Self::Integers, eight: __m256i) -> Self::Integers;

    /// 64 bytes of nibbles: the low ones, and the high ones.
    unsafe fn nibbles(from: *const u8) -> [Self::Quants; 2];
    /// 32 bytes of two-bit quants: the lowest, the next, and so on.
    unsafe fn two_bits(from: *const u8) -> [Self::Quants; 2];
    /// With bit `FIRST` of the 32 bytes `bits` as bit `AT` of the first 32 quants, bit `SECOND` as that
    /// of the others.
    unsafe fn with_bits<const FIRST: i32, const SECOND: i32, const AT: i32>(
        low: Self::Quants,
        bits: __m256i,
    ) -> Self::Quants;
    /// 128 quants of Q6_K: 64 bytes of low bits, 32 of high ones.
    unsafe fn six_bits(low: *const u8, high: *const u8) -> [Self::Quants; 2];
    /// Sixteen signed scales.
    unsafe fn scales_of_16(bytes: __m128i) -> Self::Scales;

    /// Sums of the products of 128 quants, the nibbles of 64 bytes, and the activations at `y`, times the scales of
    /// sub-blocks of 32 weights. The scales are words of part `row`: the first four, or the others if `second`.
    unsafe fn scaled_of_32(
        quants: [Self::Quants; 2],
        y: *const u8,
        scales: Self::Integers,
        row: usize,
        second: bool,
    ) -> Self::Integers;
    /// Sums of the products of 128 quants in their original order, times the scales of sub-blocks of 16: the first
    /// eight scales, or the others if `SECOND`.
    unsafe fn scaled_of_16<const SECOND: bool>(
        quants: [Self::Quants; 2],
        y: *const u8,
        scales: Self::Scales,
    ) -> Self::Integers;
    /// Sums of the products of IQ4_XS values, from 64 bytes of nibbles, and half `HALF` of the activations, times the
    /// four scales of this half.
    unsafe fn scaled_values<const HALF: usize>(
        qs: *const u8,
        y: &HalfOrder,
        scales: __m256i,
    ) -> Self::Integers;
    /// Eight sums of the products of 32 unsigned and 32 signed bytes.
    unsafe fn dot_32(unsigned: __m256i, signed: __m256i) -> __m256i;

    /// `values[index]` for as many indices as there are lanes.
    unsafe fn gather(values: *const f32, index: *const u8) -> Self::Floats;
    /// Eight lanes, then zeros if there are more.
    unsafe fn widen(eight: __m256) -> Self::Floats;
    /// Loads as many bf16 values as there are lanes, and converts them to f32.
    unsafe fn load_bf16(from: *const u16) -> Self::Floats;
    /// The sum of sixteen lanes in one or two vectors, added as a tree (see [`crate::dot::scalar`]).
    unsafe fn total_sixteen_floats(acc: [Self::Floats; 2]) -> f32;
}

/// The methods of [`DotVector`] that AVX2 and AVX-512 have under other names alone.
macro_rules! forward_to_intrinsics {
    (
        $zero:ident, $or:ident, $and:ident, $add:ident, $madd:ident, $shuffle:ident, $shift:ident,
        $low_bytes:ident, $high_bytes:ident, $first_part:ident, $every_part:ident
    ) => {
        #[inline(always)]
        unsafe fn zero() -> Self::Integers {
            $zero()
        }
        #[inline(always)]
        unsafe fn or(a: Self::Integers, b: Self::Integers) -> Self::Integers {
            $or(a, b)
        }
        #[inline(always)]
        unsafe fn and(x: Self::Integers, mask: [u32; 4]) -> Self::Integers {
            $and(x, Self::repeat(mask.as_ptr().cast()))
        }
        #[inline(always)]
        unsafe fn add(a: Self::Integers, b: Self::Integers) -> Self::Integers {
            $add(a, b)
        }
        #[inline(always)]
        unsafe fn madd(a: Self::Integers, b: Self::Integers) -> Self::Integers {
            $madd(a, b)
        }
        #[inline(always)]
        unsafe fn shuffle<const ORDER: i32>(x: Self::Integers) -> Self::Integers {
            $shuffle::<ORDER>(x)
        }
        #[inline(always)]
        unsafe fn shift_right(x: Self::Integers, bits: [u32; 4]) -> Self::Integers {
            $shift(x, Self::repeat(bits.as_ptr().cast()))
        }
        #[inline(always)]
        unsafe fn widen_bytes(x: Self::Integers) -> [Self::Integers; 2] {
            [$low_bytes(x, $zero()), $high_bytes(x, $zero())]
        }
        #[inline(always)]
        unsafe fn first_16(from: *const u8) -> Self::Integers {
            $first_part(_mm_loadu_si128(from.cast()))
        }
        #[inline(always)]
        unsafe fn repeat(from: *const u8) -> Self::Integers {
            $every_part(_mm_loadu_si128(from.cast()))
        }
        #[inline(always)]
        unsafe fn part_totals(x: Self::Integers) -> __m128i {
            let x = $add(x, $shuffle::<0b01_00_11_10>(x));
            Self::first_dwords($add(x, $shuffle::<0b10_11_00_01>(x)))
        }
    };
}

/// Fills `$out` with the products of rows: [`DotVector::ROWS`] rows at once, then the remaining rows one by one.
macro_rules! for_each_group {
    ($vector:ident, $out:ident, |$row:ident| { many: $many:expr, one: $one:expr, }) => {
        let grouped = $out.len() / $vector::ROWS * $vector::ROWS;
        let (groups, rest) = $out.split_at_mut(grouped);
        for (i, out) in groups.chunks_exact_mut($vector::ROWS).enumerate() {
            let $row = i * $vector::ROWS;
            out.copy_from_slice(&$many[..$vector::ROWS]);
        }
        for (i, out) in rest.iter_mut().enumerate() {
            let $row = grouped + i;
            *out = $one[0];
        }
    };
}

pub(super) use {for_each_group, forward_to_intrinsics};

/// In every part lanes 0 and 2 of `a` added, and of `b`, then lanes 1 and 3 of `a`, and of `b`.
#[inline(always)]
pub(super) unsafe fn add_pairs(a: __m256i, b: __m256i) -> __m256i {
    // AVX2; the callers' ISAs have it.
    _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b))
}

/// Lane r is the sum of the i32 lanes of row r, for the first two rows.
#[inline(always)]
pub(super) unsafe fn totals_of_two([a, b, ..]: [__m256i; MAX_ROWS]) -> __m128i {
    // AVX2; the callers' ISAs have it.
    let sums = add_pairs(a, b);
    let sums = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
    _mm_add_epi32(sums, _mm_unpackhi_epi64(sums, sums))
}

/// The sum of eight lanes, added as a tree.
#[inline(always)]
pub(super) unsafe fn total_eight_floats(x: __m256) -> f32 {
    // AVX; the callers' ISAs have it.
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
}

/// The values of the quants of IQ4_NL and IQ4_XS, in every part.
#[inline(always)]
pub(super) unsafe fn table_values() -> __m256i {
    // AVX2; the callers' ISAs have it.
    _mm256_broadcastsi128_si256(_mm_loadu_si128(VALUES.as_ptr().cast()))
}
