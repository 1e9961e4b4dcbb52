//! IQ4_XS: bytes from a table, eight signed scales a block, and no minima.
//!
//! The table's values are a byte each, looked up by a byte shuffle. A part of 128 bits holds numbers
//! of one sub-block alone, because [`HalfOrder`] has the activations in the nibbles' order; so a
//! sub-block's scale multiplies whole parts.

use super::{DotVector, prefetch};
use crate::block::{BlockIQ4XS, blocks};
use crate::dot::activations::HalfOrder;
#[cfg(test)]
use crate::dot::{activations::BlockQ8K, scalar::KSums};
use std::arch::x86_64::*;

/// The scales of the sub-blocks, eight i32.
#[inline(always)]
unsafe fn unpack_scales(block: &BlockIQ4XS) -> __m256i {
    // SAFETY: AVX2; the callers' ISAs have it.
    unsafe {
        let place = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
        let low = _mm256_set1_epi32(i32::from_le_bytes(block.scales_l));
        let low = _mm256_and_si256(_mm256_srlv_epi32(low, place), _mm256_set1_epi32(0x0f));
        let high = _mm256_set1_epi32(i32::from(u16::from_le_bytes(block.scales_h)) << 4);
        let high = _mm256_srlv_epi32(high, _mm256_srli_epi32::<1>(place));
        let high = _mm256_and_si256(high, _mm256_set1_epi32(0x30));
        _mm256_sub_epi32(_mm256_or_si256(low, high), _mm256_set1_epi32(32))
    }
}

/// The integers of a block's product.
#[inline(always)]
unsafe fn scaled_sums<V: DotVector>(block: &BlockIQ4XS, y: &HalfOrder) -> V::Integers {
    let qs = block.qs.as_ptr().cast::<u8>();
    // SAFETY: the caller's promise; all within the blocks.
    unsafe {
        let scales = unpack_scales(block);
        let first = V::scaled_values::<0>(qs, y, scales);
        V::add(first, V::scaled_values::<1>(qs.add(64), y, scales))
    }
}

#[inline(always)]
unsafe fn dot_row<V: DotVector>(row: &[BlockIQ4XS], y: &[HalfOrder]) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = V::zero_floats();
        for (block, y) in row.iter().zip(y) {
            prefetch(block, size_of::<BlockIQ4XS>());
            let d = super::f16_to_f32(u16::from_le_bytes(block.d));
            let sums = V::to_floats(scaled_sums::<V>(block, y));
            acc = V::fma(sums, V::spread(d * y.d), acc);
        }
        V::total_floats(acc)
    }
}

/// See [`crate::kernel::dot_rows`]; the lengths have been checked.
///
/// # Safety
///
/// The CPU has V's ISA.
#[inline(always)]
pub(super) unsafe fn dot_rows<V: DotVector>(data: &[u8], y: &[HalfOrder], out: &mut [f32]) {
    for (row, out) in blocks(data).chunks_exact(y.len()).zip(out) {
        // SAFETY: the caller's promise.
        *out = unsafe { dot_row::<V>(row, y) };
    }
}

/// The integers of a block, added up.
///
/// # Safety
///
/// The CPU has V's ISA.
#[cfg(test)]
#[inline(always)]
pub(super) unsafe fn block_sums<V: DotVector>(block: &[u8], y: &BlockQ8K) -> KSums {
    // SAFETY: the caller's promise.
    let sums = unsafe { V::total(scaled_sums::<V>(&blocks(block)[0], &HalfOrder::new(y))) };
    KSums { scaled: sums, mins: 0 }
}
