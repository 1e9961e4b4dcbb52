//! Q2_K, Q3_K, Q6_K and IQ4_XS. The integer sums of a block are computed row by row; the float operations, for as many
//! rows at once as a vector has parts of 128 bits. A single remaining row uses the first lane.

use super::vector::{DotVector, MAX_ROWS, for_each_group, prefetch};
use crate::block::{Bytes, blocks};
#[cfg(test)]
use crate::dot::scalar::KSums;
use std::arch::x86_64::*;

/// The parts of a block that the dot product needs.
pub(super) trait RowBlock: Bytes {
    /// Whether there are minima, which have a separate block scale.
    const MINS: bool;
    /// A block of activations.
    type Activations;

    /// The integer sums of a block's product, for the scale of the scales and for the scale of the minima.
    ///
    /// # Safety
    ///
    /// The CPU has V's ISA.
    unsafe fn sums<V: DotVector>(&self, y: &Self::Activations) -> (V::Integers, __m256i);

    /// The scale of the scales, and that of the minima if there are any, f16.
    fn block_scales(&self) -> [u16; 2];

    /// The scale of the activations.
    fn scale(y: &Self::Activations) -> f32;
}

/// Four f16 as f32, times `scale`.
#[inline(always)]
unsafe fn scaled_halves(halves: [u16; MAX_ROWS], scale: f32) -> __m128 {
    // F16C; the callers' ISAs have it.
    let [a, b, c, d] = halves;
    let low = u64::from(a) | u64::from(b) << 16;
    let all = low | u64::from(c) << 32 | u64::from(d) << 48;
    _mm_mul_ps(_mm_cvtph_ps(_mm_cvtsi64_si128(all as i64)), _mm_set1_ps(scale))
}

/// The products of [`DotVector::ROWS`] rows of `y.len()` blocks, of which `first` is the first, or of
/// `ONE`.
#[inline(always)]
unsafe fn dot_group<V: DotVector, B: RowBlock, const ONE: bool>(
    blocks: &[B],
    first: usize,
    y: &[B::Activations],
) -> [f32; MAX_ROWS] {
    let (rows, length) = (if ONE { 1 } else { V::ROWS }, y.len());
    let (mut acc, mut mins) = (_mm_setzero_ps(), _mm_setzero_ps());
    for (i, y) in y.iter().enumerate() {
        let mut scaled = [V::zero(); MAX_ROWS];
        let mut taken = [_mm256_setzero_si256(); MAX_ROWS];
        let (mut d, mut dmin) = ([0u16; MAX_ROWS], [0u16; MAX_ROWS]);
        for row in 0..rows {
            let block = blocks.get_unchecked((first + row) * length + i);
            prefetch(block, size_of::<B>());
            (scaled[row], taken[row]) = block.sums::<V>(y);
            [d[row], dmin[row]] = block.block_scales();
        }
        let d = scaled_halves(d, B::scale(y));
        acc = _mm_fmadd_ps(_mm_cvtepi32_ps(V::totals(scaled)), d, acc);
        if B::MINS {
            let dmin = scaled_halves(dmin, B::scale(y));
            mins = _mm_fmadd_ps(_mm_cvtepi32_ps(V::totals_of_eight(taken)), dmin, mins);
        }
    }
    let mut out = [0f32; MAX_ROWS];
    _mm_storeu_ps(out.as_mut_ptr(), _mm_sub_ps(acc, mins));
    out
}

/// See [`crate::dispatch::dot_rows`]; the lengths have been checked.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
pub(super) unsafe fn dot_rows<V: DotVector, B: RowBlock>(
    data: &[u8],
    y: &[B::Activations],
    out: &mut [f32],
) {
    let blocks = blocks::<B>(data);
    // there are `out.len()` rows.
    for_each_group!(V, out, |row| {
        many: dot_group::<V, B, false>(blocks, row, y),
        one: dot_group::<V, B, true>(blocks, row, y),
    });
}

/// The integers of a block, added up.
///
/// # Safety
///
/// The CPU has V's ISA.
#[cfg(test)]
#[inline(always)]
pub(super) unsafe fn block_sums<V: DotVector, B: RowBlock>(
    block: &[u8],
    y: &B::Activations,
) -> KSums {
    let (scaled, mins) = blocks::<B>(block)[0].sums::<V>(y);
    let (none, nothing) = (V::zero(), _mm256_setzero_si256());
    KSums {
        scaled: _mm_cvtsi128_si32(V::totals([scaled, none, none, none])),
        mins: _mm_cvtsi128_si32(V::totals_of_eight([mins, nothing, nothing, nothing])),
    }
}
