//! Dot products on x86-64: the algorithms, once over [`DotVector`].
//!
//! K-quants: the numbers of 64 weights are unpacked into the order that the activations have, so
//! that bytes meet bytes in one multiply-add each (`vpmaddubsw`, `vpdpbusd`), whose sums still fit
//! 16 bits. A second one (`vpmaddwd`, `vpdpwssd`) multiplies by the scales of the sub-blocks, and
//! only then, once a block, integers become floats. What a block has but once, its scales, minima
//! and factors, costs as much as its numbers; so several rows are multiplied at once, a lane of the
//! floats each.
//!
//! The floats are added up in the order of [`crate::dot::scalar`], whatever the vectors' width.
//!
//! With one column the weights come from memory, and a CPU by itself reads ahead only to the end of a
//! page of 4 KiB and of short rows not even that; so [`prefetch`] asks for them much earlier.

pub(in crate::kernel) mod avx2;
pub(in crate::kernel) mod avx512;
mod iq4_xs;
mod nibble_rows;
mod outliers;
mod plain;
mod rows;
mod sixteens;

use crate::block::iq4::VALUES;
use crate::block::{
    BlockBF16, BlockF16, BlockF32, BlockIQ4NL, BlockIQ4XS, BlockQ2K, BlockQ3K, BlockQ4_0,
    BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0, TensorType,
};
use crate::dot::Rows;
use crate::dot::activations::{Activations, Column, HalfOrder};
#[cfg(test)]
use crate::dot::{activations::BlockQ8K, scalar::KSums};
use outliers::Outliers;
pub(super) use plain::nibbles_32;
use plain::{legacy_rows, number_rows};
use std::arch::x86_64::*;

/// The most rows that an ISA takes at once.
const MAX_ROWS: usize = 4;

/// How far ahead weights are asked for, in bytes: on a Sapphire Rapids, rows of 1536 weights of Q4_K are
/// read 1.6 times as fast as without, rows of 8960 1.25 times; 8 to 32 KiB hardly differ.
const AHEAD: usize = 16 << 10;

/// Asks for the bytes [`AHEAD`] of the `size` at `from`; also past the end of the weights, which no
/// prefetch minds.
#[inline(always)]
fn prefetch<T>(from: *const T, size: usize) {
    for at in (0..size).step_by(64) {
        // SAFETY: SSE, which every x86-64 CPU has; a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast::<i8>().wrapping_add(AHEAD + at)) };
    }
}

/// What an ISA has to offer. `Numbers` are 64 unsigned bytes; a part is 128 bits of a vector.
///
/// # Safety
///
/// Every function may be called only where the CPU has the implementor's ISA, with pointers to as
/// many bytes as it says; they need no alignment.
pub(crate) trait DotVector: Copy {
    type Numbers: Copy;
    /// A vector of integers.
    type Integers: Copy;
    /// A vector of f32.
    type Floats: Copy;
    /// The scales of sixteen sub-blocks, ready to be multiplied.
    type Scales: Copy;
    /// Lanes of `Floats`.
    const LANES: usize;
    /// Rows that are taken at once: the parts of a vector.
    const ROWS: usize = Self::LANES / 4;

    /// Sixteen bytes, then zeros.
    unsafe fn first_16(from: *const u8) -> Self::Integers;
    /// Sixteen bytes of each row, whose lengths are `stride`.
    unsafe fn rows_of_16(from: *const u8, stride: usize) -> Self::Integers;
    /// The same sixteen bytes in every part.
    unsafe fn repeat(from: *const u8) -> Self::Integers;
    /// The i32 lanes of every part in another order.
    unsafe fn shuffle<const ORDER: i32>(x: Self::Integers) -> Self::Integers;
    /// The i32 lanes of every part shifted by so many bits.
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
    /// The same of vectors of eight.
    unsafe fn totals_of_eight(rows: [__m256i; MAX_ROWS]) -> __m128i;
    unsafe fn zero() -> Self::Integers;
    /// Sums of two products of words.
    unsafe fn madd(a: Self::Integers, b: Self::Integers) -> Self::Integers;
    /// Sums of i32.
    unsafe fn add(a: Self::Integers, b: Self::Integers) -> Self::Integers;
    /// Takes eight i32 off the first lanes.
    unsafe fn sub_eight(this: Self::Integers, eight: __m256i) -> Self::Integers;

