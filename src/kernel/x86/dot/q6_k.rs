//! Q6_K: sixteen signed scales a block, and no minima.

use super::{DotVector, prefetch};
use crate::block::{BlockQ6K, blocks};
use crate::dot::activations::BlockQ8K;
#[cfg(test)]
use crate::dot::scalar::KSums;
use std::arch::x86_64::*;

/// The integers of a block's product.
#[inline(always)]
unsafe fn scaled_sums<V: DotVector>(block: &BlockQ6K, y: &BlockQ8K) -> V::Integers {
    let (ql, qh, y8) = (block.ql.as_ptr(), block.qh.as_ptr(), y.qs.as_ptr());
    // SAFETY: the caller's promise; all within the blocks.
    unsafe {
        let bytes = _mm_loadu_si128(block.scales.as_ptr().cast());
        let scales = V::scales_of_16(bytes);
        let first = V::scaled_of_16::<false>(V::six_bits(ql, qh), y8, scales);
        let numbers = V::six_bits(ql.add(64), qh.add(32));
        let second = V::scaled_of_16::<true>(numbers, y8.add(128), scales);
        // the numbers are 32 too large: take 32 · scale · (sum of activations) off
        let times_32 = _mm256_slli_epi16::<5>(_mm256_cvtepi8_epi16(bytes));
        let bsums = _mm256_loadu_si256(y.bsums.as_ptr().cast());
        let excess = _mm256_madd_epi16(times_32, bsums);
        V::sub_eight(V::add(first, second), excess)
    }
}

#[inline(always)]
unsafe fn dot_row<V: DotVector>(row: &[BlockQ6K], y: &[BlockQ8K]) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = V::zero_floats();
        for (block, y) in row.iter().zip(y) {
            prefetch(block, size_of::<BlockQ6K>());
            let d = super::f16_to_f32(u16::from_le_bytes(block.d));
            let sums = V::to_floats(scaled_sums::<V>(block, y));
            acc = V::fma(sums, V::spread(d * y.scale()), acc);
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
pub(super) unsafe fn dot_rows<V: DotVector>(data: &[u8], y: &[BlockQ8K], out: &mut [f32]) {
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
    KSums { scaled: unsafe { V::total(scaled_sums::<V>(&blocks(block)[0], y)) }, mins: 0 }
}
