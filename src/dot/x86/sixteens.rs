//! Q2_K, Q3_K and Q6_K: sixteen sub-blocks of 16 weights, each with a separate scale.

use super::k_rows::{KRows, k_rows};
use super::rows::{RowBlock, dot_rows};
use super::vector::DotVector;
use crate::block::{BlockQ2K, BlockQ3K, BlockQ6K, Bytes, q3_k};
use crate::dot::activations::{Activations, BlockQ8K, Column};
use std::arch::x86_64::*;

/// The parts of a block that the dot product needs.
///
/// # Safety
///
/// Every function may be called only where the CPU has V's ISA.
pub(super) trait Sixteens: Bytes {
    /// Whether there are minima, which have a separate block scale.
    const MINS: bool = false;

    /// 128 quants, unsigned.
    unsafe fn quants<V: DotVector>(&self, second: bool) -> [V::Quants; 2];

    /// The scales, signed bytes.
    unsafe fn scales(&self) -> __m128i;

    /// Words by which sums of 16 activations are multiplied, for subtraction: the minima or, without minima,
    /// offset × scale.
    unsafe fn subtracted(&self) -> __m256i;

    /// The scale of the scales, and that of the minima if there are any, f16.
    fn block_scales(&self) -> [u16; 2];
}

impl Sixteens for BlockQ2K {
    const MINS: bool = true;

    #[inline(always)]
    unsafe fn quants<V: DotVector>(&self, second: bool) -> [V::Quants; 2] {
        // All reads are within the block.
        V::two_bits(self.qs.as_ptr().add(32 * usize::from(second)))
    }

    #[inline(always)]
    unsafe fn scales(&self) -> __m128i {
        let bytes = _mm_loadu_si128(self.scales.as_ptr().cast());
        _mm_and_si128(bytes, _mm_set1_epi8(0x0f))
    }

    #[inline(always)]
    unsafe fn subtracted(&self) -> __m256i {
        let bytes = _mm_loadu_si128(self.scales.as_ptr().cast());
        _mm256_srli_epi16::<4>(_mm256_cvtepu8_epi16(bytes))
    }

    #[inline(always)]
    fn block_scales(&self) -> [u16; 2] {
        [self.d, self.dmin].map(u16::from_le_bytes)
    }
}

impl Sixteens for BlockQ3K {
    #[inline(always)]
    unsafe fn quants<V: DotVector>(&self, second: bool) -> [V::Quants; 2] {
        // All reads are within the block.
        let [first, next] = V::two_bits(self.qs.as_ptr().add(32 * usize::from(second)));
        let bits = _mm256_loadu_si256(self.hmask.as_ptr().cast());
        if second {
            [V::with_bits::<4, 5, 2>(first, bits), V::with_bits::<6, 7, 2>(next, bits)]
        } else {
            [V::with_bits::<0, 1, 2>(first, bits), V::with_bits::<2, 3, 2>(next, bits)]
        }
    }

    #[inline(always)]
    unsafe fn scales(&self) -> __m128i {
        let scales = self.unpack_scales();
        let scales = _mm_loadu_si128(scales.as_ptr().cast());
        _mm_sub_epi8(scales, _mm_set1_epi8(q3_k::HALF_SCALE as i8))
    }

    #[inline(always)]
    unsafe fn subtracted(&self) -> __m256i {
        _mm256_slli_epi16::<2>(_mm256_cvtepi8_epi16(self.scales()))
    }

    #[inline(always)]
    fn block_scales(&self) -> [u16; 2] {
        [u16::from_le_bytes(self.d), 0]
    }
}

impl Sixteens for BlockQ6K {
    #[inline(always)]
    unsafe fn quants<V: DotVector>(&self, second: bool) -> [V::Quants; 2] {
        let half = usize::from(second);
        // All reads are within the block.
        V::six_bits(self.ql.as_ptr().add(64 * half), self.qh.as_ptr().add(32 * half))
    }

    #[inline(always)]
    unsafe fn scales(&self) -> __m128i {
        _mm_loadu_si128(self.scales.as_ptr().cast())
    }

    #[inline(always)]
    unsafe fn subtracted(&self) -> __m256i {
        _mm256_slli_epi16::<5>(_mm256_cvtepi8_epi16(self.scales()))
    }

    #[inline(always)]
    fn block_scales(&self) -> [u16; 2] {
        [u16::from_le_bytes(self.d), 0]
    }
}

impl<B: Sixteens> RowBlock for B {
    const MINS: bool = B::MINS;
    type Activations = BlockQ8K;

    #[inline(always)]
    unsafe fn sums<V: DotVector>(&self, y: &BlockQ8K) -> (V::Integers, __m256i) {
        let y8 = y.qs.as_ptr();
        // All reads are within the blocks.
        let scales = V::scales_of_16(self.scales());
        let first = V::scaled_of_16::<false>(self.quants::<V>(false), y8, scales);
        let second = V::scaled_of_16::<true>(self.quants::<V>(true), y8.add(128), scales);
        let scaled = V::add(first, second);
        let bsums = _mm256_loadu_si256(y.bsums.as_ptr().cast());
        let taken = _mm256_madd_epi16(self.subtracted(), bsums);
        if B::MINS {
            (scaled, taken)
        } else {
            (V::sub_eight(scaled, taken), _mm256_setzero_si256())
        }
    }

    #[inline(always)]
    fn block_scales(&self) -> [u16; 2] {
        Sixteens::block_scales(self)
    }

    #[inline(always)]
    fn scale(y: &BlockQ8K) -> f32 {
        y.scale()
    }
}

k_rows! {
    BlockQ2K: |data, a, out| dot_rows::<V, Self>(data, q8_k(a), out);
    BlockQ3K: |data, a, out| dot_rows::<V, Self>(data, q8_k(a), out);
    BlockQ6K: |data, a, out| dot_rows::<V, Self>(data, q8_k(a), out);
}

#[inline(always)]
fn q8_k(activations: &Activations) -> &[BlockQ8K] {
    let Column::Q8K(y) = &activations.column else { unreachable!("checked at the border") };
    y
}