    /// 64 bytes of nibbles: the low ones, and the high ones.
    unsafe fn nibbles(from: *const u8) -> [Self::Numbers; 2];
    /// 32 bytes of two-bit numbers: the lowest, the next, and so on.
    unsafe fn two_bits(from: *const u8) -> [Self::Numbers; 2];
    /// With bit `FIRST` of the 32 bytes `bits` as bit `AT` of the first 32 numbers, bit `SECOND` as that
    /// of the others.
    unsafe fn with_bits<const FIRST: i32, const SECOND: i32, const AT: i32>(
        low: Self::Numbers,
        bits: __m256i,
    ) -> Self::Numbers;
    /// 128 numbers of Q6_K: 64 bytes of low bits, 32 of high ones.
    unsafe fn six_bits(low: *const u8, high: *const u8) -> [Self::Numbers; 2];
    /// Sixteen signed scales.
    unsafe fn scales_of_16(bytes: __m128i) -> Self::Scales;

    /// Sums of the products of the 128 numbers, nibbles of 64 bytes, and the activations at `y`, times
    /// the scales of sub-blocks of 32 weights: words of part `row`, the first four, or where `second`
    /// the others.
    unsafe fn scaled_of_32(
        numbers: [Self::Numbers; 2],
        y: *const u8,
        scales: Self::Integers,
        row: usize,
        second: bool,
    ) -> Self::Integers;
    /// Sums of the products of 128 numbers in their own order times the scales of sub-blocks of 16: the
    /// first eight, or where `SECOND` the others.
    unsafe fn scaled_of_16<const SECOND: bool>(
        numbers: [Self::Numbers; 2],
        y: *const u8,
        scales: Self::Scales,
    ) -> Self::Integers;
    /// Sums of the products of what 64 bytes of nibbles stand for in IQ4_XS and half `HALF` of the
    /// activations, times the scales of that half, four of the eight.
    unsafe fn scaled_values<const HALF: usize>(
        qs: *const u8,
        y: &HalfOrder,
        scales: __m256i,
    ) -> Self::Integers;
    /// Eight sums of the products of 32 unsigned and 32 signed bytes.
    unsafe fn dot_32(unsigned: __m256i, signed: __m256i) -> __m256i;

    unsafe fn zero_floats() -> Self::Floats;
    /// `values[index]` for as many places as there are lanes.
    unsafe fn gather(values: *const f32, index: *const u8) -> Self::Floats;
    /// Eight lanes, then zeros if there are more.
    unsafe fn widen(eight: __m256) -> Self::Floats;
    unsafe fn load_f32(from: *const u8) -> Self::Floats;
    unsafe fn load_f16(from: *const u8) -> Self::Floats;
    unsafe fn load_bf16(from: *const u8) -> Self::Floats;
    /// `acc + a · b`
    unsafe fn fma(a: Self::Floats, b: Self::Floats, acc: Self::Floats) -> Self::Floats;
    unsafe fn add_floats(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// Sixteen lanes, in as many vectors as they take, added as a tree: each to the one half of the lanes
    /// away.
    unsafe fn total_sixteen_floats(acc: [Self::Floats; 2]) -> f32;
}

/// The integers of one block, added up: for the tests.
///
/// # Safety
///
/// The CPU has V's ISA.
#[cfg(test)]
#[inline(always)]
pub(crate) unsafe fn block_sums<V: DotVector>(
    kind: TensorType,
    block: &[u8],
    y: &BlockQ8K,
) -> KSums {
    // SAFETY: the caller's promise.
    unsafe {
        match kind {
            TensorType::Q4K => nibble_rows::block_sums::<V, BlockQ4K>(block, y),
            TensorType::Q5K => nibble_rows::block_sums::<V, BlockQ5K>(block, y),
            TensorType::IQ4XS => rows::block_sums::<V, BlockIQ4XS>(block, &HalfOrder::new(y)),
            TensorType::Q2K => rows::block_sums::<V, BlockQ2K>(block, y),
            TensorType::Q3K => rows::block_sums::<V, BlockQ3K>(block, y),
            _ => rows::block_sums::<V, BlockQ6K>(block, y),
        }
    }
}

/// In every part lanes 0 and 2 of `a` added, and of `b`, then lanes 1 and 3 of `a`, and of `b`.
#[inline(always)]
unsafe fn add_pairs(a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: AVX2; the callers' ISAs have it.
    unsafe { _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b)) }
}

