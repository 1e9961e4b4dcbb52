//! IQ4_XS: bytes from a table, eight signed scales per block, and no minima.
//!
//! The table's values are bytes, which a byte shuffle looks up. A part of 128 bits has quants of a single sub-block,
//! and [`HalfOrder`] has the activations in the same order. So a sub-block's scale multiplies whole parts.

use super::k_rows::{KRows, k_rows};
use super::rows::{RowBlock, dot_rows};
use super::vector::DotVector;
use crate::block::BlockIQ4XS;
use crate::dot::activations::{Activations, HalfOrder};
use std::arch::x86_64::*;

/// The scales of the sub-blocks, eight i32.
#[inline(always)]
unsafe fn unpack_scales(block: &BlockIQ4XS) -> __m256i {
    // AVX2; the callers' ISAs have it.
    let shift = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    let low = _mm256_set1_epi32(i32::from_le_bytes(block.scales_l));
    let low = _mm256_and_si256(_mm256_srlv_epi32(low, shift), _mm256_set1_epi32(0x0f));
    let high = _mm256_set1_epi32(i32::from(u16::from_le_bytes(block.scales_h)) << 4);
    let high = _mm256_srlv_epi32(high, _mm256_srli_epi32::<1>(shift));
    let high = _mm256_and_si256(high, _mm256_set1_epi32(0x30));
    _mm256_sub_epi32(_mm256_or_si256(low, high), _mm256_set1_epi32(32))
}

impl RowBlock for BlockIQ4XS {
    const MINS: bool = false;
    type Activations = HalfOrder;

    #[inline(always)]
    unsafe fn sums<V: DotVector>(&self, y: &HalfOrder) -> (V::Integers, __m256i) {
        let qs = self.qs.as_ptr().cast::<u8>();
        // All reads are within the blocks.
        let scales = unpack_scales(self);
        let first = V::scaled_values::<0>(qs, y, scales);
        let second = V::scaled_values::<1>(qs.add(64), y, scales);
        (V::add(first, second), _mm256_setzero_si256())
    }

    #[inline(always)]
    fn block_scales(&self) -> [u16; 2] {
        [u16::from_le_bytes(self.d), 0]
    }

    #[inline(always)]
    fn scale(y: &HalfOrder) -> f32 {
        y.d
    }
}

k_rows! {
    BlockIQ4XS: |data, a, out| dot_rows::<V, Self>(data, &a.half_order, out);
}