/// Lane r is the sum of the i32 lanes of row r, for the first two rows.
#[inline(always)]
unsafe fn totals_of_two([a, b, ..]: [__m256i; MAX_ROWS]) -> __m128i {
    // SAFETY: AVX2; the callers' ISAs have it.
    unsafe {
        let sums = add_pairs(a, b);
        let sums = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
        _mm_add_epi32(sums, _mm_unpackhi_epi64(sums, sums))
    }
}

#[inline(always)]
pub(crate) unsafe fn total_eight_floats(x: __m256) -> f32 {
    // SAFETY: AVX; the callers' ISAs have it.
    unsafe {
        let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
    }
}

/// What the numbers of IQ4_NL and IQ4_XS stand for, in every part.
#[inline(always)]
pub(super) unsafe fn table_values() -> __m256i {
    // SAFETY: AVX2; the callers' ISAs have it.
    unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(VALUES.as_ptr().cast())) }
}

#[inline(always)]
pub(super) unsafe fn f16_to_f32(bits: u16) -> f32 {
    // SAFETY: F16C; the callers' ISAs have it.
    unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits)))) }
}

/// See [`crate::kernel::dot_rows`]; the lengths have been checked.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
pub(crate) unsafe fn dot_rows<V: DotVector>(
    rows: Rows<'_>,
    activations: &Activations,
    out: &mut [f32],
) {
    let Activations { column, factors: f, nibble_order: k, half_order: h, .. } = activations;
    // SAFETY: the caller's promise.
    unsafe {
        match rows {
            Rows::Hifi { base, index, residual } => {
                let sparse = activations.sparse.as_ref().expect("checked at the border");
                let outliers = Some(Outliers { index, residual, sparse });
                match sparse.outliers {
                    4 => nibble_rows::dot_rows::<V, BlockQ4K, 4>(base, outliers, k, out),
                    8 => nibble_rows::dot_rows::<V, BlockQ4K, 8>(base, outliers, k, out),
                    16 => nibble_rows::dot_rows::<V, BlockQ4K, 16>(base, outliers, k, out),
                    32 => nibble_rows::dot_rows::<V, BlockQ4K, 32>(base, outliers, k, out),
                    _ => nibble_rows::dot_rows::<V, BlockQ4K, 0>(base, outliers, k, out),
                }
            }
            Rows::Plain(kind, data) => match (kind, column) {
                (TensorType::Q4K, _) => nibble_rows::dot_rows::<V, BlockQ4K, 0>(data, None, k, out),
                (TensorType::Q5K, _) => nibble_rows::dot_rows::<V, BlockQ5K, 0>(data, None, k, out),
                (TensorType::Q2K, Column::Q8K(y)) => rows::dot_rows::<V, BlockQ2K>(data, y, out),
                (TensorType::Q3K, Column::Q8K(y)) => rows::dot_rows::<V, BlockQ3K>(data, y, out),
                (TensorType::Q6K, Column::Q8K(y)) => rows::dot_rows::<V, BlockQ6K>(data, y, out),
                (TensorType::IQ4XS, _) => rows::dot_rows::<V, BlockIQ4XS>(data, h, out),
                (TensorType::IQ4NL, Column::Q8_0(y)) => {
                    legacy_rows::<V, BlockIQ4NL, _>(data, y, f, out)
                }
                (TensorType::Q4_0, Column::Q8_0(y)) => {
                    legacy_rows::<V, BlockQ4_0, _>(data, y, f, out)
                }
                (TensorType::Q5_0, Column::Q8_0(y)) => {
                    legacy_rows::<V, BlockQ5_0, _>(data, y, f, out)
                }
                (TensorType::Q8_0, Column::Q8_0(y)) => {
                    legacy_rows::<V, BlockQ8_0, _>(data, y, f, out)
                }
                (TensorType::Q4_1, Column::Q8_1(y)) => {
                    legacy_rows::<V, BlockQ4_1, _>(data, y, f, out)
                }
                (TensorType::Q5_1, Column::Q8_1(y)) => {
                    legacy_rows::<V, BlockQ5_1, _>(data, y, f, out)
                }
                (TensorType::F32, Column::F32(x)) => number_rows::<V, BlockF32>(data, x, out),
                (TensorType::F16, Column::F32(x)) => number_rows::<V, BlockF16>(data, x, out),
                (TensorType::BF16, Column::F32(x)) => number_rows::<V, BlockBF16>(data, x, out),
                _ => unreachable!("checked at the border"),
            },
        }
    }
}
